"""JSON lines and JSON in the layouts of W&B, pandas and people, as records of a table."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_jax.data import files
from rlhf_jax.laws.tables.columns import FitError

# Keys under which a JSON object holds the list of its runs.
ROWS = ("runs", "rows", "data", "records", "results", "points")


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


def json_lines(name: str, text: str) -> Table:
    """An object a line, or what `json_table` reads."""
    if text.lstrip()[:1] == "[":
        return json_table(name, text)
    return add_rows(name, files.json_rows(Path(name), io.BytesIO(text.encode())))


def json_table(name: str, text: str) -> Table:
    """A list of objects, an object of columns, or an object that holds a list of runs."""
    try:
        data = _runs(json.loads(text))
    except (ValueError, RecursionError) as e:
        if text.lstrip().startswith("{"):
            table = json_lines(name, text)  # JSON lines under the wrong name
            if table.records:
                return table
        why = "nested too deeply" if isinstance(e, RecursionError) else e
        raise FitError(f"{name} is not JSON: {why}") from None
    if not isinstance(data, list):
        raise FitError(f"{name} is JSON without a list of runs; give a list of objects, one a run")
    return add_rows(name, (files.object_row(i, row) for i, row in enumerate(data, 1)))


def _runs(data: Any) -> Any:
    """The list of runs of a JSON value, if it is in a known layout."""
    if isinstance(data, list) and data and isinstance(data[0], list):
        return _rows_of(data[0], data[1:]) or data
    if not isinstance(data, dict):
        return data
    inner = [data[key] for key in ROWS if _objects(data.get(key))]
    inner = inner[:1] or [value for value in data.values() if _objects(value)]
    if len(inner) == 1:
        return inner[0]
    if rows := _rows_of(data.get("columns"), data.get("data")):
        return rows
    columns = list(data.values())
    if data and all(isinstance(v, list) for v in columns):
        longest = range(max(map(len, columns)))
        return [{k: v[i] if i < len(v) else None for k, v in data.items()} for i in longest]
    if data and all(isinstance(v, dict) for v in columns):
        keys = list(dict.fromkeys(key for column in columns for key in column))
        if keys and all(key.isdigit() for key in keys):  # pandas: {column: {row: cell}}
            return [{column: cells.get(key) for column, cells in data.items()} for key in keys]
        return [{"label": key, **row} for key, row in data.items()]  # {run: {column: cell}}
    return [data]


def _objects(value: Any) -> bool:
    """Whether it is a list of objects, such as the runs of an object that holds them."""
    return isinstance(value, list) and any(isinstance(row, dict) for row in value)


def _rows_of(names: Any, rows: Any) -> list[dict[str, Any]]:
    """Objects of rows that are lists, as in the tables of W&B and pandas; empty if they are not."""
    if not isinstance(names, list) or not isinstance(rows, list):
        return []
    if not all(isinstance(name, str) for name in names) or not all(
        isinstance(row, list) for row in rows
    ):
        return []
    return [dict(zip(names, row, strict=False)) for row in rows]


def add_rows(name: str, rows: Iterable[files.Row]) -> Table:
    """A table of the rows of a file called `name`."""
    table, header = Table([], []), dict[str, None]()
    for number, row, reason in rows:
        where = f"{name}:{number}"
        if row is None:
            table.left_out.append((where, f"is {reason}" if reason[:3] == "not" else reason))
            continue
        record = _flat(row)
        header.update(dict.fromkeys(record))
        table.records.append((where, record))
    table.header = list(header)
    return table


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
            cell = record.get(name)
            row = files.literal(cell) if isinstance(cell, str) and len(cell) <= 10**6 else None
            if isinstance(row, dict):
                found = _flat({name: row})
                table.header += [key for key in found if key not in table.header]
                record |= found
