"""Approach 2 of Hoffmann 2022: at equal compute, loss is a parabola in ln N; its minimum is N*.

A budget whose minimum the runs do not show is refused in words, and the refusal is part of the
result: no optimum is copied from a neighbour or read off the end of the grid. The parabola itself is
an approximation: it is biased when alpha != beta and when sizes span more than about 4x each way of
the minimum, so cross-check it with approach 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhf_jax.scaling.points import FitError, Points

MIN_SIZES = (
    4  # below: refused (three sizes leave a parabola no residual); at 4: fitted, with a warning
)
MIN_RESOLVED = 0.5  # share of resamples that must show an interior minimum too
WIDE = 4.0  # sizes further than this factor from N* bias the parabola


@dataclass(frozen=True)
class Budget:
    """One compute budget: its runs and, unless `refused`, the minimum of their parabola.

    Attributes:
      flops: geometric mean of the runs' C. points: the runs.
      n_star, d_star, loss_star: the minimum; None when refused.
      parabola: (c0, c1, c2) of loss = c0 + c1 u + c2 u^2, u = ln N - center; also of a refused
        concave or one-sided fit, so that it can be drawn. None below `MIN_SIZES`.
      draws: bootstrap minima (resamples, 3) of (ln N*, ln D*, L*); NaN where a resample has none.
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
    draws: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))

    @property
    def resolved(self) -> float | None:
        """Share of bootstrap resamples with an interior minimum."""
        return float(np.mean(np.isfinite(self.draws[:, 0]))) if len(self.draws) else None

    def intervals(self, level: float = 0.95) -> dict[str, list[float]]:
        """Percentile intervals of n_star, d_star, loss_star over the resamples that have one."""
        if self.refused or not len(self.draws):
            return {}
        low, high = np.nanquantile(self.draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return {
            "n_star": [float(np.exp(low[0])), float(np.exp(high[0]))],
            "d_star": [float(np.exp(low[1])), float(np.exp(high[1]))],
            "loss_star": [float(low[2]), float(high[2])],
        }


@dataclass(frozen=True)
class PowerLaw:
    """y = k C^exponent with bootstrap draws (resamples, 2) of (ln k, exponent)."""

    k: float
    exponent: float
    draws: np.ndarray

    def interval(self, level: float = 0.95) -> list[float] | None:
        """Percentile interval of the exponent."""
        finite = self.draws[np.isfinite(self.draws[:, 1]), 1]
        if not len(finite):
            return None
        return [float(q) for q in np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])]

    def band(self, flops: np.ndarray, level: float = 0.95) -> np.ndarray:
        """(2, budgets): percentile band of y at each C; NaN without draws."""
        draws = self.draws[np.isfinite(self.draws[:, 1])]
        if not len(draws):
            return np.full((2, len(flops)), np.nan)
        lines = np.exp(draws[:, :1] + draws[:, 1:] * np.log(flops))
        return np.quantile(lines, [(1 - level) / 2, (1 + level) / 2], axis=0)


@dataclass(frozen=True)
class IsoflopFit:
    """Budgets in order of C, and the power laws N*(C) and D*(C) if two of them resolved."""

    budgets: tuple[Budget, ...]
    n_law: PowerLaw | None
    d_law: PowerLaw | None
    refused: str | None
    warnings: tuple[str, ...] = ()


