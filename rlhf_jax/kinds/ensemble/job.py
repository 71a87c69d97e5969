"""Ensemble cells: several reward models as one. Nothing is trained; the members are read and
compared."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.evals.rankings import ranking_report, untied_pairs
from rlhf_jax.kinds.bases import FromRankings
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.ensemble.cell import Ensemble
from rlhf_jax.kinds.ensemble.result import EnsembleReport, EnsembleResult
from rlhf_jax.kinds.rankings import Arrays, ceilings, over_rows, rankings
from rlhf_jax.kinds.reward_models import member
from rlhf_jax.objectives.rankings import flattened
from rlhf_jax.rl.scores import Reward, combined, model_reward
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.results import from_json


def run(ctx: Context, cell: Ensemble) -> EnsembleResult:
    """The held-out report of the combined score on the first member's comparisons, each member's
    accuracy on them, and how far the members disagree. Members are normalised each, so there is no
    gain or bias; for calibration the combined score is brought back to log-odds by the mean of
    their gains."""
    members = [ctx.study[name] for name in cell.members]
    results = {m.name: ctx.result(m.name) for m in members}
    if missing := [name for name, result in results.items() if result is None]:
        raise ConfigError(
            f"{cell.name}.members: {', '.join(missing)} have no report; train them first"
        )
    first = members[0]
    assert isinstance(first, FromRankings)
    data = rankings(ctx, first)
    rows = data["validation"]
    scores_MNK = np.stack([member_scores(ctx, m.name, rows, first.batch) for m in members])
    flat_MB = jnp.asarray(scores_MNK.reshape(len(members), -1))
    together_NK = np.asarray(combined(flat_MB, cell.combine, cell.variance_coef)).reshape(
        rows["ranks"].shape
    )
    gain = float(np.mean([result.report.gain for result in results.values()]))
    report = {
        "prompts": len(data["train"]["ranks"]),
        "members": {
            m.name: ranking_report(scores_NK, rows)["accuracy"]
            for m, scores_NK in zip(members, scores_MNK, strict=True)
        },
        **disagreement(scores_MNK, rows["ranks"]),
        **ranking_report(together_NK / gain, rows, ceilings(ctx, first, rows)),
        "notes": ctx.noted([same] if (same := cell.same_runs(ctx.study)) else []),
    }
    return EnsembleResult(from_json(EnsembleReport, report))


def reward(ctx: Context, cell: Ensemble) -> Reward:
    """The members' scores combined."""
    members = [member(ctx, ctx.study[name]) for name in cell.members]
    cfgs = [ctx.study.model_of(ctx.study[name]) for name in cell.members]
    return model_reward(members, cfgs, ctx.runtime.axes, cell.combine, cell.variance_coef)


def member_scores(ctx: Context, name: str, rows: Arrays, batch: int) -> np.ndarray:
    """Normalised scores (N, K) of one member."""
    reward = ctx.reward(name)

    @jax.jit
    def score(arrays: Any, b: dict[str, jax.Array]) -> jax.Array:
        N, K, R = b["mask"].shape
        axes = ctx.runtime.axes
        mask_BR = b["mask"].reshape(N * K, R, out_sharding=axes.spec("batch", None))
        scores_B = reward.score(arrays, flattened(b, axes), mask_BR)
        return scores_B.reshape(N, K, out_sharding=axes.spec("batch", None))

    return over_rows(ctx, lambda b: score(reward.arrays, b), rows, batch)


def disagreement(scores_MNK: np.ndarray, ranks_NK: np.ndarray) -> dict[str, float]:
    """`disagreement`: the standard deviation of the members' normalised scores of a completion, on
    average; `unanimous`: the share of untied pairs that all members rank alike (equal scores are a
    rank of their own)."""
    prompt, winner, loser = untied_pairs(ranks_NK)
    order_MP = np.sign(scores_MNK[:, prompt, winner] - scores_MNK[:, prompt, loser])
    return {
        "disagreement": float(scores_MNK.std(axis=0)[ranks_NK >= 0].mean()),
        "unanimous": float(np.mean((order_MP == order_MP[0]).all(0))),
    }
