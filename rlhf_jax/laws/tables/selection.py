"""Which rows of a table count: finished runs, each once, with possible numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.laws.tables.columns import Column, FitError, plain_key

LeftOut = list[tuple[str, str]]  # (label of the run, reason)

# How states begin in W&B, MLflow, SLURM (sacct cuts words: OUT_OF_ME+), and as people write them.
UNFINISHED = tuple(
    (
        "crash,fail,kill,run,preempt,timeout,timed out,time out,time limit,cancel,out of me,oom,"
        "node fail,boot fail,deadline,pending,queue,schedul,interrupt,abort,diverge,error,nan,"
        "unfinished,incomplete,not ,in progress,start,suspend,stop,requeue,revoke,resiz,configur,"
        "completing,special exit,terminat,delet,lost,stall,wait,submit,evict,exception,damaged,"
        "dead,broken,partial,paused,hang,hung"
    ).split(",")
)
FINISHED = ("finish", "complete", "done", "succe", "ok", "pass", "converge", "end", "kept", "good")
GOOD_FLAGS = "finished completed done success succeeded converged included include".split()
BAD_FLAGS = (
    "diverged crashed failed killed oom nan unstable interrupted preempted aborted excluded "
    "exclude earlystopped stoppedearly broken incomplete unfinished"
).split()
SUMMARIES = "mean average median std total sum min max count".split()  # below a table
EXIT_CODES = ("exitcode", "exitstatus", "returncode")
TRUE, FALSE = ("true", "1", "1.0", "yes", "y", "t"), ("false", "0", "0.0", "no", "n", "f")
MIN = {"params": 1e3, "tokens": 1e4, "flops": 1e7, "loss": 1e-4, "unique_tokens": 1.0}
MAX = {
    "params": 1e15,
    "tokens": 1e18,
    "flops": 1e34,
    "loss": 30.0,
    "unique_tokens": 1e18,
    "error": 1.0,
}
HINTS = {
    "params": "if they are millions, --columns 'params={0}*1e6', or name the column params_M",
    "tokens": "if they are billions, --columns 'tokens={0}*1e9', or name the column tokens_B",
    "flops": "if their unit is 1e18, --columns 'flops={0}*1e18', or name the column flops_1e18",
    "loss": "a loss is in nats a token, ln of a perplexity: call perplexities `perplexity`",
    "unique_tokens": "they are tokens: --columns 'unique_tokens={0}*1e9' if they are billions",
    "error": "it is a share of 0 to 1: --columns 'error={0}*0.01' if they are percent",
}
RATIO = 30.0  # largest between C and 6 N D, each way; conventions differ by less than 10
TOKENS_PER_PARAM = (1e-3, 1e6)
WORST = 12.5  # ln of 256,000
SHARE = 0.1  # of rows; with more impossible numbers a column is refused
NAMED = 20  # rows left out that a note names


def unfinished(
    header: Sequence[str], records: Sequence[Mapping[str, Any]], state: Column | None
) -> tuple[dict[int, str], list[str]]:
    """({row: reason} of runs marked as unfinished, notes)."""
    out: dict[int, str] = {}
    notes = []

    def leave_out(i: int, name: str) -> None:
        out.setdefault(i, f"{name} is {str(records[i][name]).strip()!r}")

    if state is not None:
        words = [_plain(record.get(state.name)) for record in records]
        for i, word in enumerate(words):
            if word.startswith(UNFINISHED) or word in FALSE:
                leave_out(i, state.name)
        known = (*UNFINISHED, *FINISHED)
        unknown = Counter(w for w in words if not w.startswith(known) and w not in (*TRUE, *FALSE))
        if unknown and len(unknown) < len(words):
            said = ", ".join(f"{word!r} ({count} rows)" for word, count in unknown.most_common(5))
            notes.append(f"column {state.name!r}: {said} says not whether the run finished: kept")
    first = [next((w for w in map(_plain, record.values()) if w), "") for record in records]
    once = {word for word, count in Counter(first).items() if count == 1}
    for i, word in enumerate(first):
        if word in SUMMARIES and word in once:
            out[i] = f"the {word} of other rows"
    for name in header:
        key = re.sub(r"^(is|has|was)(?=\w{3})", "", plain_key(name))
        cells = [_plain(record.get(name)) for record in records]
        if key in EXIT_CODES:
            bad = [bool(re.search(r"[1-9]", cell)) for cell in cells]
        elif key in (*GOOD_FLAGS, *BAD_FLAGS) and set(cells) <= {"", *TRUE, *FALSE}:
            bad = [cell in (FALSE if key in GOOD_FLAGS else TRUE) for cell in cells]
        else:
            continue
        for i in np.flatnonzero(bad).tolist():
            leave_out(i, name)
    return out, notes


def _plain(cell: Any) -> str:
    return "" if cell is None else re.sub(r"[\s_\-]+", " ", str(cell)).strip().casefold()


def repeated(
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Column],
) -> dict[int, str]:
    """{row: reason} of copies of other rows, and of earlier steps of a run.

    Rows are of one run if they share the run id, or the run's name (a `name` only beside a column
    of steps), the size, the budget and the seed. The last step counts, else the most tokens, else
    the last row. Names of models and plain numbers do not name runs.
    """
    out: dict[int, str] = {}
    seen: dict[tuple, int] = {}
    for i, record in enumerate(records):
        first = seen.setdefault(tuple(map(repr, record.values())), i)
        if first != i:
            out[i] = f"a copy of {rows[first]['label']}"
    groups: dict[tuple, list[int]] = {}
    seed = next((name for name in records[0] if name.casefold().endswith("seed")), None)
    for i, (row, record) in enumerate(zip(rows, records, strict=True)):
        if i not in out and (name := _identity(record, columns)):
            key = (name, row.get("params"), str(row.get("budget") or ""), record.get(seed or ""))
            groups.setdefault(key, []).append(i)
    for group in groups.values():
        if len(group) == 1:
            continue
        roles = ("step", "tokens", "flops")
        by = next((r for r in roles if len({rows[i].get(r) for i in group} - {None}) > 1), "")
        last = max(group, key=lambda i: (rows[i].get(by) or 0.0, i))
        at = f" ({by} {rows[last].get(by):g})" if by else ""
        for i in group:
            if i != last:
                at_i = f" at {by} {rows[i].get(by) or 0:g}" if by else ""
                out[i] = f"the same run{at_i} as {rows[last]['where']}{at}, which counts"
    return out


def _identity(record: Mapping[str, Any], columns: Mapping[str, Column]) -> str:
    """The name of a row's run; empty if it has none."""
    for role, sure in (("run_id", ("runid", "uid", "uuid", "runuuid")), ("label", ())):
        if role not in columns:
            continue
        name = columns[role].name
        key, cell = plain_key(name), record.get(name)
        cell = "" if cell is None else str(cell).strip()
        if not cell:
            continue
        if key in sure or (columns[role].given and role == "run_id"):
            return f"{role} {cell}"
        named = re.search(r"[^\d.eE+\-\s]", cell) is not None  # not a plain number
        runs = key in ("id", "run", "runname", "displayname")
        if named and (runs or ("step" in columns and key == "name")):
            return f"{role} {cell}"
    return ""


