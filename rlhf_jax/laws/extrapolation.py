"""How a law does beyond what it was fitted to: the number that matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_jax.laws.points import FitError, Points

NEAR = 1.05  # runs within this factor of compute are one budget, which is not torn apart


def extrapolation(
    points: Points,
    fit: Callable[[Points], Callable[[Points], np.ndarray]],
    target: str = "loss",
    share: float = 0.75,
) -> dict[str, Any]:
    """Fits about the `share` of runs of least compute and scores the rest.

    Args:
      fit: makes a function that predicts `target`, a column, for a table. It may raise FitError.

    Returns {"below": C0, "fitted", "scored", "rms_log_error", "mean_log_error" (errors are ln
    predicted
    - ln observed above C0), "runs": [{label, flops, observed, predicted}]}, or {"refused": reason}.
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
