"""The learning-rate law of `learning_rate`, fitted to runs at several rates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from rlhf_jax.laws.learning_rate import B0, N0
from rlhf_jax.laws.points import FitError

NEAR = 0.1  # nats: runs this close to the lowest loss enter the parabola of their group


def fit_learning_rate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The law through the best learning rate of each (size, batch).

    Args:
      rows: runs with `params`, `batch_tokens`, `lr`, `loss` (None or not finite: diverged) and
          `label`.

    In each group loss is a parabola in ln lr through the runs within `NEAR` of the lowest and its
    two neighbours; its minimum is the best rate, and a group whose lowest loss is at an end is
    refused. The law is least squares in logs, its intervals (95%) are Student's of that regression.

    Returns {"lr0" (at N0, B0), "n_power", "b_power", "intervals", "residual_sd" (of ln lr),
    "groups": [{params, batch_tokens, best_lr, loss, refused, predicted, points}], "n", "refused",
    "notes"}.

    Raises:
      FitError: fewer than 5 groups show a minimum, or they are of one size or of one batch.
    """
    by_group: dict[tuple[float, float], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_group[row["params"], row["batch_tokens"]].append(row)
    groups = [_best(n, b, runs) for (n, b), runs in sorted(by_group.items())]
    good = [g for g in groups if not g["refused"]]
    n, b, best = (
        np.log([float(g[key]) for g in good]) for key in ("params", "batch_tokens", "best_lr")
    )
    if len(good) < 5 or len(set(n)) < 2 or len(set(b)) < 2:
        raise FitError(
            f"{len(good)} of {len(groups)} groups show a best learning rate, at {len(set(n))} "
            f"sizes and {len(set(b))} batches; the law needs 5 groups, 2 sizes and 2 batches: "
            + "; ".join(g["refused"] for g in groups if g["refused"])
        )
    X = np.stack([np.ones_like(n), math.log(N0) - n, b - math.log(B0)], 1)
    theta, *_ = np.linalg.lstsq(X, best)
    error = best - X @ theta
    freedom = len(good) - 3
    sd = math.sqrt(error @ error / freedom)
    half = student.ppf(0.975, freedom) * sd * np.sqrt(np.diag(np.linalg.inv(X.T @ X)))
    ends = np.stack([theta - half, theta + half], 1).tolist()
    ends[0] = np.exp(ends[0]).tolist()
    for group in groups:
        x = [1.0, math.log(N0 / group["params"]), math.log(group["batch_tokens"] / B0)]
        group["predicted"] = float(np.exp(x @ theta))
    return {
        "lr0": float(np.exp(theta[0])),
        "n_power": float(theta[1]),
        "b_power": float(theta[2]),
        "intervals": dict(zip(("lr0", "n_power", "b_power"), ends, strict=True)),
        "residual_sd": sd,
        "groups": groups,
        "n": len(rows),
        "refused": None,
        "notes": [
            f"{g['params']:,.0f} parameters, {g['batch_tokens']:,.0f} tokens a batch left out: "
            f"{g['refused']}"
            for g in groups
            if g["refused"]
        ],
    }


def _best(params: float, batch_tokens: float, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The minimum of one group's parabola, or why there is none."""
    runs = sorted(runs, key=lambda run: run["lr"])
    x = np.log([float(run["lr"]) for run in runs])
    y = np.array(
        [np.inf if (v := run["loss"]) is None or not np.isfinite(v) else v for run in runs]
    )
    group: dict[str, Any] = {
        "params": params,
        "batch_tokens": batch_tokens,
        "best_lr": None,
        "loss": None,
        "refused": None,
        "points": [{k: run.get(k) for k in ("lr", "loss", "label")} for run in runs],
    }
    low = int(np.argmin(y))
    if len(runs) < 3 or low in (0, len(runs) - 1) or not np.isfinite(y[low]):
        reason = "needs at least 3 rates" if len(runs) < 3 else "the lowest loss is at an end"
        return group | {"refused": reason}
    near = np.isfinite(y) & (y <= y[low] + NEAR)
    near[low - 1 : low + 2] = np.isfinite(y[low - 1 : low + 2])
    if near.sum() < 3:
        return group | {"refused": "a neighbour of the lowest loss diverged"}
    c2, c1, c0 = np.polyfit(x[near] - x[low], y[near], 2)
    vertex = -c1 / (2 * c2) if c2 > 0 else np.nan
    if not x[0] - x[low] < vertex < x[-1] - x[low]:
        return group | {"refused": "no minimum inside the rates"}
    best = {"best_lr": float(np.exp(x[low] + vertex)), "loss": float(c0 - c1**2 / (4 * c2))}
    return group | best
