"""From a table to a fitted law as JSON: what `rlhf-jax fit` and the report write down."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.laws.chinchilla import Chinchilla, frontier
from rlhf_jax.laws.curves import Curve
from rlhf_jax.laws.envelope import (
    MIN_HORIZONS,
    EnvelopeFit,
    fit_end_points,
    fit_envelope,
    short_sizes,
)
from rlhf_jax.laws.fit import fit
from rlhf_jax.laws.isoflop import WIDE, Budget, PowerLaw, describe, fit_isoflop, power_law
from rlhf_jax.laws.law import LawFit
from rlhf_jax.laws.points import FitError, Points, plain, read_table
from rlhf_jax.laws.solve import HUBER_LOG, Problem
from rlhf_jax.laws.tables.selection import LeftOut
from rlhf_jax.study.ranges import Range

AGREE = 1e-6  # objectives of two searches of approach 3: beyond, a warning
DISAGREE = 1e-3  # the second is lower by more than this share: refused
BUDGET = "their budget is refused: "
MAX_RESAMPLES = 100_000
FEW = 10  # runs of approach 3: below, a warning


def fit_file(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    approach: int = 3,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Fits the runs of a table; see `read_table` for `columns`, `fit_points` for keys.

    The result has `file` and its `sha256` too.
    """
    return source(path) | fit_points(read_table(path, columns), approach, resamples, seed)


def source(path: str | Path) -> dict[str, str]:
    """{"file", "sha256"} of a table."""
    path = Path(path)
    if not path.is_file():
        raise FitError(f"{path} is not a file")
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def fit_points(
    points: Points,
    approach: int,
    resamples: int = 1000,
    seed: int = 0,
    window: float = WIDE,
    reach: float = 10.0,
) -> dict[str, Any]:
    """A fit as JSON values (no NaN; what could not be determined is None with a reason).

    Returns, approaches 1 and 2: the exponents `a` (N*) and `b` (D*), `intervals`, the prefactors
    `k_n` and `k_d`, `frontier`, `extrapolation`, `refused`; 1 also `envelope` (flops, params,
    tokens, loss, label of the holder, kept), from final losses interpolated within each size
    (`fit_curves` takes training curves); 2 also `budgets` (flops, n_star, d_star, loss_star,
    intervals, refused, warnings, resolved, outside, parabola, center, points). Approach 3:
    `E, A, B, alpha, beta, objective, a, b, G, n, intervals, hit_rate, condition, agreement,
    outliers, residuals, extrapolation, frontier, refused`. All: `approach, n, resamples, seed,
    notes`, `points`, the runs fitted (label, run_id, params, tokens, flops, loss), and `left_out`,
    the rows and runs that were not, [{label, reason}].

    Args:
      window: of approach 2, see `fit_isoflop`.
      reach: the frontier's end, times the largest compute.

    Raises:
      FitError: the table cannot be fitted at all (too few runs), or approach is not 1, 2 or 3.
    """
    fits: dict[int, Callable] = {1: _ends, 2: partial(_isoflop, window=window), 3: _parametric}
    if approach not in fits:
        raise FitError(
            f"approach is {approach!r}; it must be 1 (envelope), 2 (IsoFLOP) or 3 (parametric)"
        )
    check_numbers(resamples, seed)
    if len(points) > 1 and np.ptp(points.loss) == 0:
        raise FitError(f"all {len(points)} losses are {points.loss[0]:g}: there is nothing to fit")
    result = fits[approach](points, resamples, seed, reach=reach)
    head = {"approach": approach, "n": len(points), "resamples": resamples, "seed": seed}
    left_out = [*points.left_out, *result.pop("left_out", ())]
    named = [{"label": label, "reason": reason} for label, reason in left_out]
    return plain({**head, **result, "left_out": named, "points": points.rows()})


def check_numbers(resamples: int, seed: int) -> None:
    """Raises FitError for what is no number of resamples, or no seed of 32 bits."""
    for name, value, most in (("resamples", resamples, MAX_RESAMPLES), ("seed", seed, 2**32 - 1)):
        if type(value) is not int or Range(0, most).problem(value):
            raise FitError(
                f"{name} is {value!r}; it must be 0 or more, a whole number up to {most:,}"
            )


