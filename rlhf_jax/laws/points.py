"""The table that every fit starts from: a checked row for each finished run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.laws.tables.cautions import cautions, false_budget
from rlhf_jax.laws.tables.columns import COLUMNS, NUMERIC, SIZES, FitError, assign
from rlhf_jax.laws.tables.json_tables import unfold
from rlhf_jax.laws.tables.numbers import parse
from rlhf_jax.laws.tables.readers import read_file
from rlhf_jax.laws.tables.rows import check_third, choose_flops, drop, usable_rows, without_optional
from rlhf_jax.laws.tables.selection import impossible, left_out_notes, off_compute, repeated

ALL = (*NUMERIC, "budget", "label", "run_id")
__all__ = ["COLUMNS", "NUMERIC", "FitError", "Points", "from_rows", "read_table"]


@dataclass(frozen=True)
class Points:
    """Runs as parallel arrays of shape (n,), float64.

    Attributes:
      params: N. tokens: D, training tokens seen. flops: C. loss: nats a token, held out.
      stderr: standard error of the loss, or None.
      unique_tokens: distinct training tokens, where some were repeated, or None.
      error: a downstream error rate, 0 to 1, or None.
      budget: name of each row's IsoFLOP budget, or None (then rows of equal C are one budget).
      labels: names of the rows (cells, or `file:line`). run_ids: their run folders, or None.
      notes: about the table, such as which column was computed.
      left_out: (label, reason) of the table's rows that are left out.
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
    left_out: tuple[tuple[str, str], ...] = ()

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
        """The runs as JSON values: label, run_id (None: unknown), params, tokens, flops, loss."""
        columns = {"label": self.labels, "run_id": self.run_ids or (None,) * len(self)}
        for name in ("params", "tokens", "flops", "loss"):
            columns[name] = getattr(self, name).tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def from_rows(rows: Sequence[Mapping[str, Any]], where: str = "row") -> Points:
    """Points from records with keys of `COLUMNS`; any two of params, tokens, flops suffice.

    The third is computed by C = 6 N D, and `notes` says so. A row without a label is called
    `where i`.

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
    arrays: dict[str, Any] = {
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
    """Points from a table of runs: CSV by any separator, JSON lines, JSON or parquet (`readers`).

    Unusable rows are left out and named in `left_out` and `notes`: unfinished runs, missing or
    impossible numbers, copies, and earlier steps of the same run.

    Args:
      columns: the file's name for each of `COLUMNS`, e.g. `{"params": "N", "loss": "L"}`, or
        `NAME*FACTOR`. Others are recognised by their names (see `columns`), and `notes` says which.

    Raises:
      FitError: the file is not a table, has no usable row, or a column's units are impossible.
    """
    path, given = Path(path), dict(columns or {})
    table = read_file(path)
    unfold(table)
    records = [record for _, record in table.records]
    found, passed, notes = assign(table.header, records, given, path.name)
    for column in found.values():
        if column.name in table.twice:
            raise FitError(f"{path.name}: the header has {column.name!r} twice; rename one of them")
    total = len(records) + len(table.left_out)
    rows, left_out, said = usable_rows(table, found)
    kept = [row["record"] for row in rows]
    left_out = [*table.left_out, *left_out]
    drop(rows, kept, repeated(rows, kept, found) if rows else {}, left_out)
    if not rows:
        raise FitError(
            f"none of the {total} rows of {path.name} can be used: {', '.join(left_out[0])}"
        )
    try:
        said += choose_flops(rows, found, passed, path.name)
        said += without_optional(rows, found)
        drop(rows, kept, impossible(rows, found, path.name), left_out)
        if all(role in found for role in SIZES):
            drop(rows, kept, off_compute(rows, found, path.name), left_out)
        points = from_rows([{k: row[k] for k in ALL if k in row} for row in rows], where=path.name)
        check_third(points.params, points.tokens, found, path.name)
        if points.budget and (why := false_budget(points, found["budget"])):
            points, said = replace(points, budget=None), [*said, why]
    except FitError as e:
        raise FitError("\n".join([str(e), *left_out_notes(left_out, total)])) from None
    out_notes = left_out_notes(left_out, total)
    said += cautions(points, kept, found)
    return replace(
        points,
        notes=(*out_notes, *points.notes, *table.notes, *notes, *said),
        left_out=tuple(left_out),
    )


def _number(value: Any, role: str, at: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = parse(value)[0]
    except ValueError:
        raise FitError(f"{at}: {role} is {value!r}, not a number") from None
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
    """JSON values: numpy numbers as Python's, and numbers that are not finite as None."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
