"""Approach 2 of Hoffmann 2022: at equal compute, loss is a parabola in ln N; its minimum is N*.

A budget without a minimum inside its sizes is refused, and the result says why. The parabola is an
approximation: for alpha != beta it is biased, more so for a wider range of sizes. So runs further
than 4x from the minimum (`WIDE`) are left out and named, unless the caller asks for all runs.
Approach 3 is the cross-check.

Intervals are percentiles of a residual bootstrap: residuals over sqrt(1 - leverage), pooled over
the budgets that show a minimum, drawn with random signs. Resampling the 6 or 7 runs of a budget
often leaves 3 or 4 of them for 3 coefficients. In `experiments/interval_coverage.py` (noise of 0.2,
0.5 and 1%) 90% intervals of the exponent made that way cover the truth in 97, 97 and 96% of cases;
the residual bootstrap covers it in 92, 92 and 90%, with intervals that are 20 to 34% narrower.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhf_jax.evals.intervals import percentile_interval
from rlhf_jax.laws.budgets import groups
from rlhf_jax.laws.points import FitError, Points

MIN_SIZES = 4  # three sizes leave a parabola no residual; at four there is a warning
MIN_RESOLVED = 0.5  # share of resamples with a minimum inside the sizes
WIDE = 4.0  # runs further than this factor from N* bias the parabola: left out by default,
WINDOW_SIZES = 5  # unless fewer sizes than this would remain
DRAWN = 4_000_000  # resampled losses in memory at once


@dataclass(frozen=True)
class Budget:
    """One compute budget: its runs and, unless `refused`, the minimum of their parabola.

    Attributes:
      flops: geometric mean of the runs' C. points: the runs.
      n_star, d_star, loss_star: the minimum; None when refused.
      parabola: (c0, c1, c2) of loss = c0 + c1 u + c2 u^2, u = ln N - center, for the plot also of
        a refused fit; None below `MIN_SIZES`.
      outside: labels of the runs outside the window around N*.
      draws: bootstrap minima (resamples, 3) of (ln N*, ln D*, L*); NaN: no minimum.
    """

    flops: float
    points: Points
    n_star: float | None = None
    d_star: float | None = None
    loss_star: float | None = None
    parabola: tuple[float, float, float] | None = None
    center: float = 0.0
    refused: str | None = None
    warnings: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    draws: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))

    @property
    def resolved(self) -> float | None:
        """Share of bootstrap resamples with an interior minimum."""
        return float(np.mean(np.isfinite(self.draws[:, 0]))) if len(self.draws) else None

    def intervals(self, level: float = 0.95) -> dict[str, list[float]]:
        """Percentile intervals of n_star, d_star, loss_star over resamples with a minimum."""
        if self.refused or not len(self.draws):
            return {}
        n, d, loss = (percentile_interval(draws, level) for draws in self.draws.T)
        logs = {"n_star": n, "d_star": d}
        found = {name: [float(np.exp(end)) for end in ends] for name, ends in logs.items()}
        return {**found, "loss_star": loss}


@dataclass(frozen=True)
class PowerLaw:
    """y = k C^exponent with bootstrap draws (resamples, 2) of (ln k, exponent)."""

    k: float
    exponent: float
    draws: np.ndarray

    def interval(self, level: float = 0.95) -> list[float] | None:
        """Percentile interval of the exponent."""
        found = percentile_interval(self.draws[:, 1], level)
        return None if np.isnan(found[0]) else found

    def band(self, flops: np.ndarray, level: float = 0.95) -> np.ndarray:
        """(2, budgets): percentile band of y at each C; NaN without draws."""
        draws = self.draws[np.isfinite(self.draws[:, 1])]
        if not len(draws):
            return np.full((2, len(flops)), np.nan)
        lines = np.exp(draws[:, :1] + draws[:, 1:] * np.log(flops))
        return np.quantile(lines, [(1 - level) / 2, (1 + level) / 2], axis=0)


@dataclass(frozen=True)
class IsoflopFit:
    """Budgets by rising C, and the power laws N*(C) and D*(C) if two budgets show a minimum."""

    budgets: tuple[Budget, ...]
    n_law: PowerLaw | None
    d_law: PowerLaw | None
    refused: str | None
    warnings: tuple[str, ...] = ()


def fit_isoflop(
    points: Points,
    resamples: int = 1000,
    seed: int = 0,
    tolerance: float = 0.1,
    window: float = WIDE,
) -> IsoflopFit:
    """Fits a parabola per budget, then ln N* and ln D* against ln C; bootstraps the residuals. In
    each resample the exponents use the budgets that show a minimum.

    Args:
      points: runs; grouped by `points.budget`, or else by C (see `groups`).
      resamples: bootstrap resamples (0: no intervals). seed: of the resampling.
      window: runs further than this factor from their budget's N* are left out, while
        `WINDOW_SIZES` sizes remain; inf: every run counts, as in the papers.
    """
    if not len(points):
        raise FitError("approach 2 has no runs to fit")
    if not window > 1:
        raise FitError(f"window is {window}; it must be a factor above 1, or inf for every run")
    fits = [_Parabola(points.take(group), window) for group in groups(points, tolerance)]
    noise = [fit.noise for fit in fits if not fit.refused]
    pool = np.concatenate(noise) if noise else np.zeros(1)
    seeds = np.random.SeedSequence(seed).spawn(len(fits))
    budgets = [
        fit.budget(pool, resamples, np.random.default_rng(s))
        for fit, s in zip(fits, seeds, strict=True)
    ]
    budgets.sort(key=lambda budget: budget.flops)
    good = [budget for budget in budgets if not budget.refused]
    if len(good) < 2:
        reason = (
            f"{len(good)} of {len(budgets)} budgets show a minimum; an exponent needs at least 2"
        )
        return IsoflopFit(tuple(budgets), None, None, reason)
    warnings: tuple[str, ...] = ()
    if len(good) < 4:
        warnings = (f"the exponents rest on {len(good)} budgets; at least 4 are advised",)
    n_law, d_law = (_power_law(good, column) for column in (0, 1))
    return IsoflopFit(tuple(budgets), n_law, d_law, None, warnings)


class _Parabola:
    """One budget's weighted least squares of loss = c0 + c1 u + c2 u^2 within its window.

    Attributes:
      kept: mask of the runs in the window. u: their ln N - center.
      noise: their residuals, standardised by weight and divided by sqrt(1 - leverage).
    """

    def __init__(self, runs: Points, window: float = WIDE):
        self.runs, self.window = runs, window
        self.flops = float(np.exp(np.log(runs.flops).mean()))
        self.sizes = np.unique(runs.params)
        self.noise = np.zeros(0)
        self.refused: str | None = None
        if len(self.sizes) < MIN_SIZES:
            self.refused = f"{len(self.sizes)} model sizes; a minimum needs at least {MIN_SIZES}"
            return
        self.kept = np.ones(len(runs), bool)
        self._fit()
        for _ in range(20):  # a window that has not settled by then swings between two
            kept = self._within()
            if (kept == self.kept).all():
                break
            self.kept = kept
            self._fit()
        self.refused = _refusal(runs.take(self.kept), self.u, self.c)

    def _fit(self) -> None:
        x, weights = np.log(self.runs.params[self.kept]), np.ones(int(self.kept.sum()))
        if self.runs.stderr is not None:
            weights = self.runs.stderr[self.kept] ** -2.0
        self.center = float(x.mean())
        self.u, self.y, self.root = x - self.center, self.runs.loss[self.kept], np.sqrt(weights)
        X = np.stack([np.ones_like(self.u), self.u, self.u**2], 1)
        scaled = X * self.root[:, None]
        self.solve = np.linalg.pinv(scaled)  # (3, n): from scaled losses to coefficients
        self.c = self.solve @ (self.y * self.root)
        self.fitted = X @ self.c
        leverage = np.einsum("ni,in->n", scaled, self.solve)
        self.noise = (self.y - self.fitted) * self.root / np.sqrt(np.maximum(1 - leverage, 1e-3))

    def _within(self) -> np.ndarray:
        """Mask of the runs within `window` of the minimum, or of the `WINDOW_SIZES` nearest sizes
        if those are more."""
        vertex = -self.c[1] / (2 * self.c[2]) if self.c[2] > 0 else np.nan
        if self.u.min() < vertex < self.u.max():
            middle = self.center + vertex
        else:
            middle = np.log(self.sizes[int(np.argmin(_mean_losses(self.runs)))])
        nearest = np.sort(np.abs(np.log(self.sizes) - middle))
        reach = max(np.log(self.window), nearest[min(WINDOW_SIZES, len(nearest)) - 1])
        return np.abs(np.log(self.runs.params) - middle) <= reach + 1e-9

    def budget(self, pool: np.ndarray, resamples: int, rng: np.random.Generator) -> Budget:
        """The result, with minima of losses resampled by the residuals in `pool`."""
        if self.refused and not len(self.noise):
            return Budget(self.flops, self.runs, refused=self.refused)
        parabola = (float(self.c[0]), float(self.c[1]), float(self.c[2]))
        outside = tuple(self.runs.labels[i] for i in np.flatnonzero(~self.kept))
        shown: dict[str, Any] = {"parabola": parabola, "center": self.center, "outside": outside}
        if self.refused:
            return Budget(self.flops, self.runs, refused=self.refused, **shown)
        log_n, _, loss_star = self._minima(self.c[None])[0]
        drawn, block = [np.empty((0, 3))], max(1, DRAWN // len(self.u))
        for first in range(0, resamples, block):
            shape = (min(block, resamples - first), len(self.u))
            noise = rng.choice(pool, shape) * rng.choice([-1.0, 1.0], shape)
            drawn.append(self._minima((self.fitted * self.root + noise) @ self.solve.T))
        draws = np.concatenate(drawn)
        resolved = float(np.mean(np.isfinite(draws[:, 0]))) if resamples else 1.0
        if resolved < MIN_RESOLVED:
            reason = f"only {resolved:.0%} of bootstrap resamples show an interior minimum"
            return Budget(self.flops, self.runs, refused=reason, draws=draws, **shown)
        return Budget(
            flops=self.flops,
            points=self.runs,
            n_star=float(np.exp(log_n)),
            d_star=float(np.exp(_log_tokens(self.runs, log_n))),
            loss_star=float(loss_star),
            warnings=self._warnings(log_n, resolved),
            draws=draws,
            **shown,
        )

    def _minima(self, c: np.ndarray) -> np.ndarray:
        """(ln N*, ln D*, L*) of parabolas (R, 3); NaN: no minimum inside the window."""
        out = np.full((len(c), 3), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = -c[:, 1] / (2 * c[:, 2])
            inside = (c[:, 2] > 0) & (vertex > self.u.min()) & (vertex < self.u.max())
            out[inside, 0] = self.center + vertex[inside]
            out[inside, 1] = _log_tokens(self.runs, out[inside, 0])
            out[inside, 2] = (c[:, 0] - c[:, 1] ** 2 / (4 * c[:, 2]))[inside]
        return out

    def _warnings(self, log_n: float, resolved: float) -> tuple[str, ...]:
        warnings = []
        if len(self.sizes) == MIN_SIZES:
            warnings.append(
                f"{MIN_SIZES} sizes: one residual degree of freedom; 5 or more are advised"
            )
        if resolved < 0.9:
            warnings.append(f"{1 - resolved:.0%} of resamples have no interior minimum")
        x = self.u + self.center
        span = np.exp(max(log_n - x.min(), x.max() - log_n))
        if span > WIDE * 1.5:
            warnings.append(
                f"sizes reach {span:.1f}x from N*; beyond {WIDE:.0f}x a parabola is biased"
            )
        return tuple(warnings)


def _refusal(runs: Points, u: np.ndarray, c: np.ndarray) -> str | None:
    """Why this parabola shows no minimum, or None."""
    if not c[2] > 0:
        return "concave: the loss does not turn upwards within the sampled sizes"
    vertex = -c[1] / (2 * c[2])
    if not u.min() < vertex < u.max():
        side = "below the smallest" if vertex <= u.min() else "above the largest"
        return f"the minimum lies {side} sampled size: sample further on that side"
    sizes = np.unique(runs.params)
    best = int(np.argmin(_mean_losses(runs)))
    if best in (0, len(sizes) - 1):
        side = "smallest" if best == 0 else "largest"
        return f"the {side} sampled size has the lowest loss: the minimum is at the edge"
    return None


def _mean_losses(runs: Points) -> np.ndarray:
    """Mean loss of each distinct size, by rising size."""
    _, of = np.unique(runs.params, return_inverse=True)
    return np.bincount(of, runs.loss) / np.bincount(of)


def _log_tokens(runs: Points, log_n: np.ndarray | float) -> np.ndarray | float:
    """ln D at ln N, interpolated between the budget's runs (exact when C = 6 N D)."""
    sizes, first = np.unique(runs.params, return_index=True)
    return np.interp(log_n, np.log(sizes), np.log(runs.tokens[first]))