def fit_curves(
    curves: Sequence[Curve], valid_from: float = 0.9, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Approach 1 on training curves, with the keys of `fit_points`; `points` are the curves' ends.

    Args:
      curves, valid_from: see `fit_envelope`.
    """

    def law(below: float, draws: int) -> EnvelopeFit:
        kept = [curve for curve in curves if curve.flops[-1] <= below * 1.01]
        return fit_envelope(kept, valid_from, draws, seed)

    if not curves:
        raise FitError("approach 1 got 0 curves; it needs at least one")
    params, tokens, flops, loss = np.array(
        [[c.params, c.tokens[-1], c.flops[-1], c.loss[-1]] for c in curves]
    ).T
    ends = Points(params, tokens, flops, loss, labels=tuple(curve.label for curve in curves))
    head = {"approach": 1, "n": len(curves), "resamples": resamples, "seed": seed}
    notes = [f"a loss counts in the last {1 - valid_from:.0%} of its run's compute"]
    return plain({**head, **_envelope(law, ends, resamples, notes), "points": ends.rows()})


def _ends(points: Points, resamples: int, seed: int, reach: float) -> dict[str, Any]:
    def law(below: float, draws: int) -> EnvelopeFit:
        return fit_end_points(points.take(points.flops <= below * 1.01), draws, seed)

    notes = [*points.notes, "final losses, interpolated in ln C between each size's horizons"]
    fit = _envelope(law, points, resamples, notes, reach)
    few = f"their size was trained to under {MIN_HORIZONS} horizons"
    left_out = [(label, few) for label in short_sizes(points)] if not fit["refused"] else []
    return {**fit, "notes": [*fit["notes"], *_named(left_out, len(points))], "left_out": left_out}


def _named(left_out: LeftOut, total: int) -> list[str]:
    """A sentence for each reason, with the names of the runs; of many reasons, one that counts
    them."""
    labels: dict[str, list[str]] = {}
    for label, reason in left_out:
        labels.setdefault(reason, []).append(label)
    notes = []
    refused = {reason: names for reason, names in labels.items() if reason.startswith(BUDGET)}
    if len(refused) > 3:
        runs = sum(map(len, refused.values()))
        some = "; ".join(reason.removeprefix(BUDGET) for reason in [*refused][:3])
        notes = [
            f"{runs} of {total} runs are left out: their {len(refused)} budgets are refused: "
            f"{some}; and {len(refused) - 3} more (--json names the runs)"
        ]
        labels = {reason: names for reason, names in labels.items() if reason not in refused}
    return notes + [
        f"{len(names)} of {total} runs are left out: {reason}: {', '.join(names[:20])}"
        + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        for reason, names in labels.items()
    ]


def _envelope(
    law: Callable[[float, int], EnvelopeFit],
    ends: Points,
    resamples: int,
    notes: list[str],
    reach: float = 10.0,
) -> dict[str, Any]:
    """`law` fits the runs that end below a compute."""
    fit = law(np.inf, resamples)
    return {
        **_power_laws(fit.n_law, fit.d_law, ends.flops, reach),
        "envelope": fit.describe(),
        "extrapolation": _envelope_ahead(law, fit, ends.flops),
        "refused": fit.refused,
        "notes": [*notes, *fit.warnings],
    }


def _envelope_ahead(
    law: Callable[[float, int], EnvelopeFit], fit: EnvelopeFit, flops: np.ndarray
) -> dict[str, Any]:
    """The law of the runs in the lower three quarters (in ln C) of the envelope, against the
    rest."""
    if fit.refused:
        return {"refused": fit.refused}
    low, high = fit.flops[fit.kept][[0, -1]]
    below = flops[flops <= low**0.25 * high**0.75]
    if not len(below):
        return {"refused": "no run ends in the lower three quarters of the envelope"}
    part = law(float(below.max()), 0)
    ahead = fit.kept & (fit.flops > part.flops.max() * 1.001)
    if part.refused or not ahead.any():
        return {"refused": part.refused or "the envelope has no point beyond these runs"}
    middle = np.flatnonzero(ahead)  # the holder steps: its mean in logs over the stretch
    own = [float(np.exp(np.log(v[middle]).mean())) for v in (fit.flops, fit.params, fit.tokens)]
    return _ahead(part.n_law, part.d_law, float(below.max()), *own)


def _ahead(
    n_law: PowerLaw | None,
    d_law: PowerLaw | None,
    below: float,
    flops: float,
    n_star: float,
    d_star: float,
) -> dict[str, Any]:
    """A prediction and its errors, ln predicted - ln found."""
    assert n_law and d_law
    predicted = [law.k * flops**law.exponent for law in (n_law, d_law)]
    return {
        "below": below,
        "flops": flops,
        "n_star": predicted[0],
        "d_star": predicted[1],
        "n_log_error": float(np.log(predicted[0] / n_star)),
        "d_log_error": float(np.log(predicted[1] / d_star)),
    }


def _power_laws(
    n_law: PowerLaw | None, d_law: PowerLaw | None, flops: np.ndarray, reach: float
) -> dict[str, Any]:
    """The keys that approaches 1 and 2 share."""
    laws, frontier = {"a": n_law, "b": d_law}, []
    if n_law and d_law:
        at = _range(flops, reach)
        n_band, d_band = n_law.band(at), d_law.band(at)
        frontier = [
            {
                "flops": c,
                "n_star": n_law.k * c**n_law.exponent,
                "d_star": d_law.k * c**d_law.exponent,
                "intervals": {"n_star": n_band[:, i].tolist(), "d_star": d_band[:, i].tolist()},
            }
            for i, c in enumerate(at.tolist())
        ]
    return {
        **{name: law.exponent if law else None for name, law in laws.items()},
        "k_n": n_law.k if n_law else None,
        "k_d": d_law.k if d_law else None,
        "intervals": {name: law.interval() for name, law in laws.items() if law},
        "frontier": frontier,
    }


def _isoflop(
    points: Points, resamples: int, seed: int, window: float, reach: float
) -> dict[str, Any]:
    fit = fit_isoflop(points, resamples, seed, window=window)
    left_out = [item for budget in fit.budgets for item in _unused(budget, window)]
    return {
        "budgets": [describe(budget) for budget in fit.budgets],
        **_power_laws(
            fit.n_law, fit.d_law, np.array([budget.flops for budget in fit.budgets]), reach
        ),
        "extrapolation": _isoflop_ahead(points, window),
        "window": window if np.isfinite(window) else None,
        "refused": fit.refused,
        "notes": [*points.notes, *fit.warnings, *_named(left_out, len(points))],
        "left_out": left_out,
    }


def _unused(budget: Budget, window: float) -> LeftOut:
    """(label, reason) of a budget's runs that its parabola, or the exponents, leave out."""
    if budget.refused:
        why = f"{BUDGET}{budget.flops:.3g} FLOPs ({budget.refused})"
        return [(label, why) for label in budget.points.labels]
    why = f"beyond {window:g}x of their budget's N* (`--window none` takes every run)"
    return [(label, why) for label in budget.outside]


def _isoflop_ahead(points: Points, window: float) -> dict[str, Any]:
    """The law of the budgets but the largest that shows a minimum, against that minimum."""
    budgets = fit_isoflop(points, resamples=0, window=window).budgets
    good = [budget for budget in budgets if budget.n_star and budget.d_star]
    if len(good) < 3:
        return {
            "refused": f"{len(good)} budgets show a minimum; 2 to fit and 1 to score are needed"
        }
    top = good.pop()
    n_law, d_law = (
        power_law(np.array([b.flops for b in good]), np.array([getattr(b, name) for b in good]))
        for name in ("n_star", "d_star")
    )
    assert top.n_star and top.d_star
    return _ahead(n_law, d_law, good[-1].flops, top.flops, top.n_star, top.d_star)


def _parametric(points: Points, resamples: int, seed: int, reach: float) -> dict[str, Any]:
    found = fit(Chinchilla, points, resamples, seed)
    law, refused, warnings = found.law, found.refused, list(found.warnings)
    if len(points) < FEW:
        warnings.append(f"{len(points)} runs for 5 coefficients: the law follows their noise")
    values = {name: getattr(law, name) for name in (*law.names(), *law.DERIVED)}
    agreement = None
    if not refused:
        agreement = _agreement(found, *second_search(points))
        lower = agreement["objective"]
        if lower > DISAGREE:
            refused = (
                f"a second search, from other starts, found an objective lower by {lower:.1e} of "
                "itself: this is not the optimum"
            )
        elif abs(lower) > AGREE:
            warnings.append(f"two searches differ by {lower:.1e} of the objective")
    if refused:
        values |= dict.fromkeys(law.DERIVED)
    policy = f"rows beyond 3 robust standard deviations: {len(found.outliers)}; none dropped"
    keys = ("label", "params", "tokens", "flops")
    rows = zip(points.rows(), found.residuals.tolist(), strict=True)
    return {
        **values,
        "objective": found.objective,
        "intervals": {k: v for k, v in found.intervals().items() if values[k] is not None},
        "hit_rate": found.hit_rate,
        "condition": found.condition,
        "agreement": agreement,
        "outliers": {"policy": policy, "rows": list(found.outliers)},
        "residuals": [{k: row[k] for k in keys} | {"residual": r} for row, r in rows],
        "extrapolation": found.extrapolation,
        "frontier": [] if refused else frontier(found, _range(points.flops, reach)),
        "refused": refused,
        "notes": [*points.notes, *warnings, "the optimum takes C = 6 N D"],
    }


def second_search(points: Points) -> tuple[Chinchilla, float]:
    """(law, objective) of approach 3 from other starts, in other coordinates and with derivatives
    of the formula alone; of many runs on a sample, and then on all."""
    surface = Chinchilla.problem(points, None, {})
    plain = Problem(Chinchilla, surface.columns, surface.target, HUBER_LOG, {}).sample
    start = surface.theta(plain.values(plain.search().theta))
    theta, objective = surface.polish(start)
    return Chinchilla(*surface.values(theta).tolist()), objective * HUBER_LOG.unit**2


def _agreement(found: LawFit, other: Chinchilla, objective: float) -> dict[str, float]:
    """Relative differences of two fits: of the objectives (positive where `other` is lower) and of
    every coefficient (absolute values).

    Objectives are compared relative to the first, or to 1e-3 delta^2 a run where that is larger:
    below it both fit the table exactly.
    """
    scale = max(found.objective, 1e-3 * found.n * HUBER_LOG.unit**2)
    change = np.abs(other.values - found.law.values) / np.maximum(np.abs(found.law.values), 1e-300)
    return {
        "objective": (found.objective - objective) / scale,
        **dict(zip(other.names(), change.tolist(), strict=True)),
    }


def _range(flops: np.ndarray, beyond: float, count: int = 25) -> np.ndarray:
    """A log grid over the budgets and a factor `beyond` above them."""
    return np.geomspace(flops.min(), flops.max() * beyond, count)
