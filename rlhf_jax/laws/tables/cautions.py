"""Notes on what a law of params and tokens ignores in a table of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_jax.laws.budgets import groups
from rlhf_jax.laws.tables.columns import ASIDE, Column, FitError, listed
from rlhf_jax.laws.tables.numbers import number_in

if TYPE_CHECKING:
    from rlhf_jax.laws.points import Points

SCATTER = 4.0  # of the compute of one budget's runs; ways of counting FLOPs differ by less
USUAL = (0.1, 1e4)  # tokens a parameter


def cautions(
    points: Points, records: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]
) -> list[str]:
    """Notes on repeated configurations, repeated data and rare ratios; `records` are the rows'."""
    notes = [*_repeated_data(points, records)]
    ratio = float(np.median(points.tokens / points.params))
    if not USUAL[0] <= ratio <= USUAL[1]:
        notes.append(
            f"the median run has {ratio:.3g} tokens a parameter: are the units of both right?"
        )
    return [*notes, *_same_size(points, records, columns)]


def _same_size(
    points: Points, records: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]
) -> list[str]:
    """Rows of equal params and tokens: other seeds, settings or data sets, which the law
    ignores."""
    sizes = np.stack([points.params, points.tokens], 1)
    _, of, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    of, several = of.reshape(-1), int((counts > 1).sum())
    if not several:
        return []
    low, high = np.full(len(counts), np.inf), np.zeros(len(counts))
    np.minimum.at(low, of, points.loss)
    np.maximum.at(high, of, points.loss)
    first = np.unique(of, return_index=True)[1][of]
    used = {column.name for column in columns.values()}
    if points.unique_tokens is not None:
        used |= {name for name in records[0] if "epoch" in name.casefold()}
    used |= {name for name in records[0] if "loss" in name.casefold() or ASIDE.search(name)}
    names = [name for name in records[0] if name and name not in used]
    differ = [
        name
        for name in names
        if any(str(records[i].get(name)) != str(records[k].get(name)) for i, k in enumerate(first))
    ]
    why = f"; they differ in {listed(differ, 8)}" if differ else ""
    if any("seed" not in name.casefold() for name in differ):
        why += ", which the law does not see: fit a table for each value"
    return [
        f"{several} pairs of params and tokens have several rows, of losses up to "
        f"{(high / low).max() - 1:.1%} apart, and every row counts{why}"
    ]


def _repeated_data(points: Points, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Runs that saw tokens more than once: to approaches 1 to 3 every token is new."""
    if points.unique_tokens is not None:
        epochs = points.tokens / points.unique_tokens
        of = "unique tokens"
        law = ", --law data_constrained does not"
    else:
        names = ("epochs", "epoch", "num_epochs")
        name = next((n for n in records[0] if n.casefold() in names), None)
        epochs = np.array([number_in(record.get(name or "")) for record in records], np.float64)
        law = ""
        of = f"column {name!r}"
    more = int((epochs > 1.01).sum())
    if not more:
        return []
    return [
        f"{more} of {len(points)} runs saw data more than once (up to {np.nanmax(epochs):.3g} "
        f"times, by {of}); approaches 1 to 3 take repeats for new tokens{law}"
    ]


def false_budget(points: Points, column: Column) -> str:
    """Why the column of budgets is not one of compute, or nothing.

    Raises:
      FitError: the caller named it.
    """
    names = points.budget or ()
    for group in groups(points):
        flops = points.flops[group]
        if flops.max() <= SCATTER * flops.min():
            continue
        why = (
            f"column {column.name!r} is no budget of compute: runs of {names[group[0]]!r} have "
            f"{flops.min():.3g} to {flops.max():.3g} FLOPs"
        )
        if column.given:
            raise FitError(f"{why}; leave it out, and runs are grouped by their FLOPs")
        return f"{why}; runs are grouped by their FLOPs"
    return ""
