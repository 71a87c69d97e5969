"""Fits any law of the family: starts, bootstrap, refusals, and the held-out extrapolation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.laws.extrapolation import extrapolation
from rlhf_jax.laws.forms.family import LawFit, ScalingLaw
from rlhf_jax.laws.forms.solve import HIT, Objective, Problem
from rlhf_jax.laws.points import FitError, Points, outliers_of
from rlhf_jax.study.config import suggest

FLAT = 1e-4  # a parameter that moves no prediction by this share, e-fold for e-fold, is unknown
WIDE = 1e3  # a 95% interval whose ends differ by this factor is worth a warning
SINGULAR = 1e-11  # of the scaled normal equations' eigenvalues: parameters not told apart


def fit(
    law_class: type[ScalingLaw],
    points: Points,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    objective: Objective | None = None,
    held: Mapping[str, float] | None = None,
) -> LawFit:
    """Fits a law to every row of a table and bootstraps over rows.

    Args:
      law_class: one of `LAWS`. points: with the columns of its INPUTS and its TARGET.
      resamples: bootstrap resamples (0: no intervals). seed: of the resampling. level: of the
        intervals in `to_json`.
      objective: what is minimised; by default the sum of Huber(1e-3) of log residuals, for an
        error rate of plain ones. `LEAST_SQUARES` is what some papers use.
      held: parameters that keep a value, e.g. a single-epoch law under the repetition terms.

    Raises:
      FitError: a column is missing, there are too few runs or distinct inputs, or `held` names
        no parameter.
    """
    if not 0 < level < 1:
        raise FitError(f"level is {level}; it must be between 0 and 1, for instance 0.95")
    args = (points, resamples, seed, level, objective, dict(held or {}))
    return law_class.fitted(*args) or fit_generic(law_class, *args)


def point(
    law_class: type[ScalingLaw],
    points: Points,
    objective: Objective | None = None,
    held: Mapping[str, float] | None = None,
) -> ScalingLaw:
    """The fitted law alone, without intervals; raises as `fit`."""
    found = law_class.pointed(points, objective, dict(held or {}))
    if found is not None:
        return found
    problem = problem_of(law_class, points, objective, held or {})
    return problem.law(problem.solve(law_class.starts(problem.columns, problem.target))[0])


def problem_of(
    law_class: type[ScalingLaw],
    points: Points,
    objective: Objective | None,
    held: Mapping[str, float],
) -> Problem:
    """The law on a table's columns; raises FitError as `fit`."""
    names = law_class.names()
    for name, value in held.items():
        if name not in names:
            raise FitError(
                f"{law_class.NAME} has no parameter {name!r} to hold.{suggest(name, names)}"
            )
        if name not in law_class.SIGNED and not value > 0:
            raise FitError(f"{law_class.NAME}: {name} is held at {value}; it must be positive")
    columns = {}
    for name in (*law_class.INPUTS, law_class.TARGET):
        values = getattr(points, name)
        if values is None:
            raise FitError(
                f"the law {law_class.NAME!r} needs the column {name!r}, which this table does "
                f"not have; say which one it is: --columns {name}=NAME"
            )
        columns[name] = values
    target = columns.pop(law_class.TARGET)
    free = len(names) - len(held)
    if free == 0:
        raise FitError(f"all parameters of {law_class.NAME} are held: nothing is left to fit")
    if len(points) <= free:
        raise FitError(
            f"{law_class.NAME} fits {free} parameters and needs at least {free + 1} runs, "
            f"not {len(points)}"
        )
    distinct = len(np.unique(np.stack(list(columns.values())), axis=1).T)
    if distinct < free:
        raise FitError(
            f"{law_class.NAME} fits {free} parameters and needs as many distinct values of "
            f"{', '.join(law_class.INPUTS)}; the {len(points)} runs have {distinct}"
        )
    if np.ptp(target) == 0:
        raise FitError(
            f"all {len(target)} values of {law_class.TARGET} are {target[0]:g}: nothing to fit"
        )
    return Problem(law_class, columns, target, objective or law_class.objective(), held)


