"""Which runs of a table share a compute budget: by its name, or by gaps between their FLOPs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlhf_jax.laws.tables.numbers import number_in

if TYPE_CHECKING:
    from rlhf_jax.laws.points import Points


def groups(points: Points, tolerance: float = 0.1) -> list[np.ndarray]:
    """Row indices of each budget, by the names of `points.budget` or by gaps in ln C.

    Names that are all numbers are compared as numbers: 3e17 is 3e+17, and 2.98e17 is near it.
    """
    if points.budget is None:
        return by_gaps(points.flops, tolerance)
    numbers = [_budget_number(name) for name in points.budget]
    if all(numbers):
        return by_gaps(np.array(numbers), tolerance)
    names = np.array(
        [
            f"{number:g}" if number else " ".join(name.split()).casefold()
            for name, number in zip(points.budget, numbers, strict=True)
        ]
    )
    return [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]


def _budget_number(name: str) -> float:
    """A positive finite number, or 0."""
    number = number_in(name) or 0.0
    return number if 0 < number < np.inf else 0.0


def by_gaps(flops: np.ndarray, tolerance: float = 0.1) -> list[np.ndarray]:
    """Indices of values that no gap of a factor 1 + `tolerance` separates, rising.

    Where the largest gap is over four times that, up to 1.25 counts as scatter. Values without gaps
    (over a factor of 1.5) are cut at factors of 1 + `tolerance`.
    """
    order = np.argsort(flops, kind="stable")
    x = np.log(flops[order])
    gaps = np.diff(x)
    least = np.log1p(tolerance)
    if len(gaps):
        least = float(np.clip(gaps.max() / 4, least, max(least, np.log(1.25))))
    found = []
    for group in np.split(np.arange(len(x)), np.flatnonzero(gaps > least + 1e-9) + 1):
        if x[group[-1]] - x[group[0]] <= np.log(1.5):
            found.append(order[group])
            continue
        first = group[0]
        cuts = [first]
        for i in group:
            if x[i] > x[first] + np.log1p(tolerance):
                first = i
                cuts.append(i)
        found += [order[part] for part in np.split(group, np.array(cuts[1:], int) - group[0])]
    return found
