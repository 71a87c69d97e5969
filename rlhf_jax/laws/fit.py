"""Fits any law: the optimum, its bootstrap, refusals, and the held-out extrapolation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rlhf_jax.laws.law import Law, LawFit
from rlhf_jax.laws.points import FitError, Points, outliers_of
from rlhf_jax.laws.solve import Objective, Problem

NEAR = 1.05  # runs within this factor of compute are one budget, which is not torn apart
WIDE = 1e3  # a 95% interval whose ends differ by this factor is worth a warning


def fit(
    law_class: type[Law],
    points: Points,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    objective: Objective | None = None,
    held: Mapping[str, float] | None = None,
) -> LawFit:
    """Fits a law to every row of a table and bootstraps over rows.

    Args:
      law_class: a `Law`. points: with the columns of its INPUTS and its TARGET.
      resamples: bootstrap resamples (0: no intervals). seed: of the resampling. level: of the
        intervals in `to_json`.
      objective: what is minimised; by default the sum of Huber(1e-3) of log residuals, for an
        error rate of plain ones. `LEAST_SQUARES` is what some papers use.
      held: parameters that keep a value, e.g. a single-epoch law under the repetition terms.

    Raises:
      FitError: see `Law.problem`.
    """
    if not 0 < level < 1:
        raise FitError(f"level is {level}; it must be between 0 and 1, for instance 0.95")
    held = dict(held or {})
    chosen, notes = law_class.chosen(points, objective, held)
    problem = chosen.problem(points, objective, held)
    found = problem.search()
    residuals = problem.residual(found.theta[None])[0][0]
    refused, warnings, condition = problem.judge(found.theta)
    resampled = problem.bootstrap(found, resamples, seed)
    if type(problem) is Problem:
        warnings = (*warnings, *_wide(problem, resampled))
    return LawFit(
        law=chosen(*problem.values(found.theta).tolist()),
        objective=found.objective * problem.objective.unit**2,
        criterion=str(problem.objective),
        n=len(points),
        resampled=resampled,
        seed=seed,
        level=level,
        held=held,
        hit_rate=found.hit_rate,
        condition=condition,
        residuals=residuals,
        outliers=outliers_of(points, residuals),
        refused=refused,
        warnings=warnings,
        notes=(*points.notes, *notes),
        points=points,
        ahead=lambda: ahead(chosen, points, objective, held),
    )


def point(
    law_class: type[Law],
    points: Points,
    objective: Objective | None = None,
    held: Mapping[str, float] | None = None,
) -> Any:
    """The fitted law alone, without intervals; raises as `fit`."""
    chosen, _ = law_class.chosen(points, objective, held or {})
    problem = chosen.problem(points, objective, held or {})
    return chosen(*problem.values(problem.search().theta).tolist())


def ahead(
    law_class: type[Law],
    points: Points,
    objective: Objective | None = None,
    held: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """How the law extrapolates: see `extrapolation`."""

    def fitted(low: Points) -> Callable[[Points], np.ndarray]:
        law = point(law_class, low, objective, held)
        return lambda high: law.predict(**{name: getattr(high, name) for name in law.INPUTS})

    return extrapolation(points, fitted, law_class.TARGET)


def extrapolation(
    points: Points,
    fit: Callable[[Points], Callable[[Points], np.ndarray]],
    target: str = "loss",
    share: float = 0.75,
) -> dict[str, Any]:
    """Fits about the `share` of runs of least compute and scores the rest.

    Args:
      fit: makes a function that predicts `target`, a column, for a table. It may raise FitError.

    Returns {"below": C0, "fitted", "scored", "rms_log_error", "mean_log_error" (errors are
    ln predicted - ln observed above C0), "runs": [{label, flops, observed, predicted}]}, or
    {"refused": reason}.
    """
    flops = points.flops
    below = np.sort(flops)[max(0, int(len(flops) * share) - 1)]
    if not (flops > NEAR * below).any():
        lower = flops[flops * NEAR < flops.max()]
        if not len(lower):
            return {"refused": "all runs have one budget: nothing lies above it"}
        below = lower.max()
    low, high = points.take(flops <= NEAR * below), points.take(flops > NEAR * below)
    try:
        predict = fit(low)
    except FitError as e:
        return {"refused": str(e)}
    with np.errstate(all="ignore"):
        said, seen = predict(high), getattr(high, target)
        error = np.log(said) - np.log(seen)
    return {
        "below": float(low.flops.max()),
        "fitted": len(low),
        "scored": len(high),
        "rms_log_error": float(np.sqrt(np.mean(error**2))),
        "mean_log_error": float(error.mean()),
        "runs": [
            {"label": label, "flops": c, "observed": o, "predicted": p}
            for label, c, o, p in zip(
                high.labels, high.flops.tolist(), seen.tolist(), said.tolist(), strict=True
            )
        ],
    }


def _wide(problem: Problem, resampled: np.ndarray) -> list[str]:
    """Warnings on positive parameters that the resamples leave open by a factor of `WIDE`."""
    if not len(resampled):
        return []
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    return [
        f"{problem.names[i]} is hardly determined: its 95% interval is {low[i]:.3g} to "
        f"{high[i]:.3g}"
        for i in problem.free
        if problem.positive[i] and not high[i] <= WIDE * low[i]
    ]
