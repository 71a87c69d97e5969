"""Losses along training, and losses at equal compute read off them.

A `Curve` is one size's loss as a function of compute: its training loss (smoothed), where the
learning rate does not decay, or its held-out losses at several horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_jax.laws.points import FitError, Points

WIDTH = 0.15  # of the smoothing, each way, in ln C


@dataclass(frozen=True)
class Curve:
    """flops (increasing), tokens, loss: (n,). params: N. label: of the run."""

    label: str
    params: float
    flops: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray


def smooth(flops: np.ndarray, loss: np.ndarray, count: int = 200, width: float = WIDTH):
    """(flops, loss) at `count` points of a log grid: a local line in ln C through the losses within
    `width`. A mean would lag behind a falling loss at the end of a curve; a line does not."""
    x = np.log(flops)
    at = np.linspace(x[0] + width, x[-1], count)
    first, last = np.searchsorted(x, at - width), np.searchsorted(x, at + width, side="right")
    sums = {
        (i, j): np.concatenate([[0.0], np.cumsum(x**i * loss**j)])
        for i, j in ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1))
    }
    n, sx, sxx, sy, sxy = (s[last] - s[first] for s in sums.values())
    spread = np.maximum(n * sxx - sx * sx, 1e-300)
    slope = (n * sxy - sx * sy) / spread
    keep = n >= 8  # fewer losses do not make a line
    return np.exp(at[keep]), ((sy + slope * (n * at - sx)) / np.maximum(n, 1))[keep]


def joined(points: Points) -> list[Curve]:
    """One curve a size through its final losses, in order of compute; seeds at a horizon are
    averaged."""
    curves = []
    for size in np.unique(points.params):
        runs = points.take(points.params == size)
        order = np.argsort(runs.flops, kind="stable")
        horizon = np.cumsum(np.diff(np.log(runs.flops[order]), prepend=-np.inf) > 0.02) - 1
        mean = [
            np.array([v[order][horizon == h].mean() for h in range(horizon.max() + 1)])
            for v in (runs.flops, runs.tokens, runs.loss)
        ]
        curves.append(Curve(f"N={size:.6g}", float(size), *mean))
    return curves


def at_equal_compute(curves: Sequence[Curve], budgets: int = 6, sizes: int = 5) -> Points:
    """Losses of every curve at the same compute, interpolated in ln C, as a table for approach 2.

    Args:
      budgets: how many, evenly spaced in ln C over where at least `sizes` curves reach.

    Raises:
      FitError: no compute is reached by that many curves.
    """
    ends = np.array([[np.log(c.flops[0]), np.log(c.flops[-1])] for c in curves if len(c.flops) > 1])
    grid = np.linspace(ends.min(), ends.max(), 400) if len(ends) else np.empty(0)
    covered = [x for x in grid if np.sum((ends[:, 0] <= x) & (x <= ends[:, 1])) >= sizes]
    if len(covered) < 2:
        raise FitError(f"no two budgets are reached by {sizes} of the {len(curves)} curves")
    rows = []
    for x in np.linspace(covered[0], covered[-1], budgets):
        for curve in curves:
            c = np.log(curve.flops)
            if len(c) > 1 and c[0] <= x <= c[-1]:
                loss, tokens = np.interp(x, c, curve.loss), np.interp(x, c, np.log(curve.tokens))
                rows.append((curve.params, np.exp(tokens), np.exp(x), loss, curve.label))
    params, tokens, flops, loss, labels = zip(*rows, strict=True)
    return Points(
        np.array(params),
        np.array(tokens),
        np.array(flops),
        np.array(loss),
        budget=tuple(f"{c:.4g}" for c in flops),
        labels=labels,
        notes=("losses at equal compute are interpolated along each size's curve",),
    )
