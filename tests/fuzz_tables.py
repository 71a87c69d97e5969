"""Tables of runs, good and bad, drawn from a seed: what a table of a known law becomes in people's
hands."""

import csv
import gzip
import io
import json
import re
from dataclasses import dataclass, field

import numpy as np

from rlhf_jax.laws.chinchilla import Chinchilla

LAW = Chinchilla(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20)
JUNK = (
    "",
    "NaN",
    "nan",
    "inf",
    "-inf",
    "x",
    "N/A",
    "None",
    "null",
    "-",
    "0",
    "-1",
    "1e200",
    "1e-200",
    "1e999",
    "#REF!",
    "TRUE",
    "12:30",
    "1.2.3",
    "--",
    "\u2028",
    "3.5.1",
    "[]",
    "{}",
    "1e",
    "9" * 400,
    "=A1+B2",
)
NAMES = {
    "params": (
        "params",
        "N",
        "Model Size",
        "n_params",
        "num_parameters",
        "Parameters",
        "non_embedding_params",
        "config.n_params",
        "params_M",
        "params (M)",
        "Size (billions)",
    ),
    "tokens": (
        "tokens",
        "D",
        "Training Tokens",
        "tokens_seen",
        "num_tokens",
        "tokens_B",
        "tokens (billions)",
    ),
    "flops": (
        "flops",
        "C",
        "Training FLOP",
        "Training Compute (FLOP)",
        "train_flops",
        "achieved_flops",
        "compute",
        "flops_1e18",
        "FLOPs (10^18)",
        "C (EFLOPs)",
        "compute_pf_days",
    ),
    "loss": (
        "loss",
        "L",
        "val_loss",
        "final_loss",
        "eval/loss",
        "validation loss",
        "summary.eval/loss",
    ),
}
UNITS = {
    "params_M": 1e6,
    "params (M)": 1e6,
    "Size (billions)": 1e9,
    "tokens_B": 1e9,
    "tokens (billions)": 1e9,
    "flops_1e18": 1e18,
    "FLOPs (10^18)": 1e18,
    "C (EFLOPs)": 1e18,
    "compute_pf_days": 8.64e19,
}
STATES = (
    "crashed",
    "failed",
    "killed",
    "running",
    "FAILED",
    "TIMEOUT",
    "CANCELLED by 1000",
    "OUT_OF_ME+",
    "preempted",
    "diverged",
)
OPTIONS = (
    ["--seed", "-1"],
    ["--seed", "5000000000"],
    ["--resamples", "-3"],
    ["--window", "0"],
    ["--window", "nan"],
    ["--columns", "loss=los"],
    ["--columns", "params=params*x"],
    ["--columns", "params"],
    ["--seed", "x"],
    ["--approach", "4"],
)


@dataclass
class Draft:
    """A table on its way to bytes."""

    header: list[str]
    rows: list[list[str]]
    separator: str = ","
    argv: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    name: str = "runs.csv"
    data: bytes | None = None


def clean(rng, flops=False):
    """5 budgets of 7 sizes, 0.2% of noise; `name`, `state` beside the numbers."""
    header = ["name", "state", "params", "tokens", *(["flops"] if flops else []), "loss"]
    rows = []
    for c in BUDGETS:
        for k in range(7):
            n = float(round(LAW.compute_optimal(c)[0] * 4 ** ((k - 3) / 3)))
            d = float(round(c / (6 * n)))
            loss = float(LAW.loss(n, d) * np.exp(0.002 * rng.normal()))
            rows.append(
                [
                    f"run-{len(rows)}",
                    "finished",
                    f"{n:.0f}",
                    f"{d:.0f}",
                    *([f"{c:g}"] if flops else []),
                    f"{loss:.6f}",
                ]
            )
    return Draft(header, rows)


# --- what happens to tables ------------------------------------------------------------------


def _junk(rng, t):
    for _ in range(int(rng.integers(1, 4))):
        row, column = int(rng.integers(len(t.rows))), int(rng.integers(2, len(t.header)))
        t.rows[row][column] = str(rng.choice(JUNK))


def _rename(rng, t):
    for role, names in NAMES.items():
        if role not in t.header:
            continue
        at, name = t.header.index(role), str(rng.choice(names))
        t.header[at] = name
        if name in UNITS:
            for row in t.rows:
                row[at] = _scaled(row[at], 1 / UNITS[name])


def _scaled(cell, factor):
    try:
        return repr(float(cell) * factor)
    except ValueError:
        return cell


def _scale(rng, t):
    """Another unit, and nothing says so."""
    role = str(
        rng.choice([name for name in ("params", "tokens", "flops") if name in t.header] or ["x"])
    )
    if role in t.header:
        factor = {"params": 1e-6, "tokens": 1e-9, "flops": 1e-18}[role]
        for row in t.rows:
            row[t.header.index(role)] = _scaled(row[t.header.index(role)], factor)
        t.said.append("unit lost")


def _double(rng, t):
    t.rows += [list(t.rows[i]) for i in rng.integers(0, len(t.rows), int(rng.integers(1, 36)))]


def _shuffle(rng, t):
    t.rows = [t.rows[i] for i in rng.permutation(len(t.rows))]


def _separator(rng, t):
    t.separator = str(rng.choice([";", "\t", "|"]))
    if t.separator == ";" and rng.random() < 0.7:
        t.rows = [
            [cell if i < 2 else cell.replace(".", ",") for i, cell in enumerate(row)]
            for row in t.rows
        ]


def _states(rng, t):
    at = t.header.index("state")
    for i in rng.choice(len(t.rows), min(4, len(t.rows)), replace=False):
        t.rows[i][at] = str(rng.choice(STATES))
        t.rows[i][-1] = _scaled(t.rows[i][-1], 1.3)


