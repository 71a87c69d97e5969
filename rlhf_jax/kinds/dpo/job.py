"""Direct preference optimisation cells: a policy learns from rankings without a reward model."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.evals.heldout import heldout_loss
from rlhf_jax.evals.rankings import label_notes, ranking_report
from rlhf_jax.evals.results import HeldOut
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.dpo.cell import DPO
from rlhf_jax.kinds.dpo.result import DPOResult, Preferences
from rlhf_jax.kinds.rankings import AGREE, Arrays, ceilings, over_rows, rankings, training_batches
from rlhf_jax.model import decays
from rlhf_jax.objectives import preference_loss, preference_optimisation, ranked_log_probs
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.results import from_json
from rlhf_jax.train import init_state, make_train_step, train

# Sums over prompts with an untied pair, reported as means.
MEANS = (
    "accuracy",
    "margin",
    "chosen_log_prob",
    "rejected_log_prob",
    "chosen_log_ratio",
    "rejected_log_ratio",
)


def run(ctx: Context, cell: DPO) -> DPOResult:
    """Train on the training comparisons, report on the held-out ones. The reference is the policy
    that training starts from; its log-probs of the compared completions are computed once,
    before."""
    run, cfg = ctx.runtime, ctx.model
    if cell.beta <= 0:
        raise ConfigError(f"{cell.name}.beta = {cell.beta}; it must be above 0")
    data = rankings(ctx, cell)
    policy = ctx.language_model(cell.policy)
    log_probs = jax.jit(lambda p, b: ranked_log_probs(p, b, cfg, run.axes))
    ctx.beat.progress(phase="log-probs of the reference")
    for rows in data.values():
        rows["reference"] = over_rows(ctx, lambda b: log_probs(policy, b), rows, cell.batch)
    steps, batch_at = training_batches(ctx, cell, data["train"], "reference")

    def objective(params: Any, batch: dict[str, jax.Array]) -> Any:
        return preference_optimisation(params, batch, cfg, run.axes, cell.loss, cell.beta)

    def row(metrics: dict[str, float], totals: dict[str, float]) -> dict[str, float]:
        weight = max(metrics["weight"], 1.0)
        means = {k: metrics[k] / weight for k in MEANS}
        return {k: metrics[k] for k in ("loss", "lr", "grad_norm")} | means

    state = init_state(policy, cell.optim, steps)
    step = make_train_step(objective, cell.optim, partial(decays, cfg), run.axes, run.accumulate)
    trained = train(ctx.folder, state, step, batch_at, steps, run, row, ctx.beat).params
    ctx.beat.progress(phase="held-out report")
    rows = data["validation"]
    after = over_rows(ctx, lambda b: log_probs(trained, b), rows, cell.batch)
    limits = ceilings(ctx, cell, rows)
    report = {
        "steps": steps,
        "prompts": len(data["train"]["ranks"]),
        **heldout_preferences(after, rows, cell, limits),
        "notes": ctx.noted(label_notes(data["train"]["ranks"], rows["ranks"], limits.get(AGREE))),
    }
    heldout = heldout_loss(trained, cfg, ctx.corpus, run, cell.batch)
    return DPOResult(from_json(Preferences, report), from_json(HeldOut, heldout))


def heldout_preferences(
    log_probs_NK: np.ndarray, rows: Arrays, cell: DPO, more_baselines: dict[str, float]
) -> dict[str, Any]:
    """Loss and means over held-out prompts, and the report on the implicit reward as a score."""
    after, before, ranks = (
        jnp.asarray(x) for x in (log_probs_NK, rows["reference"], rows["ranks"])
    )
    total, weight, sums = preference_loss(after, before, ranks, cell.loss, cell.beta)
    n = max(float(weight), 1.0)
    means = {k: float(sums[k]) / n for k in MEANS}
    implicit_NK = cell.beta * (log_probs_NK - rows["reference"])
    return {"loss": float(total) / n, **means, **ranking_report(implicit_NK, rows, more_baselines)}
