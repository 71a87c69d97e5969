"""Approach 1 of Hoffmann 2022: N*(C) from the lower envelope of training curves.

Each run's loss is interpolated on a log grid of 1,500 compute values. The holder of a value is the
run with the lowest loss there; ln N* and ln D* of the holders are regressed on ln C. Only losses
near the end of a run's learning-rate schedule are used. Values held by the smallest or the largest
size that reaches them are dropped: the optimum may lie beyond the trained sizes.

A table of final losses needs no curves: the final loss of each size is interpolated between its
horizons (training lengths), so every value is the end of a schedule.
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
MIN_HOLDERS = 3  # sizes on the envelope
MIN_HORIZONS = 3  # of each size, for tables without curves
MIN_DECADES = 0.5  # of compute that the envelope covers
SAME_SIZE = 0.02  # sizes that differ by less than this share count as one
EVERY = 5  # resamples use every fifth value of the grid
BLOCK = 100  # resamples in memory at once


@dataclass(frozen=True)
class EnvelopeFit:
    """The envelope on its grid, (m,) each, and the power laws N*(C) and D*(C) unless refused.

    Attributes:
      flops: the grid. holder: index into `labels`; -1: no run has a usable loss there.
      params, tokens, loss: of the holder; NaN without one.
      kept: whether the value enters the regression.
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
      curves: one per run, smoothed, because noise would bias the minima.
      valid_from: losses before this share of a run's compute are not used: in the middle of a
        decaying schedule the loss is higher than at the end of a shorter one. 0: constant rate.
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
        return np.where(counts[:, :, None] > 0, table[:, part], np.nan)

    log_n = np.log([curve.params for curve in curves])
    labels = tuple(curve.label for curve in curves)
    return _fit(log_c, log_n, tokens, labels, draw, len(curves), resamples, seed, ())


def fit_end_points(points: Points, resamples: int = 1000, seed: int = 0) -> EnvelopeFit:
    """Fits N* and D* to the envelope of final losses.

    ln loss of each size is interpolated in ln C between its horizons, monotonically (PCHIP) and
    without extrapolation; seeds of one size and horizon are averaged. Sizes with fewer than
    `MIN_HORIZONS` horizons are left out.

    Args:
      points: at least one run. resamples: bootstrap resamples over runs. seed: of the resampling.
    """
    if not len(points):
        raise FitError("approach 1 has no runs to fit")
    log_n, log_c, log_loss = (np.log(v) for v in (points.params, points.flops, points.loss))
    groups = _sizes(points)
    sizes = [horizons for horizons in groups if len(horizons) >= MIN_HORIZONS]
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
    centers = np.array([log_n[np.concatenate(horizons)].mean() for horizons in sizes])
    tokens = np.full((len(sizes), len(grid)), np.nan)
    for i, runs in enumerate(map(np.concatenate, sizes)):  # by rising compute
        x = log_c[runs]
        inside = (grid >= x[0] - 1e-9) & (grid <= x[-1] + 1e-9)
        tokens[i, inside] = np.interp(grid[inside], x, np.log(points.tokens[runs]))

    def draw(counts: np.ndarray, part: slice) -> np.ndarray:
        found = np.full((len(counts), len(sizes), len(grid[part])), np.nan)
        for size, horizons in enumerate(sizes):
            at = np.array([log_c[runs].mean() for runs in horizons])
            n = np.stack([counts[:, runs].sum(1) for runs in horizons])
            total = np.stack([counts[:, runs] @ log_loss[runs] for runs in horizons])
            # Resamples that drew the same horizons are interpolated in one call.
            patterns, of = np.unique(n > 0, axis=1, return_inverse=True)
            for i, there in enumerate(patterns.T):
                rows = np.flatnonzero(of == i)
                y = total[np.ix_(there, rows)] / n[np.ix_(there, rows)]
                found[rows, size] = monotone(at[there], y, grid[part]).T
        return found

    labels = tuple(f"{np.exp(center):.4g} parameters" for center in centers)
    left = len(groups) - len(sizes)
    warnings = (f"{left} sizes with under {MIN_HORIZONS} horizons are left out",) if left else ()
    return _fit(grid, centers, tokens, labels, draw, len(points), resamples, seed, warnings)


def _sizes(points: Points) -> list[list[np.ndarray]]:
    """For each size, rising, the indices of its runs at each horizon, rising."""
    log_c = np.log(points.flops)
    groups = _clusters(np.log(points.params), SAME_SIZE)
    return [[group[k] for k in _clusters(log_c[group], 1e-3)] for group in groups]


def short_sizes(points: Points) -> list[str]:
    """Labels of the runs whose size has fewer than `MIN_HORIZONS`."""
    short = [horizons for horizons in _sizes(points) if len(horizons) < MIN_HORIZONS]
    return [points.labels[i] for horizons in short for i in sorted(np.concatenate(horizons))]


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
    """`draw` maps how often each run is drawn, (R, runs), to ln losses at a part of the grid,
    (R, S, m)."""
    (losses,) = draw(np.ones((1, runs), np.int64), slice(None))
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
            who, use = _holders(draw(counts, part), log_n)
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
    """(holder, kept), (R, m) each, of losses (R, S, m); NaN: not usable."""
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


def monotone(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Monotone cubics (PCHIP) through (x, y) at `at`; NaN outside x, and for fewer than 2 points.

    x (k,) rises; y is (k,) or (k, R); the result (m,) or (m, R).
    """
    from scipy.interpolate import PchipInterpolator  # its import takes 0.4 s

    out = np.full((len(at), *y.shape[1:]), np.nan)
    if len(x) > 1:
        inside = (at >= x[0] - 1e-9) & (at <= x[-1] + 1e-9)
        out[inside] = PchipInterpolator(x, y)(np.clip(at[inside], x[0], x[-1]))
    return out


def _clusters(values: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """Indices of values (n,) in groups split at gaps above `tolerance`; all in rising order."""
    order = np.argsort(values, kind="stable")
    if not len(order):
        return []
    return np.split(order, np.flatnonzero(np.diff(values[order]) > tolerance) + 1)


def _grid(flops: np.ndarray) -> np.ndarray:
    """ln C, (GRID,), from the least to the most compute."""
    return np.linspace(np.log(flops.min()), np.log(flops.max()), GRID)
