"""The table that every fit starts from: one row a finished run, checked before anything is fitted."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.scaling.columns import COLUMNS, NUMERIC, SIZES, FitError, assign, number_hint

__all__ = ["COLUMNS", "NUMERIC", "FitError", "Points", "from_rows", "read_table"]


@dataclass(frozen=True)
class Points:
    """Runs as parallel arrays of shape (n,), float64.

    Attributes:
      params: N. tokens: D, training tokens seen. flops: C. loss: nats a token, held out.
      stderr: standard error of the loss, or None.
      unique_tokens: distinct training tokens, where some were repeated, or None.
      error: a downstream error rate, 0 to 1, or None.
      budget: name of the IsoFLOP budget of each row, or None (then equal C is clustered).
      labels: what each row is called (a cell's name, or `file:line`).
      run_ids: the run folder that each row was read from, or None.
      notes: what was computed rather than read.
    """

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    stderr: np.ndarray | None = None
    unique_tokens: np.ndarray | None = None
    error: np.ndarray | None = None
    budget: tuple[str, ...] | None = None
    labels: tuple[str, ...] = ()
    run_ids: tuple[str | None, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.loss)
        if not self.labels:
            object.__setattr__(self, "labels", tuple(f"row {i + 1}" for i in range(n)))
        for name in ("budget", "labels", "run_ids"):
            given = getattr(self, name)
            if given is not None and len(given) != n:
                raise FitError(f"{n} losses need {n} {name}, not {len(given)}")
        for name in NUMERIC:
            values = getattr(self, name)
            if values is None:
                continue
            values = np.asarray(values, np.float64)
            object.__setattr__(self, name, values)
            if values.shape != (n,):
                raise FitError(f"{name} has shape {values.shape}; {n} losses need ({n},)")
            bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
            if len(bad):
                raise FitError(
                    f"{self.labels[bad[0]]}: {name} is {values[bad[0]]:g}; it must be a positive "
                    "number (leave a diverged run out by deleting its row)"
                )

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, index: np.ndarray) -> Points:
        """The rows at `index` (integers or a mask of shape (n,))."""
        index = np.arange(len(self))[index]
        columns: dict[str, Any] = {
            name: None if (values := getattr(self, name)) is None else values[index]
            for name in NUMERIC
        }
        return replace(
            self,
            **columns,
            budget=None if self.budget is None else tuple(self.budget[i] for i in index),
            labels=tuple(self.labels[i] for i in index),
            run_ids=None if self.run_ids is None else tuple(self.run_ids[i] for i in index),
        )

    def rows(self) -> list[dict[str, Any]]:
        """The runs as JSON values: label, run_id (None where unknown), params, tokens, flops, loss."""
        ids = self.run_ids or (None,) * len(self)
        return [
            {"label": label, "run_id": run_id, "params": n, "tokens": d, "flops": c, "loss": loss}
            for label, run_id, n, d, c, loss in zip(
                self.labels, ids, self.params.tolist(), self.tokens.tolist(), self.flops.tolist(),
                self.loss.tolist(), strict=True,
            )
        ]  # fmt: skip


def from_rows(rows: Sequence[Mapping[str, Any]], where: str = "row") -> Points:
    """Points from records with keys of `COLUMNS`; any two of params, tokens, flops suffice.

    The third follows from C = 6 N D, and `notes` says so. `where` names a row in errors when it
    has no label, as `where i`.

    Raises:
      FitError: no rows, a missing column, or a value that is not a positive finite number.
    """
    if not rows:
        raise FitError("the table has no rows")
    labels = tuple(str(row.get("label") or f"{where} {i + 1}") for i, row in enumerate(rows))
    present = [name for name in NUMERIC if any(row.get(name) is not None for row in rows)]
    sizes = [name for name in SIZES if name in present]
    if len(sizes) < 2:
        raise FitError(
            f"of params, tokens and flops the table has {sizes or 'none'}; two of them are needed"
        )
    if "loss" not in present:
        raise FitError("the table has no loss column")
    arrays = {
        name: np.array(
            [_number(row.get(name), name, at) for row, at in zip(rows, labels, strict=True)]
        )
        for name in present
    }
    notes = []
    if "flops" not in arrays:
        arrays["flops"] = 6.0 * arrays["params"] * arrays["tokens"]
        notes.append("flops computed as 6 N D")
    elif "tokens" not in arrays:
        arrays["tokens"] = arrays["flops"] / (6.0 * arrays["params"])
        notes.append("tokens computed as C / (6 N)")
    elif "params" not in arrays:
        arrays["params"] = arrays["flops"] / (6.0 * arrays["tokens"])
        notes.append("params computed as C / (6 D)")
    else:
        ratio = arrays["flops"] / (6.0 * arrays["params"] * arrays["tokens"])
        notes.append(f"given flops are {ratio.min():.3g} to {ratio.max():.3g} times 6 N D")
    budget = None
    if any(row.get("budget") not in (None, "") for row in rows):
        budget = tuple(str(row.get("budget") or "") for row in rows)
        if "" in budget:
            raise FitError(f"{labels[budget.index('')]}: budget is empty; other rows have one")
    ids = tuple(None if (i := row.get("run_id")) in (None, "") else str(i) for row in rows)
    return Points(
        **arrays,
        budget=budget,
        labels=labels,
        run_ids=ids if any(ids) else None,
        notes=tuple(notes),
    )


def read_table(path: str | Path, columns: Mapping[str, str] | None = None) -> Points:
    """Points from a CSV (header line) or JSONL file; UTF-8, with or without a byte-order mark.

    Args:
      path: `.csv`, or `.jsonl` with one object a line.
      columns: what each of `COLUMNS` is called in the file, e.g. `{"params": "N", "loss": "L"}`.
        What is left out is recognised by its name (see `columns.ALIASES`), and `notes` says which
        column was taken for what.

    Raises:
      FitError: naming the file, the line and the column.
    """
    path, given = Path(path), dict(columns or {})
    records, header = _records(path)
    names, notes = assign(header, [record for _, record in records], given, path.name)
    rows = []
    for line, record in records:
        row = {role: record[name] for role, name in names.items() if name in record}
        row["label"] = row.get("label") or f"{path.name}:{line}"
        for role in NUMERIC:
            if row.get(role) is not None:
                at = f"{path.name}:{line}, column {names[role]!r}"
                row[role] = _number(row[role], role, at)
            elif role in names:
                raise FitError(f"{path.name}:{line} has no value in column {names[role]!r}")
        rows.append(row)
    points = from_rows(rows, where=path.name)
    return replace(points, notes=(*points.notes, *notes))


def _records(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    """[(line number, record)] and the column names in order of appearance."""
    if not path.is_file():
        raise FitError(f"{path} is not a file")
    if path.suffix not in (".csv", ".jsonl"):
        raise FitError(f"{path.name}: expected a .csv or .jsonl file")
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets write a byte-order mark
    except UnicodeDecodeError:
        raise FitError(f"{path.name} is not UTF-8 text: save it as CSV in UTF-8") from None
    if not text.strip():
        raise FitError(f"{path.name} is empty: a header line and a row for each run are needed")
    records, header = (_csv if path.suffix == ".csv" else _jsonl)(path.name, text)
    if not records:
        raise FitError(f"{path.name} has no rows")
    return records, header


def _csv(name: str, text: str) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [field.strip() for field in next(reader)]
    twice = sorted({field for field in header if header.count(field) > 1 and field})
    if twice:
        raise FitError(f"{name}: the header has {twice[0]!r} twice; rename one of them")
    if not set("".join(header)) - set("0123456789.eE+-, "):
        raise FitError(f"{name}: the first line, {text.splitlines()[0]!r}, is not a header")
    records = []
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(header):
            raise FitError(
                f"{name}:{reader.line_num} does not have {len(header)} fields as the header does, "
                f"but {len(fields)}"
            )
        records.append((reader.line_num, dict(zip(header, fields, strict=True))))
    return records, header


def _jsonl(name: str, text: str) -> tuple[list[tuple[int, dict[str, Any]]], list[str]]:
    records, header = [], []
    for line, content in enumerate(text.splitlines(), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as e:
            raise FitError(f"{name}:{line} is not JSON: {e}") from None
        if not isinstance(row, dict):
            raise FitError(f"{name}:{line} is not a JSON object")
        records.append((line, row))
        header += [key for key in row if key not in header]
    return records, header


def _number(value: Any, role: str, at: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise FitError(f"{at}: {role} is {value!r}, not a number{number_hint(value)}") from None
    if not math.isfinite(number) or number <= 0:
        raise FitError(
            f"{at}: {role} is {value}; it must be positive and finite "
            "(leave a diverged run out by deleting its row)"
        )
    return number


def outliers_of(points: Points, residuals: np.ndarray) -> tuple[str, ...]:
    """Labels of rows beyond 3 robust standard deviations (1.4826 median absolute deviations)."""
    off = np.abs(residuals - np.median(residuals))
    far = off > max(3 * 1.4826 * np.median(off), 1e-12)
    return tuple(points.labels[i] for i in np.flatnonzero(far))


def plain(value: Any) -> Any:
    """JSON values only: numpy numbers become Python's, and what is not finite becomes None."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