def _power_law(budgets: list[Budget], column: int) -> PowerLaw:
    """ln of N* (column 0) or D* (1) on ln C by least squares, and again on every bootstrap draw."""
    y = np.array([(b.n_star, b.d_star)[column] for b in budgets], np.float64)
    resamples = min(len(b.draws) for b in budgets)
    draws = np.array([b.draws[:resamples, column] for b in budgets]).reshape(len(budgets), -1).T
    return power_law(np.array([b.flops for b in budgets]), y, log_draws=draws)


def power_law(
    flops: np.ndarray,
    values: np.ndarray,
    stderr: np.ndarray | None = None,
    log_draws: np.ndarray | None = None,
) -> PowerLaw:
    """values = k C^exponent by weighted least squares in logs.

    Args:
      flops: C, (n,). values: N* or D* at each, (n,), positive.
      stderr: standard errors of ln values, (n,): weights are their inverse squares. Default: equal.
      log_draws: bootstrap draws of ln values, (resamples, n), NaN: missing; each with 2 values or
        more gives a draw of the law.

    Raises:
      FitError: fewer than 2 distinct C, or a number that is not positive and finite.
    """
    flops, values = np.asarray(flops, np.float64), np.asarray(values, np.float64)
    weights = np.ones_like(flops) if stderr is None else np.asarray(stderr, np.float64) ** -2.0
    for name, given in (("flops", flops), ("values", values), ("1/stderr^2", weights)):
        if given.shape != flops.shape or not (np.isfinite(given) & (given > 0)).all():
            raise FitError(f"a power law needs {name} that are positive, finite and as many as C")
    if len(np.unique(flops)) < 2:
        raise FitError("a power law needs at least 2 distinct C")
    x = np.log(flops)
    rows = np.log(values)[None]
    if log_draws is not None:
        rows = np.concatenate([rows, log_draws])
    found = lines(x, rows, weights)
    return PowerLaw(float(np.exp(found[0, 0])), float(found[0, 1]), found[1:])


