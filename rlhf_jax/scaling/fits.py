"""From a table to a fitted law as JSON: what `rlhf-jax fit` and the report write down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.scaling.isoflop import describe, fit_isoflop
from rlhf_jax.scaling.parametric import NAMES, fit_law, fit_parametric
from rlhf_jax.scaling.points import FitError, Points, read_table

# Published compute-optimal exponents, drawn beside ours and never fitted to.
PUBLISHED = {
    "Hoffmann 2022, approach 2": {"a": 0.49, "b": 0.51},
    "Hoffmann 2022, approach 3": {"a": 0.46, "b": 0.54},
    "Besiroglu 2024, refit of approach 3": {"a": 0.513, "b": 0.487},
    "Kaplan 2020": {"a": 0.73, "b": 0.27},
}


def fit_file(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    approach: int = 3,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Fits the runs of a CSV or JSONL file; see `read_table` for `columns`, `fit_points` for keys."""
    return fit_points(read_table(path, columns), approach, resamples, seed)


def fit_points(
    points: Points, approach: int, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """A fit as JSON values (no NaN; what could not be determined is None with a reason).

    Returns, approach 2: `budgets` (flops, n_star, d_star, loss_star, intervals, refused, warnings,
    resolved, parabola, center, points), the exponents `a` (N*) and `b` (D*), `intervals`, the
    prefactors `k_n` and `k_d`, `frontier`, `refused`. Approach 3: `E, A, B, alpha, beta,
    objective, a, b, G, n, intervals, hit_rate, condition, outliers, residuals, extrapolation,
    frontier, refused`. Both: `approach, n, resamples, seed, notes`.

    Raises:
      FitError: the table cannot be fitted at all (too few runs), or approach is not 2 or 3.
    """
    if approach not in (2, 3):
        raise FitError(f"approach is {approach!r}; it must be 2 (IsoFLOP) or 3 (parametric)")
    fit = _isoflop if approach == 2 else _parametric
    result = fit(points, resamples, seed)
    head = {"approach": approach, "n": len(points), "resamples": resamples, "seed": seed}
    return _plain({**head, **result})


def _isoflop(points: Points, resamples: int, seed: int) -> dict[str, Any]:
    fit = fit_isoflop(points, resamples, seed)
    laws = {"a": fit.n_law, "b": fit.d_law}
    frontier = []
    if fit.n_law and fit.d_law:
        flops = _range(np.array([budget.flops for budget in fit.budgets]))
        n_band, d_band = fit.n_law.band(flops), fit.d_law.band(flops)
        frontier = [
            {
                "flops": c,
                "n_star": fit.n_law.k * c**fit.n_law.exponent,
                "d_star": fit.d_law.k * c**fit.d_law.exponent,
                "intervals": {"n_star": n_band[:, i].tolist(), "d_star": d_band[:, i].tolist()},
            }
            for i, c in enumerate(flops.tolist())
        ]
    return {
        "budgets": [describe(budget) for budget in fit.budgets],
        **{name: law.exponent if law else None for name, law in laws.items()},
        "k_n": fit.n_law.k if fit.n_law else None,
        "k_d": fit.d_law.k if fit.d_law else None,
        "intervals": {name: law.interval() for name, law in laws.items() if law},
        "refused": fit.refused,
        "frontier": frontier,
        "notes": [*points.notes, *fit.warnings],
    }


def _parametric(points: Points, resamples: int, seed: int) -> dict[str, Any]:
    fit = fit_parametric(points, resamples, seed)
    values = {name: getattr(fit.law, name) for name in NAMES}
    if fit.refused:
        values |= {"a": None, "b": None, "G": None}
    policy = f"rows beyond 3 robust standard deviations: {len(fit.outliers)}; none dropped"
    return {
        **values,
        "objective": fit.objective,
        "intervals": {k: v for k, v in fit.intervals().items() if values[k] is not None},
        "hit_rate": fit.hit_rate,
        "condition": fit.condition,
        "outliers": {"policy": policy, "rows": list(fit.outliers)},
        "residuals": [
            {"label": label, "params": n, "tokens": d, "flops": c, "residual": r}
            for label, n, d, c, r in zip(
                points.labels, points.params.tolist(), points.tokens.tolist(),
                points.flops.tolist(), fit.residuals.tolist(), strict=True,
            )
        ],
        "extrapolation": extrapolation(points),
        "frontier": fit.frontier(_range(points.flops)),
        "refused": fit.refused,
        "notes": [*points.notes, *fit.warnings, "the optimum takes C = 6 N D"],
    }  # fmt: skip


def extrapolation(points: Points, share: float = 0.75) -> dict[str, Any]:
    """Fits the `share` of runs of least compute and scores the rest: what a law is for.

    Returns {"below": C0, "fitted", "scored", "rms_log_error", "mean_log_error"} (errors are
    ln predicted - ln observed above C0), or {"refused": reason}.
    """
    order = np.argsort(points.flops, kind="stable")
    cut = int(len(order) * share)
    low, high = points.take(order[:cut]), points.take(order[cut:])
    try:
        law = fit_law(low)
    except FitError as e:
        return {"refused": str(e)}
    error = np.log(law.loss(high.params, high.tokens)) - np.log(high.loss)
    return {
        "below": float(low.flops.max()),
        "fitted": len(low),
        "scored": len(high),
        "rms_log_error": float(np.sqrt(np.mean(error**2))),
        "mean_log_error": float(error.mean()),
    }


def _range(flops: np.ndarray, beyond: float = 10.0, count: int = 25) -> np.ndarray:
    """A log grid over the budgets and a factor `beyond` above them."""
    return np.geomspace(flops.min(), flops.max() * beyond, count)


def _plain(value: Any) -> Any:
    """JSON values only: numpy scalars become floats, and what is not finite becomes None."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
