"""Predicts a larger budget from smaller ones before it is run, and scores the prediction after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.laws.approaches import fit_points
from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.laws.points import FitError, Points
from rlhf_jax.laws.tables.selection import MAX

APPROACHES = (1, 2, 3)
FAR = 10.0  # times the largest run: a warning beyond
FARTHEST = 1000.0  # refused beyond


def predict(
    points: Points,
    flops: float,
    planned: Sequence[Mapping[str, Any]],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The compute-optimal size, tokens and loss at `flops`, by every approach that the table
    supports.

    Args:
      points: runs, all of less compute. planned: future runs ({label, params, tokens}), whose
        losses approach 3 predicts.

    Returns {"flops", "fitted": n, "below": most compute of a fitted run, "approaches": {"1":
    {n_star, d_star, [loss_star], intervals, a} or {refused}}, "runs": [{label, params, tokens,
    loss}]}.

    Raises:
      FitError: `flops` is invalid, not above every run, or over `FARTHEST` times the largest run.
    """
    reach = check_flops(flops) / float(points.flops.max())
    if reach <= 1:
        raise FitError(
            f"runs reach {points.flops.max():.4g} FLOPs: at {flops:.4g} nothing is left to predict"
        )
    if reach > FARTHEST:
        raise FitError(
            f"{flops:.4g} FLOPs is {reach:.3g} times the largest run ({points.flops.max():.4g}); a "
            f"fit says nothing beyond {FARTHEST:g} times: ask for "
            f"{points.flops.max() * FARTHEST:.4g} at most"
        )
    found: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []
    for approach in APPROACHES:
        try:
            fit = fit_points(points, approach, resamples, seed, reach=max(reach, 10.0))
        except FitError as e:
            fit = {"refused": str(e)}
        if fit.get("E") is not None:
            runs = _losses(fit, planned)
        if fit["refused"] or not fit["frontier"]:
            found[str(approach)] = {"refused": fit["refused"] or "no frontier"}
            continue
        found[str(approach)] = _at(fit["frontier"], flops) | {"a": fit["a"]}
    if all("refused" in of for of in found.values()):
        reasons = "\n".join(f"  approach {k}: {of['refused']}" for k, of in found.items())
        raise FitError(f"these {len(points)} runs support no prediction:\n{reasons}")
    far = f"{reach:.3g} times the compute of the largest run" if reach > FAR else None
    return {
        "flops": flops,
        "fitted": len(points),
        "below": float(points.flops.max()),
        "far": far,
        "approaches": found,
        "runs": runs,
    }


def _losses(fit: Mapping[str, Any], planned: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The loss that approach 3's law predicts for each planned run."""
    law = Chinchilla(**{name: fit[name] for name in Chinchilla.names()})
    return [
        {k: run[k] for k in ("label", "params", "tokens")}
        | {"loss": float(law.loss(run["params"], run["tokens"]))}
        for run in planned
    ]


def check_flops(flops: float) -> float:
    """`flops` as a float. Raises FitError unless it is a number from 1 to `MAX`."""
    number = isinstance(flops, int | float) and not isinstance(flops, bool)
    if not number or not 1 <= flops <= MAX["flops"]:
        raise FitError(
            f"compute to predict at is {flops}; it must be FLOPs from 1 to {MAX['flops']:g}, as "
            "1e20"
        )
    return float(flops)


def _at(frontier: Sequence[Mapping[str, Any]], flops: float) -> dict[str, Any]:
    """The frontier at one compute, interpolated in logs between its rows."""
    x = np.log([row["flops"] for row in frontier])

    def interpolated(values: list[float | None]) -> float | None:
        if any(v is None or not v > 0 for v in values):
            return None
        return float(np.exp(np.interp(math.log(flops), x, np.log(np.array(values, float)))))

    keys = [key for key in ("n_star", "d_star", "loss_star") if key in frontier[0]]
    intervals = [row.get("intervals") or {} for row in frontier]
    ends = {
        key: [
            interpolated([row.get(key, (None, None))[end] for row in intervals]) for end in (0, 1)
        ]
        for key in keys
    }
    return {key: interpolated([row[key] for row in frontier]) for key in keys} | {
        "intervals": {key: pair for key, pair in ends.items() if None not in pair}
    }


def score(prediction: Mapping[str, Any], points: Points) -> dict[str, Any]:
    """Compares the prediction with runs of its compute.

    Args:
      points: finished runs; those within 5% of the prediction's compute are used.

    Returns {"measured": {n_star, d_star, loss_star, intervals} of their parabola or {refused},
    "approaches": {"1": {n_star, d_star, loss_star: ln predicted - ln measured, covered: {quantity:
    the predicted interval holds the measured value}}}, "runs": {n, rms_log_error, mean_log_error}}.
    """
    here = points.take(np.abs(np.log(points.flops / prediction["flops"])) < 0.05)
    if not len(here):
        none = {"refused": "no run of this compute is done"}
        return {"measured": none, "approaches": {}, "runs": None}
    fit = fit_points(here, 2, 1000, 0)
    (budget,) = fit["budgets"]
    seen = {k: budget[k] for k in ("n_star", "d_star", "loss_star", "intervals", "refused")}
    out: dict[str, Any] = {"measured": seen, "approaches": {}, "runs": None}
    for name, said in prediction["approaches"].items():
        errors: dict[str, Any] = {"covered": {}}
        for key in ("n_star", "d_star", "loss_star"):
            if said.get(key) and seen[key]:
                errors[key] = math.log(said[key] / seen[key])
                low, high = said["intervals"].get(key, (math.nan, math.nan))
                errors["covered"][key] = low <= seen[key] <= high
        out["approaches"][name] = errors
    losses = dict(zip(here.labels, here.loss.tolist(), strict=True))
    done = [run for run in prediction["runs"] if run["label"] in losses]
    missed = np.array([math.log(run["loss"] / losses[run["label"]]) for run in done])
    if len(missed):
        out["runs"] = {
            "n": len(missed),
            "rms_log_error": float(np.sqrt(np.mean(missed**2))),
            "mean_log_error": float(missed.mean()),
        }
    return out