def impossible(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column], where: str
) -> dict[int, str]:
    """{row: reason} of rows with impossible numbers.

    Raises:
      FitError: more than `SHARE` of a column is impossible: its units are not those of its name.
    """
    out: dict[int, str] = {}
    for role, column in columns.items():
        if role not in MAX:
            continue
        as_is = column.given and column.factor == 1 and column.form == "as is"  # `NAME*1`
        low = 0.0 if as_is else MIN.get(role, 0.0)
        values = np.array([row.get(role, np.nan) for row in rows], np.float64)
        bad = (values < low) | (values > MAX[role])
        said = f"{role} of {low:g} to {MAX[role]:g} can be"
        hint = HINTS[role].format(column.name)
        if role not in ("error", "loss") and np.nanmedian(values) > MAX[role]:
            hint = "they are too large: check the unit, --columns takes NAME*FACTOR"
        _judge(out, bad, values, f"column {column.name!r}", said, f"{where}: {hint}")
        if role == "loss" and np.median(values) > WORST:
            raise FitError(
                f"column {column.name!r}: half of the losses are above {WORST}, which is chance "
                f"over any vocabulary. {where}: {hint}"
            )
    if "params" in columns and "tokens" in columns:
        params, tokens = (_values(rows, role) for role in ("params", "tokens"))
        with np.errstate(all="ignore"):
            share = tokens / params
        bad = (share < TOKENS_PER_PARAM[0]) | (share > TOKENS_PER_PARAM[1])
        said = "tokens a parameter from {:g} to {:g} can be".format(*TOKENS_PER_PARAM)
        names = f"columns {columns['tokens'].name!r} and {columns['params'].name!r}"
        _judge(out, bad, share, names, said, f"{where}: check the units of both, and see --columns")
    return out


