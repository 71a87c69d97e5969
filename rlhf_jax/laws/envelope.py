"""Approach 1 of Hoffmann 2022: the lower envelope of training curves; its holders are N*(C).

Every run's loss is interpolated on a log grid of 1,500 compute values, the run of least loss at
each value holds it, and ln N* and ln D* of the holders are regressed on ln C. A loss counts only
near the end of its run's own schedule. A value held by the smallest or the largest size that
reaches it is dropped: the optimum may lie beyond the sizes that were trained.

Tables of final losses need no curves: between the horizons of one size the final loss is
interpolated, so that every value is the end of a schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.evals.intervals import resampled_counts
from rlhf_jax.laws.curves import Curve
from rlhf_jax.laws.isoflop import PowerLaw, lines
from rlhf_jax.laws.points import FitError, Points

GRID = 1500  # compute values (Hoffmann 2022, section 3.1)
MIN_HOLDERS = 3  # sizes that hold a part of the envelope
MIN_HORIZONS = 3  # final losses of a size, for tables without curves
MIN_DECADES = 0.5  # of compute that the envelope covers
SAME_SIZE = 0.02  # sizes nearer than this share are one size
EVERY = 5  # resamples look at every fifth value of the grid
BLOCK = 100  # resamples in memory at once


@dataclass(frozen=True)
class EnvelopeFit:
    """The envelope on its grid, (m,) each, and the power laws N*(C) and D*(C) unless refused.

    Attributes:
      flops: the grid. holder: index into `labels`, -1 where no run has a loss that counts.
      params, tokens, loss: of the holder; NaN where there is none.
      kept: whether the point enters the regression.
    """

    flops: np.ndarray
    holder: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    kept: np.ndarray
    labels: tuple[str, ...]
    n_law: PowerLaw | None
    d_law: PowerLaw | None
    refused: str | None
    warnings: tuple[str, ...] = ()

    def describe(self, most: int = 150) -> list[dict[str, Any]]:
        """At most `most` points of the envelope as JSON values, holders by label."""
        held = np.flatnonzero(self.holder >= 0)
        return [
            {
                "flops": float(self.flops[i]),
                "params": float(self.params[i]),
                "tokens": float(self.tokens[i]),
                "loss": float(self.loss[i]),
                "label": self.labels[self.holder[i]],
                "kept": bool(self.kept[i]),
            }
            for i in held[:: max(1, -(-len(held) // most))]
        ]


def fit_envelope(
    curves: Sequence[Curve], valid_from: float = 0.9, resamples: int = 1000, seed: int = 0
) -> EnvelopeFit:
    """Fits N* and D* to the envelope of training curves; bootstraps over runs.

    Args:
      curves: one a run, smoothed: the envelope takes minima, which noise would bias.
      valid_from: share of a run's compute from which its loss counts: a loss inside a decaying
        schedule is above what a schedule ending there would reach. 0 for a constant rate.
      resamples: bootstrap resamples (0: no intervals). seed: of the resampling.

    Raises:
      FitError: no curves, or `valid_from` is not a share below 1.
    """
    if not curves or not 0 <= valid_from < 1:
        raise FitError(
            f"approach 1 got {len(curves)} curves and valid_from {valid_from}; it needs "
            "at least one curve and a share from 0 to below 1"
        )
    for curve in curves:
        _check(curve)
    parts = [curve.flops >= valid_from * curve.flops[-1] for curve in curves]
    log_c = _grid(np.concatenate([c.flops[part] for c, part in zip(curves, parts, strict=True)]))
    table, tokens = (np.full((len(curves), len(log_c)), np.nan) for _ in range(2))
    for i, (curve, part) in enumerate(zip(curves, parts, strict=True)):
        x = np.log(curve.flops[part])
        inside = (log_c >= x[0] - 1e-9) & (log_c <= x[-1] + 1e-9)
        table[i, inside] = np.interp(log_c[inside], x, np.log(curve.loss[part]))
        tokens[i, inside] = np.interp(log_c[inside], x, np.log(curve.tokens[part]))

    def draw(counts: np.ndarray, part: slice) -> np.ndarray:
        return np.where(counts[:, None] > 0, table[:, part], np.nan)

    log_n = np.log([curve.params for curve in curves])
    labels = tuple(curve.label for curve in curves)
    return _fit(log_c, log_n, tokens, labels, draw, len(curves), resamples, seed, ())


def fit_end_points(points: Points, resamples: int = 1000, seed: int = 0) -> EnvelopeFit:
    """The same from final losses alone: each size's are interpolated between its horizons.

    The interpolation is of ln loss in ln C, monotone (PCHIP) and without extrapolation; runs of one
    size and horizon (seeds) are averaged. Sizes with fewer than `MIN_HORIZONS` are left out.

    Args:
      points: at least one run. resamples: bootstrap resamples over runs. seed: of the resampling.
    """
    if not len(points):
        raise FitError("approach 1 has no runs to fit")
    log_n, log_c = np.log(points.params), np.log(points.flops)
    groups = _clusters(log_n, SAME_SIZE)
    horizons = [len(_clusters(log_c[group], 1e-3)) for group in groups]
    sizes = [g for g, count in zip(groups, horizons, strict=True) if count >= MIN_HORIZONS]
    grid = _grid(points.flops)
    if len(sizes) < MIN_HOLDERS:
        reason = (
            f"{len(sizes)} of {len(groups)} sizes were trained to {MIN_HORIZONS} or more horizons; "
            f"an envelope of final losses needs at least {MIN_HOLDERS} such sizes"
        )
        nobody, nothing = np.full(len(grid), -1), np.full(len(grid), np.nan)
        return EnvelopeFit(
            np.exp(grid), nobody, nothing, nothing, nothing, nobody > 0, (), None, None, reason
        )
    centers = np.array([log_n[group].mean() for group in sizes])
    ends = [(log_c[group].min() - 1e-9, log_c[group].max() + 1e-9) for group in sizes]
    tokens = np.full((len(sizes), len(grid)), np.nan)
    for i, group in enumerate(sizes):
        inside = (grid >= ends[i][0]) & (grid <= ends[i][1])
        order = group[np.argsort(log_c[group], kind="stable")]
        tokens[i, inside] = np.interp(grid[inside], log_c[order], np.log(points.tokens[order]))
    log_loss = np.log(points.loss)

    knots = [_horizons(log_c[group]) for group in sizes]

    def draw(counts: np.ndarray, part: slice) -> np.ndarray:
        rows = []
        for group, (at, of) in zip(sizes, knots, strict=True):
            n = np.bincount(of, counts[group])
            total = np.bincount(of, counts[group] * log_loss[group])
            rows.append(monotone(at[n > 0], total[n > 0] / n[n > 0], grid[part]))
        return np.stack(rows)

    labels = tuple(f"{np.exp(center):.4g} parameters" for center in centers)
    left = len(groups) - len(sizes)
    warnings = (f"{left} sizes with under {MIN_HORIZONS} horizons are left out",) if left else ()
    return _fit(grid, centers, tokens, labels, draw, len(points), resamples, seed, warnings)


def short_sizes(points: Points) -> list[str]:
    """Labels of the runs whose size has fewer than `MIN_HORIZONS`."""
    log_n, log_c = np.log(points.params), np.log(points.flops)
    return [
        points.labels[i]
        for group in _clusters(log_n, SAME_SIZE)
        if len(_clusters(log_c[group], 1e-3)) < MIN_HORIZONS
        for i in group
    ]


def _fit(
    log_c: np.ndarray,
    log_n: np.ndarray,
    log_tokens: np.ndarray,
    labels: tuple[str, ...],
    draw: Callable[[np.ndarray, slice], np.ndarray],
    runs: int,
    resamples: int,
    seed: int,
    warnings: tuple[str, ...],
) -> EnvelopeFit:
    """`draw` maps counts of the runs (runs,) to ln losses of the curves at a part of the grid (S,
    m)."""
    losses = draw(np.ones(runs, np.int64), slice(None))
    holder, kept = (part[0] for part in _holders(losses[None], log_n))
    held = holder >= 0
    at = np.arange(len(log_c))
    params, tokens, loss = (
        np.where(held, np.exp(v), np.nan)
        for v in (log_n[holder], log_tokens[holder, at], losses[holder, at])
    )
    refused = _refusal(log_c, log_n, holder, kept)
    n_law = d_law = None
    if not refused:
        rng = np.random.default_rng(seed)
        drawn, part = np.full((2, resamples, 2), np.nan), slice(None, None, EVERY)
        for i in range(0, resamples, BLOCK):
            counts = resampled_counts(runs, min(BLOCK, resamples - i), rng)
            who, use = _holders(np.stack([draw(c, part) for c in counts]), log_n)
            drawn[:, i : i + BLOCK] = _lines(log_c[part], log_n, log_tokens[:, part], who, use)
        whole = _lines(log_c, log_n, log_tokens, holder[None], kept[None])[:, 0]
        n_law, d_law = (
            PowerLaw(float(np.exp(line[0])), float(line[1]), d)
            for line, d in zip(whole, drawn, strict=True)
        )
        lost = float(np.mean(np.isnan(drawn[0, :, 1]))) if resamples else 0.0
        if lost > 0.1:
            warnings = (*warnings, f"{lost:.0%} of resamples have under {MIN_HOLDERS} holders")
    return EnvelopeFit(
        np.exp(log_c), holder, params, tokens, loss, kept, labels, n_law, d_law, refused, warnings
    )


def _check(curve: Curve) -> None:
    for name in ("flops", "tokens", "loss"):
        values = np.asarray(getattr(curve, name), np.float64)
        if values.shape != (len(curve.flops),) or not len(values):
            raise FitError(
                f"{curve.label}: {name} has shape {values.shape}; flops, tokens and loss "
                "must be of one shape (n,), n >= 1"
            )
        if not (np.isfinite(values) & (values > 0)).all():
            raise FitError(f"{curve.label}: {name} must be positive and finite throughout")
    if not curve.params > 0 or (np.diff(curve.flops) <= 0).any():
        raise FitError(f"{curve.label}: params must be positive, and flops must rise")


def _holders(losses: np.ndarray, log_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(holder, kept), (R, m) each, of losses (R, S, m) with NaN where a curve does not count."""
    there = np.isfinite(losses)
    holder = np.argmin(np.where(there, losses, np.inf), 1)
    size = log_n[holder]
    n = log_n[None, :, None]
    smallest = np.where(there, n, np.inf).min(1) + SAME_SIZE
    largest = np.where(there, n, -np.inf).max(1) - SAME_SIZE
    return np.where(there.any(1), holder, -1), (size > smallest) & (size < largest)


