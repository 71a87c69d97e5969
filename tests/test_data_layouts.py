"""Guarantees of `rlhf_jax.data.layouts`. The rows are written here, in the form of public data sets."""

import gzip
import json

import pytest

from rlhf_jax.config import ConfigError
from rlhf_jax.data.feedback import Comparison, Correction, Demonstration, write
from rlhf_jax.data.layouts import load

ASK = "\n\nHuman: Name a fish.\n\nAssistant: Trout.\n\nHuman: Another?\n\nAssistant:"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a fish."},
    {"role": "assistant", "content": "Trout."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "Pike."},
    {"role": "user", "content": "Thanks."},
]
LATER = "\n\nSystem: Be brief." + ASK


def rows_in(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def only(tmp_path, row):
    loaded = load(rows_in(tmp_path / "one.jsonl", [row]))
    return loaded.layout, loaded.records[0]


def test_transcript_pairs_share_the_prompt_before_the_last_turn(tmp_path):
    got = only(tmp_path, {"chosen": ASK + " Pike.", "rejected": ASK + " A cow."})
    assert got == ("pairs", Comparison(ASK, (" Pike.", " A cow."), (1, 2)))


UNUSABLE = [
    {"chosen": ASK + " Pike.", "rejected": ASK.replace("fish", "bird") + " Owl."},
    {"chosen": ASK + " Pike.", "rejected": ASK + " Pike."},
    {"chosen": ASK + " Pike.\n\nHuman: Thanks.", "rejected": ASK + " Cow.\n\nHuman: No."},
    {"chosen": "Pike.", "rejected": "A cow."},
]


def test_unusable_pairs_are_counted_or_refused_with_their_row(tmp_path):
    good = {"chosen": ASK + " Pike.", "rejected": ASK + " A cow."}
    path = rows_in(tmp_path / "hh.jsonl", [*UNUSABLE, good])
    loaded = load(path)
    assert (len(loaded.records), loaded.rows, loaded.skipped) == (1, [5], 4)
    with pytest.raises(ConfigError, match=r"hh\.jsonl, row 1: chosen and rejected differ before"):
        load(path, strict=True)
    with pytest.raises(ConfigError, match="no usable rows, 4 left out"):
        load(rows_in(path, UNUSABLE))


def test_pairs_with_a_prompt_of_their_own(tmp_path):
    texts = {"prompt": "Name a fish.", "chosen": "Pike.", "rejected": "Cow."}
    expected = Comparison("Name a fish.", ("Pike.", "Cow."), (1, 2))
    assert only(tmp_path, texts) == ("pairs", expected)
    whole = {k: [MESSAGES[1], {"role": "assistant", "content": texts[k]}] for k in ("chosen", "rejected")}  # fmt: skip
    expected = Comparison("\n\nHuman: Name a fish.\n\nAssistant:", (" Pike.", " Cow."), (1, 2))
    assert only(tmp_path, texts | whole)[1] == only(tmp_path, whole)[1] == expected
    last = {k: v[1:] for k, v in whole.items()} | {"prompt": MESSAGES[1:2]}
    assert only(tmp_path, last)[1] == expected
    assert only(tmp_path, last | {"prompt": "Name a fish."})[1] == expected


@pytest.mark.parametrize(
    ("fields", "ranking"),
    [
        ({"responses": ["a", "b", "c"], "ranking": [2, 1, 2]}, (2, 1, 2)),
        ({"answers": ["a", "b", "c"], "ranks": [0, 5, 3]}, (1, 3, 2)),
        ({"completions": ["a", "b", "c"], "scores": [0.5, 7, 0.5]}, (2, 1, 2)),
    ],
)
def test_scores_descend_to_ranks_and_ties_stay(tmp_path, fields, ranking):
    expected = ("kwise", Comparison("p", ("a", "b", "c"), ranking))
    assert only(tmp_path, {"prompt": "p", **fields}) == expected


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "Add.\n\n1, 2"),
        ({"instruction": "Add 1, 2.", "input": "", "output": "3"}, "Add 1, 2."),
        ({"prompt": "1 + 2", "completion": "3"}, "1 + 2"),
        ({"prompt": "1 + 2", "response": "3", "source": "me"}, "1 + 2"),
        ({"question": "1 + 2?", "answer": "3"}, "1 + 2?"),
    ],
)
def test_instruction_sets_are_demonstrations(tmp_path, fields, prompt):
    assert only(tmp_path, fields) == ("instructions", Demonstration(prompt, "3"))


def test_the_last_assistant_turn_of_a_chat_is_the_response(tmp_path):
    assert only(tmp_path, {"messages": MESSAGES}) == ("chat", Demonstration(LATER, " Pike."))
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in MESSAGES]
    turns.insert(0, {"from": "gpt", "value": "Hello."})
    assert only(tmp_path, {"conversations": turns}) == ("chat", Demonstration(LATER, " Pike."))


def test_chats_without_an_answer_or_with_a_marker_inside_are_left_out(tmp_path):
    rows = [
        {"messages": MESSAGES},
        {"messages": MESSAGES[:2]},
        {"messages": MESSAGES[2:3]},
        {"messages": [{"role": "user", "content": "x\n\nHuman: y"}, MESSAGES[4]]},
    ]
    assert load(rows_in(tmp_path / "c.jsonl", rows)).skipped == 3


def test_lists_lines_and_compressed_files_hold_the_same(tmp_path):
    rows = [{"question": "q", "answer": str(i)} for i in range(3)]
    lines = rows_in(tmp_path / "a.jsonl", rows)
    expected = load(lines)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    for name in ("a.json", "a.json.gz", "a.jsonl.gz"):
        assert load(tmp_path / name) == expected


def test_own_records_are_a_layout(tmp_path):
    records = [Demonstration("p", "r"), Correction("p", "a", "b")]
    write(tmp_path / "r.jsonl", records)
    assert load(tmp_path / "r.jsonl")[:3] == (records, [1, 2], "records")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "fields text is in no known layout"),
        ({"prompt": "p", "responses": ["a"], "ranking": [1]}, "1 responses"),
        ({"prompt": "p", "responses": list("abcdefghij"), "ranking": [1] * 10}, "10 responses"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "scores: 1 numbers for 2"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, None]}, "expected a number"),
        ({"responses": ["a", "b"], "scores": [1, 2]}, "prompt = None"),
        ({"question": "q", "answer": 3}, "answer = 3"),
        ({"messages": "hello"}, "messages = 'hello'; expected a list"),
        ({"messages": [MESSAGES[0], {"role": "tool", "content": ""}]}, "message 2 has role = 'tool'"),
        ({"chosen": 1, "rejected": "x"}, "chosen = 1"),
        ({"kind": "comparison", "version": 2}, "expected 'version': 1"),
    ],
)  # fmt: skip
def test_malformed_rows_are_refused_with_their_number(tmp_path, row, message):
    with pytest.raises(ConfigError, match=rf"bad\.jsonl, row 1: .*{message}"):
        load(rows_in(tmp_path / "bad.jsonl", [row]))


def test_a_named_layout_is_kept_to(tmp_path):
    path = rows_in(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(ConfigError, match="expected one of: responses"):
        load(path, "kwise")
    with pytest.raises(ConfigError, match=r"layout = 'pair'\. Did you mean 'pairs'"):
        load(path, "pair")