def compute_ratio(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """C / (6 N D) of rows that have all three, (n,)."""
    with np.errstate(all="ignore"):
        return _values(rows, "flops") / (6.0 * _values(rows, "params") * _values(rows, "tokens"))


def far_from_6nd(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the median C differs from 6 N D by more than ways of counting FLOPs do."""
    return not 1 / RATIO < np.median(compute_ratio(rows)) < RATIO


def off_compute(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column], where: str
) -> dict[int, str]:
    """{row: reason} of rows whose C is far from 6 N D, compared with the table's other rows.

    Raises:
      FitError: it is so in the whole table, by more than ways of counting FLOPs differ.
    """
    ratio = compute_ratio(rows)
    middle = float(np.median(ratio))
    names = ", ".join(repr(columns[role].name) for role in ("flops", "params", "tokens"))
    if far_from_6nd(rows):
        power = round(-np.log10(middle)) if 0 < middle < np.inf else 18
        raise FitError(
            f"{where}: the flops are {middle:.3g} times 6 N D ({names}), and no way of counting "
            f"FLOPs differs so much; a unit is missing somewhere: --columns "
            f"'flops={columns['flops'].name}*1e{power}' if it is that of the flops, or --columns "
            "params=... tokens=... for C = 6 N D"
        )
    out: dict[int, str] = {}
    flops = _values(rows, "flops")
    turns = (flops / ratio - flops) / 2.0**64
    if (wrapped := (np.rint(turns) >= 1) & (np.abs(turns - np.rint(turns)) < 1e-3)).any():
        raise FitError(
            f"{where}: {int(wrapped.sum())} of {len(rows)} flops ({columns['flops'].name!r}) are 6 "
            f"N D less a multiple of 2^64: they were multiplied as integers of 64 bits. Multiply "
            f"as floats, or leave the column out by naming the others: --columns params=NAME "
            "tokens=NAME"
        )
    with np.errstate(all="ignore"):
        bad = np.abs(np.log(ratio / middle)) > np.log(RATIO)
    said = f"C is about {middle:.3g} times 6 N D in other rows"
    _judge(out, bad, ratio, f"columns {names}", said, f"{where}: check their units")
    return out


def _values(rows: Iterable[Mapping[str, Any]], role: str) -> np.ndarray:
    return np.array([row[role] for row in rows], np.float64)


def _judge(
    out: dict[int, str], bad: np.ndarray, values: np.ndarray, name: str, said: str, advice: str
) -> None:
    at = np.flatnonzero(bad).tolist()
    if len(at) > max(1, SHARE * len(bad)) or len(at) == len(bad) > 0:
        low, high = values[at].min(), values[at].max()
        raise FitError(
            f"{name}: {len(at)} of {len(bad)} values cannot be ({low:.4g} to {high:.4g}; {said}). "
            f"{advice}"
        )
    for i in at:
        out.setdefault(i, f"{name}: {values[i]:.4g} cannot be ({said})")


def left_out_notes(left_out: LeftOut, total: int) -> list[str]:
    """A sentence that counts and names the rows that are left out, if there are some."""
    if not left_out:
        return []
    named = "; ".join(
        f"{label}{',' if reason.startswith('column') else ':'} {reason}"
        for label, reason in left_out[:NAMED]
    )
    rest = len(left_out) - NAMED
    more = f"; and {rest} more, all named with --json" if rest > 0 else ""
    return [f"{len(left_out)} of {total} rows are left out: {named}{more}"]