def _lines(log_c, log_n, log_tokens, holder, kept) -> np.ndarray:
    """(intercept, slope) of ln N* and of ln D* on ln C over the kept points, (2, R, 2)."""
    sizes = np.sort(np.where(kept, holder, -1), 1)
    few = (np.diff(sizes, axis=1) > 0).sum(1) + (sizes[:, 0] >= 0) < MIN_HOLDERS
    found = np.stack(
        [
            lines(log_c, np.where(kept, y, np.nan))
            for y in (log_n[holder], log_tokens[holder, np.arange(len(log_c))])
        ]
    )
    found[:, few] = np.nan
    return found


def _refusal(log_c: np.ndarray, log_n: np.ndarray, holder: np.ndarray, kept: np.ndarray):
    """Why this envelope gives no exponent, or None."""
    holders = len(_clusters(np.unique(log_n[holder[kept]]), SAME_SIZE)) if kept.any() else 0
    if holders < MIN_HOLDERS:
        return (
            f"{holders} sizes hold a part of the envelope, the smallest and largest left out; an "
            f"exponent needs at least {MIN_HOLDERS}: train sizes between and beyond these"
        )
    decades = float(np.ptp(log_c[kept]) / np.log(10))
    if decades < MIN_DECADES:
        return (
            f"the envelope covers {decades:.2f} decades of compute; at least {MIN_DECADES} are "
            "needed"
        )
    return None