def lines(x: np.ndarray, rows: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """(R, 2): intercept and slope on x (n,) of each of rows (R, n) by weighted least squares,
    ignoring NaN; the slope is NaN for fewer than 2 values."""
    w = np.isfinite(rows) * weights
    y = np.where(w > 0, rows, 0.0)
    total = np.maximum(w.sum(1), 1e-300)
    mean_x, mean_y = w @ x / total, (w * y).sum(1) / total
    dx = x - mean_x[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (w * dx * y).sum(1) / (w * dx * dx).sum(1)
    slope[(w > 0).sum(1) < 2] = np.nan
    return np.stack([mean_y - slope * mean_x, slope], 1)


def describe(budget: Budget) -> dict[str, Any]:
    """A budget as JSON values."""
    runs = budget.points
    keys = ("flops", "n_star", "d_star", "loss_star", "refused", "warnings", "resolved", "outside")
    return {
        **{key: getattr(budget, key) for key in (*keys, "parabola", "center")},
        "intervals": budget.intervals(),
        "points": [
            {
                "params": float(runs.params[i]),
                "tokens": float(runs.tokens[i]),
                "loss": float(runs.loss[i]),
                "stderr": None if runs.stderr is None else float(runs.stderr[i]),
                "label": runs.labels[i],
            }
            for i in np.argsort(runs.params, kind="stable")
        ],
    }