def _spelling(rng, t):
    at = int(rng.integers(2, len(t.header) - 1))
    form = int(rng.integers(5))
    for row in t.rows:
        try:
            value = float(row[at])
        except ValueError:
            continue
        row[at] = (
            f"{value:.6e}",
            f"{value:,.0f}",
            f"{value / 1e6:.4f}M",
            f"{value:,.0f}".replace(",", "\u202f"),
            f"{value / 1e9:.6f} B",
        )[form]


def _lengths(rng, t):
    for i in rng.choice(len(t.rows), min(2, len(t.rows)), replace=False):
        t.rows[i] = (
            t.rows[i][: int(rng.integers(1, 4))] if rng.random() < 0.5 else [*t.rows[i], "1"]
        )


def _blank_lines(rng, t):
    for _ in range(3):
        t.rows.insert(int(rng.integers(len(t.rows))), [])


def _comments(rng, t):
    t.rows.insert(int(rng.integers(len(t.rows))), ["# a remark"])


def _few(rng, t):
    t.rows = t.rows[: int(rng.integers(0, 5))]


def _flat(rng, t):
    """Nothing to fit: one size, one loss, one budget."""
    at = int(rng.choice([2, 3, len(t.header) - 1]))
    for row in t.rows:
        if len(row) > at:
            row[at] = t.rows[0][at] if len(t.rows[0]) > at else "1"
    t.said.append("flat")


def _columns(rng, t):
    at = int(rng.integers(2, len(t.header)))
    if rng.random() < 0.5:
        t.header[at] = "something"
    else:
        t.header = t.header[:at] + t.header[at + 1 :]
        t.rows = [row[:at] + row[at + 1 :] for row in t.rows]


def _options(rng, t):
    t.argv += OPTIONS[int(rng.integers(len(OPTIONS)))]


EDITS = (
    _junk,
    _junk,
    _rename,
    _rename,
    _scale,
    _double,
    _shuffle,
    _separator,
    _states,
    _spelling,
    _lengths,
    _blank_lines,
    _comments,
    _few,
    _flat,
    _columns,
    _options,
)


# --- bytes -----------------------------------------------------------------------------------


def _write(t):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=t.separator, lineterminator="\n")
    writer.writerow(t.header)
    writer.writerows(t.rows)
    return out.getvalue()


def _encode(rng, t):
    """The file: as CSV in some encoding, as JSON, or damaged."""
    text, form = _write(t), int(rng.integers(16))
    records = [dict(zip(t.header, row, strict=False)) for row in t.rows]
    if form == 0:
        return "bom.csv", text.encode("utf-8-sig")
    if form == 1:
        return "wide.csv", text.encode("utf-16")
    if form == 2:
        return "dos.csv", text.replace("\n", "\r\n").encode()
    if form == 3:
        return "mac.csv", text.replace("\n", "\r").encode()
    if form == 4:
        return "runs.csv.gz", gzip.compress(text.encode(), mtime=0)
    if form == 5:
        return "runs.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in records).encode()
    if form == 6:
        return "runs.json", json.dumps(records).encode()
    if form == 7:  # a quote that does not close
        at = int(rng.integers(len(text) // 3, max(len(text) - 10, len(text) // 3 + 1)))
        at = text.find(t.separator, at) + 1
        return "quote.csv", (text[:at] + '"' + text[at:]).encode()
    if form == 8 and rng.random() < 0.5:  # cut off
        return "cut.csv", text.encode()[: int(rng.integers(len(text)))]
    if form == 9 and rng.random() < 0.5:
        data = bytearray(text.encode())
        for _ in range(3):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        return "flipped.csv", bytes(data)
    if form == 10 and rng.random() < 0.5:
        data = gzip.compress(text.encode(), mtime=0)
        return "cut.csv.gz", data[: int(rng.integers(len(data)))]
    if form == 11 and rng.random() < 0.3:
        return "binary.csv", rng.bytes(500)
    return t.name, text.encode()


def cases(seed, n, approaches=("2", "2", "2", "3", "all")):
    """Yields n times (description, file name, bytes, argv of `fit` beside the file)."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        t = clean(rng, flops=rng.random() < 0.5)
        edits = [EDITS[i] for i in rng.integers(0, len(EDITS), int(rng.integers(1, 4)))]
        for edit in edits:
            if t.rows and all(len(row) == len(t.header) for row in t.rows):
                edit(rng, t)
                t.said.append(edit.__name__.strip("_"))
        name, data = _encode(rng, t)
        argv = ["--resamples", "0", "--approach", str(rng.choice(approaches)), *t.argv]
        yield f"{', '.join(t.said)} as {name}", name, data, argv


SAID = ("left out", "passed over", "is not used", "Refused", "not UTF-8")
A = re.compile(r"^a +([\d.e+-]+)", re.MULTILINE)
G = re.compile(r"^(?:G) +([\d.e+-]+)", re.MULTILINE)


def problem_of(code, printed):
    """What is wrong with how `fit` ended, or ""."""
    if code not in (0, 2) or "Traceback" in printed or "Warning" in printed:
        return f"exit code {code}: {printed[-1500:]}"
    if code == 2:
        return "" if printed.strip() and len(printed) < 6000 else "exit 2 without a word"
    off = [x for x in map(float, A.findall(printed)) if abs(x - LAW.a) > 0.03]
    off += [x for x in map(float, G.findall(printed)) if not LAW.G / 4 < x < LAW.G * 4]
    if off and not any(word in printed for word in SAID):
        return f"a or G is {off} and nothing is left out: {printed[-1500:]}"
    return ""
