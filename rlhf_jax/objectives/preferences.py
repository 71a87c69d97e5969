"""Preference optimisation without a reward model: the policy's own log-ratios are the scores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.model import Axes
from rlhf_jax.model.scoring import completion_log_probs
from rlhf_jax.objectives.rankings import (
    Batch,
    beats,
    best,
    differences,
    flattened,
    over_pairs,
    ranking_loss,
    worst,
)
from rlhf_jax.study.config import ConfigError, ModelConfig


def ranked_log_probs(params: Any, batch: Batch, cfg: ModelConfig, axes: Axes) -> jax.Array:
    """log p_NK in nats of the K completions of N prompts, EOS included. `batch` holds NKT arrays
    tokens, segments, positions, and `mask` NKR, 1 on the real ones of the R tokens at the end of
    each row."""
    N, K, R = batch["mask"].shape
    mask_BR = batch["mask"].reshape(N * K, R, out_sharding=axes.spec("batch", None))
    log_probs_B = completion_log_probs(params, cfg, flattened(batch, axes), mask_BR, axes)
    return log_probs_B.reshape(N, K, out_sharding=axes.spec("batch", None))


def preference_loss(
    log_probs_NK: jax.Array,
    reference_NK: jax.Array,
    ranks_NK: jax.Array,
    loss: str = "dpo",
    beta: float = 0.1,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(sum, weight, metrics) over prompts, of log-probs of completions under the policy and the
    reference.

    `dpo` is the K-wise loss with the implicit reward beta log(pi / pi_0) for a score (Rafailov et
    al. 2023, eq. 7). `ipo` is the mean over untied pairs of (h_w - h_l - 1 / (2 beta))^2 with
    h = log(pi / pi_0) (Azar et al. 2023, eq. 17).

    Metrics, summed over prompts: accuracy of the implicit reward; margin, its mean difference over
    untied pairs; log pi, and log(pi / pi_0), of the best-ranked and the worst-ranked completions.
    """
    ratio_NK = log_probs_NK - reference_NK
    total, weight, metrics = ranking_loss(beta * ratio_NK, ranks_NK)
    wins_NKK = beats(ranks_NK)
    gap_N = over_pairs(differences(ratio_NK), wins_NKK)
    if loss == "ipo":
        error_NKK = differences(ratio_NK) - 0.5 / beta
        total = jnp.sum(over_pairs(jnp.square(error_NKK), wins_NKK))
    elif loss != "dpo":
        raise ConfigError(f"loss = {loss!r}; expected dpo or ipo")
    learns_N1 = (jnp.sum(wins_NKK, axis=(1, 2)) > 0).astype(jnp.float32)[:, None]
    chosen_NK, rejected_NK = best(ranks_NK) * learns_N1, worst(ranks_NK) * learns_N1
    return (
        total,
        weight,
        {
            **metrics,
            "margin": beta * jnp.sum(gap_N),
            "chosen_log_prob": jnp.sum(chosen_NK * log_probs_NK),
            "rejected_log_prob": jnp.sum(rejected_NK * log_probs_NK),
            "chosen_log_ratio": jnp.sum(chosen_NK * ratio_NK),
            "rejected_log_ratio": jnp.sum(rejected_NK * ratio_NK),
        },
    )


def preference_optimisation(
    params: Any, batch: Batch, cfg: ModelConfig, axes: Axes, loss: str = "dpo", beta: float = 0.1
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """`preference_loss` of a policy. One prompt is one element, with K forward passes; `batch` is
    that of `ranked_log_probs`, with NK arrays `ranks` and `reference`, the log-probs of the
    completions under the policy that training started from."""
    log_probs_NK = ranked_log_probs(params, batch, cfg, axes)
    return preference_loss(log_probs_NK, batch["reference"], batch["ranks"], loss, beta)
