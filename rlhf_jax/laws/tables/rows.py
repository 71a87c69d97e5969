"""Records of a table to rows with numbers by role, and notes on what is missing or wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.laws.tables.columns import NUMERIC, RATE, SIZES, Column, FitError, listed
from rlhf_jax.laws.tables.json_tables import Table
from rlhf_jax.laws.tables.numbers import decimal_mark
from rlhf_jax.laws.tables.selection import TOKENS_PER_PARAM, LeftOut, far_from_6nd, unfinished

OPTIONAL = ("stderr", "unique_tokens", "error", "step")  # roles that a fit can do without


def usable_rows(
    table: Table, columns: Mapping[str, Column]
) -> tuple[list[dict[str, Any]], LeftOut, list]:
    """(rows with a number for every needed role, (label, reason) of the others, notes)."""
    records = [record for _, record in table.records]
    stopped, notes = unfinished(table.header, records, columns.get("state"))
    numeric = [role for role in (*NUMERIC, "step") if role in columns]
    decimal = decimal_mark(
        (record.get(columns[role].name) for record in records for role in numeric), table.separator
    )
    if decimal:
        notes.append("numbers are read with decimal commas")
    rows, left_out = [], []
    for i, (where, record) in enumerate(table.records):
        label = _text(record, columns.get("label")) or _text(record, columns.get("run_id")) or where
        row: dict[str, Any] = {"label": label, "where": where, "record": record}
        for role in ("run_id", "budget"):
            row[role] = _text(record, columns.get(role))
        reason = stopped.get(i, "")
        for role in numeric:
            column = columns[role]
            try:
                row[role] = column.value(record.get(column.name), decimal)
                problem = _problem(row[role], role, record[column.name])
            except ValueError:
                cell = record.get(column.name)
                problem = f"{role} is {_short(cell)}, not a number"
            if problem and (role not in OPTIONAL or column.given):
                reason = reason or f"column {column.name!r}: {problem}"
            elif problem:
                row[role] = None
        if reason:
            at = f"{where}, {reason}" if label == where else f"{reason} ({where})"
            left_out.append((label, at.removeprefix(f"{label}, ")))
        else:
            rows.append(row)
    return rows, left_out, notes


def _problem(value: float, role: str, cell: Any) -> str:
    if math.isfinite(value) and (value > 0 or (role == "step" and value >= 0)):
        return ""
    return f"{role} is {_short(cell, bare=True)}; it must be positive and finite"


def _short(cell: Any, bare: bool = False) -> str:
    text = str(cell) if bare else repr(cell)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _text(record: Mapping[str, Any], column: Column | None) -> str:
    cell = record.get(column.name) if column else None
    return "" if cell is None else " ".join(str(cell).split())[:200]


def drop(rows: list, kept: list, reasons: Mapping[int, str], left_out: LeftOut) -> None:
    """Moves rows out of both lists, to `left_out` with the reason."""
    for i in sorted(reasons):
        label, where = rows[i]["label"], rows[i]["where"]
        left_out.append((label, reasons[i] if label == where else f"{reasons[i]} ({where})"))
    for i in sorted(reasons, reverse=True):
        del rows[i], kept[i]


def choose_flops(
    rows: list[dict[str, Any]],
    columns: dict[str, Column],
    passed: Mapping[str, list[Column]],
    where: str,
) -> list[str]:
    """Takes compute from the numbers of budgets where nothing else gives it, and not from a rate
    (TFLOPS)."""
    notes = []
    rate = "flops" in columns and columns["flops"].kind == RATE
    if rate and {"params", "tokens"} <= set(columns) and far_from_6nd(rows):
        name = columns.pop("flops").name
        for row in rows:
            del row["flops"]
        notes.append(f"column {name!r} is passed over: it is far from 6 N D; a rate a second?")
    if sum(role in columns for role in SIZES) == 1 and "budget" in columns:
        column = columns["budget"]
        try:
            for row in rows:
                row["flops"] = column.value(row["budget"])
        except ValueError:
            return notes
        columns["flops"] = column
        notes.append(f"column {column.name!r} taken as flops too")
    if sum(role in columns for role in SIZES) < 2:
        have = [role for role in SIZES if role in columns] or "none"
        names = [name for name in rows[0]["record"] if name]
        logs = [name for name in names if re.match(r"log(?!10)", name.casefold())]
        hint = f" ({logs[0]!r}: call it ln_... or log10_...)" if logs else ""
        raise FitError(
            f"of params, tokens and flops the table has {have}; two of them are needed. {where} "
            f"has {listed(names)}: say which they are, --columns params=NAME tokens=NAME{hint}, or "
            f"add a column (tokens = steps x batch x sequence length)"
        )
    return notes


def without_optional(rows: list[dict[str, Any]], columns: dict[str, Column]) -> list[str]:
    """Drops columns that a fit can do without where a row lacks them."""
    notes = []
    for role in ("step", *OPTIONAL):
        lacking = [row["where"] for row in rows if role in row and row[role] is None]
        if role == "step" or lacking:
            for row in rows:
                row.pop(role, None)
            column = columns.pop(role, None)
            if column and role == "step" and not {"label", "run_id"} & set(columns):
                notes.append(
                    f"column {column.name!r}: no column names the runs, so each row counts as a "
                    f"run of its own; with a column `run` the last step of each counts"
                )
            elif column and role != "step":
                notes.append(
                    f"column {column.name!r} is not used as {role}: {len(lacking)} rows have no "
                    f"positive number there, the first {lacking[0]}"
                )
    if "budget" in columns and any(row["budget"] for row in rows):
        empty = [row["where"] for row in rows if not row["budget"]]
        if empty:
            for row in rows:
                del row["budget"]
            notes.append(f"column {columns['budget'].name!r} is passed over: {empty[0]} has none")
    return notes


def check_third(
    params: np.ndarray, tokens: np.ndarray, columns: Mapping[str, Column], where: str
) -> None:
    """Refuses a third of params, tokens and flops, computed by C = 6 N D, that is impossible."""
    share = float(np.median(tokens / params))
    if not TOKENS_PER_PARAM[0] < share < TOKENS_PER_PARAM[1]:
        names = " and ".join(repr(columns[role].name) for role in SIZES if role in columns)
        raise FitError(
            f"{where}: columns {names} make {share:.3g} tokens a parameter by C = 6 N D, which "
            f"cannot be: check their units; --columns 'flops=NAME*1e18' reads a column in units of "
            "1e18"
        )
