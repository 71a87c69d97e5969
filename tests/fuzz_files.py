"""Random damage to files of records and of text: rows replaced, fields renamed, types changed,
bytes cut, other encodings. Every case is a function of the seed and its number."""

import gzip
import json
import random
from collections.abc import Iterator

Case = tuple[str, str, bytes]  # description, file name, content

TURNS = [{"role": "user", "content": "Name a fish."}, {"role": "assistant", "content": "Trout."}]
SHARED = [{"from": "human", "value": "Name a fish."}, {"from": "gpt", "value": "Trout."}]
TALK = "\n\nHuman: Name a fish.\n\nAssistant:"
ROWS = {
    "alpaca": {"instruction": "Add.", "input": "1, 2", "output": "3"},
    "system": {"system": "Be brief.", "instruction": "Add.", "input": "", "output": "3"},
    "dolly": {"instruction": "Add.", "context": "1, 2", "response": "3", "category": "qa"},
    "kto": {"prompt": "1 + 2", "completion": "3", "label": True},
    "plain": {"prompt": "1 + 2", "completion": "3"},
    "pairs": {"prompt": "1 + 2", "chosen": "3", "rejected": "4"},
    "hh": {"chosen": TALK + " Trout.", "rejected": TALK + " A cow."},
    "stripped": {"chosen": TALK.strip() + " Trout.", "rejected": TALK.strip() + " A cow."},
    "kwise": {"prompt": "1 + 2", "responses": ["3", "4", "5"], "ranks": [1, 2, 3]},
    "scores": {"prompt": "1 + 2", "completions": ["3", "4"], "scores": [0.5, -1]},
    "messages": {"messages": TURNS},
    "sharegpt": {"conversations": SHARED, "system": "Be brief."},
    "ultra": {
        "prompt": "Name a fish.",
        "chosen": TURNS,
        "rejected": [TURNS[0], {**TURNS[1], "content": "Cow."}],
        "score_chosen": 8,
        "score_rejected": 3,
    },
    "own": {"kind": "demonstration", "version": 1, "prompt": "1 + 2", "response": "3"},
}
JUNK = [
    None,
    True,
    False,
    0,
    -1,
    1e300,
    float("nan"),
    float("inf"),
    10**30,
    "",
    " ",
    "\x00",
    "\ud800",
    "a\u2028b",
    "👍🏽" * 3,
    "\u202eabc",
    "e" + "\u0301" * 50,
    "x" * 5000,
    [],
    {},
    [None],
    [[]],
    {"a": {"b": []}},
    ["a", 1],
    "\n\nHuman: x\n\nAssistant:",
    b"\xff",
]
MARKS = [
    "label",
    "split",
    "deleted",
    "weight",
    "system",
    "score",
    "rank",
    "tools",
    "status",
    "history",
]
LINES = [
    b"",
    b"{",
    b"}",
    b"null",
    b"[]",
    b"[1]",
    b"{}",
    b'"text"',
    b"\xff\xfe",
    b"\x00",
    b"{'a': 1}",
    b"NaN",
    b"[" * 5000,
    b'{"a":' * 5000,
    b"9" * 5000,
    b'{"text": "\\ud83d"}',
    b"<html>",
    b"a,b\n1,2",
    b"\x1f\x8b\x08",
]
TEXT = {
    "English": "The river is old. A farmer saw the bridge, and the market was quiet. ",
    "Russian": "Золотая лампа видит мост. Большая гавань помнит реку. ",
    "Chinese": "他在家里看书。我们喝茶说话。",
    "Arabic": "الولد يقرأ كتابا في البيت. هل تكتب البنت رسالة؟ ",
    "Thai": "เด็กอ่านหนังสือในบ้าน และเขียนจดหมาย ",
    "emoji": "👩‍👩‍👧 loves 🍎. \u202eabc\u202c e\u0301\u0301. ",
    "one word": "x" * 200,
}


def dumped(row: object) -> bytes:
    """A row as JSON; bytes stand in it as they are."""
    text = json.dumps(row, default=lambda _: "\x01BYTES\x01")
    return text.encode().replace(b"\\u0001BYTES\\u0001", b"\xff")