def fit_isoflop(
    points: Points, resamples: int = 1000, seed: int = 0, tolerance: float = 0.1
) -> IsoflopFit:
    """Fits a parabola per budget, then ln N* and ln D* against ln C; bootstraps over runs.

    Runs are resampled within their budget; the exponents use whichever budgets resolve in a draw.

    Args:
      points: runs; grouped by `points.budget`, or else by C within a factor 1 + `tolerance`.
      resamples: bootstrap resamples (0: no intervals). seed: of the resampling.
    """
    if not len(points):
        raise FitError("approach 2 has no runs to fit")
    groups = _groups(points, tolerance)
    seeds = np.random.SeedSequence(seed).spawn(len(groups))
    budgets = [
        _fit_budget(points.take(group), resamples, np.random.default_rng(s))
        for group, s in zip(groups, seeds, strict=True)
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


def _groups(points: Points, tolerance: float) -> list[np.ndarray]:
    """Row indices of each budget."""
    if points.budget is not None:
        names = np.array(points.budget)
        return [np.flatnonzero(names == name) for name in dict.fromkeys(points.budget)]
    order = np.argsort(points.flops, kind="stable")
    groups, first = [[order[0]]], points.flops[order[0]]
    for i in order[1:]:
        if points.flops[i] > first * (1 + tolerance):
            groups.append([])
            first = points.flops[i]
        groups[-1].append(i)
    return [np.array(group) for group in groups]


def _fit_budget(runs: Points, resamples: int, rng: np.random.Generator) -> Budget:
    flops = float(np.exp(np.log(runs.flops).mean()))
    sizes = np.unique(runs.params)
    if len(sizes) < MIN_SIZES:
        return Budget(
            flops, runs, refused=f"{len(sizes)} model sizes; a minimum needs at least {MIN_SIZES}"
        )
    x = np.log(runs.params)
    center = float(x.mean())
    u, y = x - center, runs.loss
    w = np.ones_like(y) if runs.stderr is None else runs.stderr**-2.0
    c = _parabolas(u, y, w[None])[0]
    parabola = (float(c[0]), float(c[1]), float(c[2]))
    refused = _refusal(runs, u, c)
    if refused:
        return Budget(flops, runs, parabola=parabola, center=center, refused=refused)
    log_n, loss_star = center - c[1] / (2 * c[2]), c[0] - c[1] ** 2 / (4 * c[2])
    draws = _bootstrap(runs, u, y, w, center, resamples, rng)
    resolved = float(np.mean(np.isfinite(draws[:, 0]))) if resamples else 1.0
    if resolved < MIN_RESOLVED:
        reason = f"only {resolved:.0%} of bootstrap resamples show an interior minimum"
        return Budget(flops, runs, parabola=parabola, center=center, refused=reason, draws=draws)
    warnings = []
    if len(sizes) == MIN_SIZES:
        warnings.append(f"{MIN_SIZES} sizes: one residual degree of freedom; 5 or more are advised")
    if resolved < 0.9:
        warnings.append(f"{1 - resolved:.0%} of resamples have no interior minimum")
    span = np.exp(max(log_n - x.min(), x.max() - log_n))
    if span > WIDE * 1.5:
        warnings.append(f"sizes reach {span:.1f}x from N*; beyond {WIDE:.0f}x a parabola is biased")
    return Budget(
        flops=flops, points=runs, n_star=float(np.exp(log_n)),
        d_star=float(np.exp(_log_tokens(runs, log_n))), loss_star=float(loss_star),
        parabola=parabola, center=center, warnings=tuple(warnings), draws=draws,
    )  # fmt: skip


def _refusal(runs: Points, u: np.ndarray, c: np.ndarray) -> str | None:
    """Why this parabola shows no minimum, or None."""
    if not c[2] > 0:
        return "concave: the loss does not turn upwards within the sampled sizes"
    vertex = -c[1] / (2 * c[2])
    if not u.min() < vertex < u.max():
        side = "below the smallest" if vertex <= u.min() else "above the largest"
        return f"the minimum lies {side} sampled size: sample further on that side"
    sizes = np.unique(runs.params)
    means = [runs.loss[runs.params == size].mean() for size in sizes]
    best = int(np.argmin(means))
    if best in (0, len(sizes) - 1):
        side = "smallest" if best == 0 else "largest"
        return f"the {side} sampled size has the lowest loss: the minimum is at the edge"
    return None


def _parabolas(u: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least squares of y = c0 + c1 u + c2 u^2 for each row of weights: (R, 3)."""
    X = np.stack([np.ones_like(u), u, u * u], 1)
    A = np.einsum("rn,ni,nj->rij", weights, X, X)
    rhs = np.einsum("rn,ni,n->ri", weights, X, y)
    return np.linalg.solve(A, rhs[..., None])[..., 0]


def _bootstrap(runs, u, y, w, center, resamples, rng) -> np.ndarray:
    """Minima of resampled budgets, (resamples, 3); draws with under 3 distinct sizes are redrawn."""
    n = len(u)
    _, size = np.unique(runs.params, return_inverse=True)
    counts = np.zeros((resamples, n))
    for r in range(resamples):
        while len(np.unique(size[counts[r] > 0])) < 3:
            counts[r] = np.bincount(rng.integers(0, n, n), minlength=n)
    draws = np.full((resamples, 3), np.nan)
    if not resamples:
        return draws
    c = _parabolas(u, y, counts * w)
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -c[:, 1] / (2 * c[:, 2])
        inside = (c[:, 2] > 0) & (vertex > u.min()) & (vertex < u.max())
        draws[inside, 0] = center + vertex[inside]
        draws[inside, 1] = _log_tokens(runs, draws[inside, 0])
        draws[inside, 2] = (c[:, 0] - c[:, 1] ** 2 / (4 * c[:, 2]))[inside]
    return draws


def _log_tokens(runs: Points, log_n: np.ndarray | float) -> np.ndarray | float:
    """ln D at ln N along the budget, between its own runs (exact when C = 6 N D)."""
    sizes, first = np.unique(runs.params, return_index=True)
    return np.interp(log_n, np.log(sizes), np.log(runs.tokens[first]))


def _power_law(budgets: list[Budget], column: int) -> PowerLaw:
    """ln of N* (column 0) or D* (1) on ln C by least squares, and again on every bootstrap draw."""
    log_c = np.log([budget.flops for budget in budgets])
    y = np.log(np.array([(b.n_star, b.d_star)[column] for b in budgets], np.float64))
    slope, intercept = np.polyfit(log_c - log_c.mean(), y, 1)
    resamples = min(len(b.draws) for b in budgets)
    draws = np.full((resamples, 2), np.nan)
    table = np.array([b.draws[:resamples, column] for b in budgets]).reshape(len(budgets), -1)
    for r in range(resamples):
        kept = np.isfinite(table[:, r])
        if kept.sum() < 2:
            continue
        x = log_c[kept] - log_c[kept].mean()
        exponent = float(x @ table[kept, r] / (x @ x))
        draws[r] = table[kept, r].mean() - exponent * log_c[kept].mean(), exponent
    return PowerLaw(float(np.exp(intercept - slope * log_c.mean())), float(slope), draws)


def describe(budget: Budget) -> dict[str, Any]:
    """A budget as JSON values."""
    runs = budget.points
    return {
        "flops": budget.flops,
        "n_star": budget.n_star,
        "d_star": budget.d_star,
        "loss_star": budget.loss_star,
        "intervals": budget.intervals(),
        "refused": budget.refused,
        "warnings": list(budget.warnings),
        "resolved": budget.resolved,
        "parabola": None if budget.parabola is None else list(budget.parabola),
        "center": budget.center,
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