def fit_generic(
    law_class: type[ScalingLaw],
    points: Points,
    resamples: int,
    seed: int,
    level: float,
    objective: Objective | None,
    held: Mapping[str, float],
    notes: Sequence[str] = (),
) -> LawFit:
    """`fit` from the law's formula and starts alone."""
    problem = problem_of(law_class, points, objective, held)
    theta, best, found = problem.solve(law_class.starts(problem.columns, problem.target))
    hits = [value <= best * (1 + HIT) + 1e-14 for _, value in found]
    residuals, J = problem(theta)
    refused, warnings, condition = judge(problem, theta, J)
    starts = [theta, *_others(found, theta, best)]
    resampled = _bootstrap(problem, starts, resamples, seed)
    return LawFit(
        law=problem.law(theta),
        objective=best,
        criterion=str(problem.objective),
        n=len(points),
        resampled=resampled,
        seed=seed,
        level=level,
        held=held,
        hit_rate=float(np.mean(hits)),
        condition=condition,
        residuals=residuals,
        outliers=outliers_of(points, residuals),
        extrapolation=ahead(law_class, points, problem.objective, held),
        refused=refused,
        warnings=(*warnings, *_wide(problem, resampled)),
        notes=(*points.notes, *notes),
        points=points,
    )


def judge(
    problem: Problem, theta: np.ndarray, J: np.ndarray
) -> tuple[str | None, tuple[str, ...], float]:
    """(refused, warnings, condition): which parameters the table does not determine.

    One whose e-fold change moves no prediction by `FLAT`, or several that the residuals' normal
    equations cannot tell apart.
    """
    law_class, warnings = problem.law_class, []
    names = [problem.names[i] for i in problem.free]
    size = np.abs(J).max(0)
    flat = [name for name, s in zip(names, size, strict=True) if not s > FLAT]
    if law_class.FLOOR in flat:
        flat.remove(law_class.FLOOR)
        warnings.append(
            f"{law_class.FLOOR} ran to 0: the table does not bend enough to show a floor"
        )
    refused = None
    if flat:
        refused = (
            f"the table does not determine {', '.join(flat)}: a change by a factor of e moves no "
            f"prediction by {FLAT:g}"
        )
    H = problem.hessian(theta)
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(H)), 1e-300))
    eigen = np.linalg.eigvalsh(H * scale * scale[:, None]) if np.isfinite(H).all() else [0.0]
    condition = float(eigen[-1] / eigen[0]) if eigen[0] > 0 else float("inf")
    keep = [i for i, name in enumerate(names) if size[i] > FLAT]
    if refused is None and keep:
        unit = J[:, keep] / np.linalg.norm(J[:, keep], axis=0)
        values, vectors = np.linalg.eigh(unit.T @ unit)
        if values[0] < SINGULAR * values[-1]:
            mixed = [names[keep[i]] for i in np.flatnonzero(np.abs(vectors[:, 0]) > 0.1)]
            refused = (
                f"the table cannot tell {', '.join(mixed)} apart: runs vary along one line only; "
                f"add runs that vary {', '.join(law_class.INPUTS)} on their own"
            )
    if condition > 1e10:
        warnings.append(f"the scaled Hessian's condition number is {condition:.1e}: a flat valley")
    return refused, tuple(warnings), condition


def ahead(
    law_class: type[ScalingLaw],
    points: Points,
    objective: Objective | None = None,
    held: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """How the law extrapolates: see `rlhf_jax.laws.extrapolation`."""

    def fitted(low: Points) -> Callable[[Points], np.ndarray]:
        law = point(law_class, low, objective, held)
        return lambda high: law.predict(**{name: getattr(high, name) for name in law.INPUTS})

    return extrapolation(points, fitted, law_class.TARGET)


def _others(found: list, theta: np.ndarray, best: float, count: int = 2) -> list[np.ndarray]:
    """End points of other starts that are near as good: a resample may prefer one of them."""
    others: list[np.ndarray] = []
    for end, value in sorted(found, key=lambda f: f[1]):
        if value > 1.5 * best or len(others) == count:
            break
        if all(np.abs(end - t).max() > 0.05 for t in [theta, *others]):
            others.append(end)
    return others


def _bootstrap(problem: Problem, starts: list, resamples: int, seed: int) -> np.ndarray:
    """Parameters refitted to rows drawn with replacement, (resamples, p)."""
    rng, n = np.random.default_rng(seed), len(problem.target)
    held = {name: problem.held[i] for i, name in enumerate(problem.names) if i not in problem.free}
    drawn = np.empty((resamples, len(problem.names)))
    for r in range(resamples):
        rows = rng.integers(0, n, n)
        columns = {name: values[rows] for name, values in problem.columns.items()}
        again = Problem(problem.law_class, columns, problem.target[rows], problem.objective, held)
        ends = [again.minimise(start, 3) for start in starts]
        drawn[r] = again.values(min(ends, key=lambda end: end[1])[0])
    return drawn


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