def _horizons(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct horizons (k,) among x (n,), rising, and which of them each run has, (n,)."""
    groups, of = _clusters(x, 1e-3), np.empty(len(x), np.int64)
    for k, group in enumerate(groups):
        of[group] = k
    return np.array([x[group].mean() for group in groups]), of


def monotone(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """y at `at` by a cubic through (x, y) that is monotone wherever y is (PCHIP); NaN outside x.

    x (k,) rises; under 2 points all is NaN.
    """
    from scipy.interpolate import PchipInterpolator  # 0.4 s, which other fits need not spend

    out = np.full(len(at), np.nan)
    if len(x) > 1:
        inside = (at >= x[0] - 1e-9) & (at <= x[-1] + 1e-9)
        out[inside] = PchipInterpolator(x, y)(np.clip(at[inside], x[0], x[-1]))
    return out


def _clusters(values: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """Indices of values (n,) that lie within `tolerance` of a neighbour, in rising order."""
    order = np.argsort(values, kind="stable")
    if not len(order):
        return []
    return np.split(order, np.flatnonzero(np.diff(values[order]) > tolerance) + 1)


def _grid(flops: np.ndarray) -> np.ndarray:
    """ln C, (GRID,), over the compute that counts."""
    return np.linspace(np.log(flops.min()), np.log(flops.max()), GRID)