def changed(rng: random.Random, row: dict) -> tuple[str, dict]:
    """A row with one thing wrong in it, and what."""
    row = json.loads(json.dumps(row))
    name = rng.choice(sorted(row))
    how = rng.choice(["rename", "drop", "replace", "mark", "inside", "twice", "case"])
    if how == "rename":
        row[f"{name}_"] = row.pop(name)
    elif how == "drop":
        del row[name]
    elif how == "case":
        row[name.upper()] = row.pop(name)
    elif how == "replace":
        row[name] = rng.choice(JUNK)
    elif how == "mark":
        name = rng.choice(MARKS)
        row[name] = rng.choice([*JUNK, "test", "false", 0.5, [["a", "b"]]])
    elif how == "twice":
        row[name] = [row[name], row[name]]
    elif isinstance(row[name], list) and row[name]:
        at = rng.randrange(len(row[name]))
        inner = row[name][at]
        if isinstance(inner, dict):
            inner[rng.choice([*sorted(inner), "weight", "tool_calls"])] = rng.choice(JUNK)
        else:
            row[name][at] = rng.choice(JUNK)
    else:
        row[name] = {"value": row[name]}
    return f"{how} {name}", row


def damaged(rng: random.Random, name: str, raw: bytes) -> tuple[str, str, bytes]:
    """A file after something has happened to all of it."""
    how = rng.choice(
        [
            "none",
            "none",
            "none",
            "cut",
            "flip",
            "gzip",
            "gzip cut",
            "gzip flip",
            "utf-16",
            "latin-1",
            "bom",
            "crlf",
            "list",
            "list cut",
            "no end",
            "empty",
            "zip",
            "renamed",
            "parquet name",
        ]
    )
    at = rng.randrange(max(1, len(raw)))
    if how in ("cut", "no end"):
        raw = raw[:at] if how == "cut" else raw.rstrip(b"\n")
    elif how == "flip":
        raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    elif how.startswith("gzip"):
        name, raw = name + ".gz", gzip.compress(raw, mtime=0)
        at = rng.randrange(len(raw))
        if how == "gzip cut":
            raw = raw[:at]
        elif how == "gzip flip":
            raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    elif how in ("utf-16", "latin-1"):
        raw = raw.decode("utf-8", "replace").encode(how, "replace")
    elif how == "bom":
        raw = b"\xef\xbb\xbf" + raw
    elif how == "crlf":
        raw = raw.replace(b"\n", b"\r\n")
    elif how.startswith("list"):
        raw = b"[" + b",\n".join(x for x in raw.split(b"\n") if x) + b"]"
        raw = raw[: at + 1] if how == "list cut" else raw
    elif how == "empty":
        raw = b""
    elif how == "zip":
        raw = rng.choice([b"PK\x03\x04", b"BZh9", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"]) + raw
    elif how == "renamed":
        name += ".gz"
    elif how == "parquet name":
        name = name.rpartition(".")[0] + ".parquet"
    return how, name, raw


def record_cases(seed: int, n: int) -> Iterator[Case]:
    """Files of records with something wrong."""
    for number in range(n):
        rng = random.Random(f"records {seed} {number}")
        kind = rng.choice(sorted(ROWS))
        lines = [dumped(ROWS[kind]) for _ in range(rng.randrange(1, 12))]
        said = [kind]
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(lines))
            if rng.random() < 0.4:
                lines[at] = rng.choice(LINES)
                said.append(f"row {at + 1} is {lines[at][:20]!r}")
            else:
                what, row = changed(rng, ROWS[kind])
                lines[at] = dumped(row)
                said.append(f"row {at + 1}: {what}")
        if rng.random() < 0.1:
            other = rng.choice(sorted(ROWS))
            lines.append(dumped(ROWS[other]))
            said.append(f"a row of {other}")
        how, name, raw = damaged(rng, "records.jsonl", b"\n".join(lines) + b"\n")
        yield "; ".join([*said, how]), name, raw


def source_cases(seed: int, n: int) -> Iterator[Case]:
    """Files of text with something wrong; the field is `text`."""
    for number in range(n):
        rng = random.Random(f"sources {seed} {number}")
        kind = rng.choice(sorted(TEXT))
        text = "".join(TEXT[kind] for _ in range(rng.randrange(1, 60)))
        if rng.random() < 0.4:
            joint = rng.choice(["\n", "\n\n", " ", "\r\n", "\u2028", "\x00", "\n \n"])
            raw = joint.join([text] * rng.randrange(1, 30)).encode()
            said, name = [kind, f"joined by {joint!r}"], "text.txt"
        else:
            lines = [dumped({"text": f"{i} {text}"}) for i in range(rng.randrange(1, 30))]
            said, name = [kind], rng.choice(["text.jsonl", "text.json"])
            for _ in range(rng.randrange(4)):
                at = rng.randrange(len(lines))
                if rng.random() < 0.4:
                    lines[at] = rng.choice(LINES)
                    said.append(f"row {at + 1} is {lines[at][:20]!r}")
                else:
                    what, row = changed(rng, {"text": text, "id": 3})
                    lines[at] = dumped(row)
                    said.append(f"row {at + 1}: {what}")
            raw = b"\n".join(lines) + b"\n"
        how, name, raw = damaged(rng, name, raw)
        yield "; ".join([*said, how]), name, raw
