"""JSON lines and JSON in the layouts of W&B, pandas and people, as records of a table."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_jax.laws.tables.columns import FitError

ROWS = (
    "runs",
    "rows",
    "data",
    "records",
    "results",
    "points",
)  # of a JSON object, the list of runs


@dataclass
class Table:
    """Records as they are in a file.

    Attributes:
      header: column names in order of appearance. records: (where, {column: cell}), where as
          `file:line`.
      separator: between the fields of a CSV, else "".
      left_out: (where, reason) of lines that hold no record. notes: how the file was read.
      twice: column names that the header has more than once; the first column counts.
    """

    header: list[str]
    records: list[tuple[str, dict[str, Any]]]
    separator: str = ""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    twice: set[str] = field(default_factory=set)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_lines(name: str, text: str) -> Table:
    """Lines end at \\n alone: U+2028 and the like may be in a string."""
    if text.lstrip()[:1] == "[":
        return json_table(name, text)
    table = Table([], [])
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = _loads(line)
        except ValueError as e:
            table.left_out.append((where, f"is not JSON: {e}"))
            continue
        add_row(table, where, row)
    return table


def json_table(name: str, text: str) -> Table:
    """A list of objects, an object of columns, or an object that holds a list of runs."""
    try:
        data = _loads(text)
    except ValueError as e:
        if "\n" in text.strip() and text.lstrip().startswith("{"):
            table = json_lines(name, text)  # JSON lines under the wrong name
            if table.records:
                return table
        raise FitError(f"{name} is not JSON: {e}") from None
    if isinstance(data, dict):
        inner = [data[key] for key in ROWS if _objects(data.get(key))]
        inner = inner[:1] or [value for value in data.values() if _objects(value)]
        names, rows = data.get("columns"), data.get("data")
        if len(inner) == 1:
            data = inner[0]
        elif isinstance(names, list) and isinstance(rows, list) and _rows_of(names, rows):
            data = _rows_of(names, rows)
        elif data and all(isinstance(v, list) for v in data.values()):
            longest = max(map(len, data.values()))
            data = [
                {k: v[i] if i < len(v) else None for k, v in data.items()} for i in range(longest)
            ]
        elif data and all(isinstance(v, dict) for v in data.values()):
            keys = list(dict.fromkeys(key for column in data.values() for key in column))
            if keys and all(key.isdigit() for key in keys):  # pandas: {column: {row: cell}}
                data = [{column: cells.get(key) for column, cells in data.items()} for key in keys]
            else:  # {run: {column: cell}}
                data = [{"label": key, **row} for key, row in data.items()]
        else:
            data = [data]
    elif isinstance(data, list) and data and isinstance(data[0], list):
        data = _rows_of(data[0], data[1:]) or data
    if not isinstance(data, list):
        raise FitError(f"{name} is JSON without a list of runs; give a list of objects, one a run")
    table = Table([], [])
    for number, row in enumerate(data, 1):
        add_row(table, f"{name}:{number}", row)
    return table


def _objects(value: Any) -> bool:
    """Whether it is a list of objects, such as the runs of an object that holds them."""
    return isinstance(value, list) and any(isinstance(row, dict) for row in value)


def _rows_of(names: list, rows: list) -> list[dict[str, Any]]:
    """Objects of rows that are lists, as W&B's and pandas' tables have; none where they are not."""
    if not all(isinstance(name, str) for name in names) or not all(
        isinstance(r, list) for r in rows
    ):
        return []
    return [dict(zip(names, row, strict=False)) for row in rows]


def add_row(table: Table, where: str, row: Any) -> None:
    if not isinstance(row, dict):
        table.left_out.append((where, "is not a JSON object"))
        return
    record = _flat(row)
    known = set(table.header)
    table.header += [key for key in record if key not in known]
    table.records.append((where, record))


def _flat(row: Mapping[str, Any], depth: int = 4) -> dict[str, Any]:
    """Nested objects as `outer.inner`, as W&B's config and summary are; {"value": x} as x."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and "value" in value and set(value) <= {"value", "desc"}:
            value = value["value"]
        if isinstance(value, dict) and depth:
            out |= {f"{key}.{k}": v for k, v in _flat(value, depth - 1).items()}
        else:
            out[str(key)] = value
    return out


def unfold(table: Table) -> None:
    """Cells that are the text of an object (W&B's `config`, `summary` in a CSV), as columns."""
    for name in list(table.header):
        cells = [record.get(name) for _, record in table.records]
        texts = [c for c in cells if isinstance(c, str) and c.lstrip().startswith("{")]
        if name.casefold() not in ("config", "summary", "metrics", "params") or not texts:
            continue
        for _, record in table.records:
            row = _object(record.get(name))
            if row is not None:
                found = _flat({name: row})
                table.header += [key for key in found if key not in table.header]
                record |= found


def _object(cell: Any) -> dict[str, Any] | None:
    if not isinstance(cell, str) or len(cell) > 10**6:
        return None
    for read in (_loads, ast.literal_eval):
        try:
            row = read(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        return row if isinstance(row, dict) else None
    return None
