"""Reward-model losses on rankings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.config import ModelConfig
from rlhf_jax.model import Axes, forward, scalars

Batch = dict[str, jax.Array]


def ranked_scores(params: Any, batch: Batch, cfg: ModelConfig, axes: Axes) -> jax.Array:
    """Scores_NK of the K completions of N prompts, each read at its last real token. `batch` holds
    NKT arrays tokens, segments, positions, and `last` NK."""
    N, K, T = batch["tokens"].shape
    flat = {
        k: batch[k].reshape(N * K, T, out_sharding=axes.spec("batch", None))
        for k in ("tokens", "segments", "positions")
    }
    x_DBT, _ = forward(params, cfg, flat["tokens"], flat["segments"], flat["positions"], axes)
    scores_NKT = scalars(params, x_DBT).reshape(
        N, K, T, out_sharding=axes.spec("batch", None, None)
    )
    here_NKT = jnp.arange(T)[None, None] == batch["last"][..., None]
    return jnp.sum(jnp.where(here_NKT, scores_NKT, 0.0), axis=-1)


def kwise(
    params: Any, batch: Batch, cfg: ModelConfig, axes: Axes
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The K-wise loss (Ouyang et al. 2022, eq. 1): the mean of -log sigmoid(r_w - r_l) over a prompt's
    untied pairs; one prompt is one element, K forward passes serve all its pairs. `ranks` NK, lower is
    better, negative where a prompt has fewer than K completions. Metrics: pairs ranked right."""
    scores_NK = ranked_scores(params, batch, cfg, axes)
    ranks_NK = batch["ranks"]
    present_NK = ranks_NK >= 0
    wins_NKK = (
        (ranks_NK[:, :, None] < ranks_NK[:, None, :])
        & present_NK[:, :, None]
        & present_NK[:, None, :]
    ).astype(jnp.float32)
    margin_NKK = scores_NK[:, :, None] - scores_NK[:, None, :]
    pairs_N = jnp.sum(wins_NKK, axis=(1, 2))
    share_N = 1.0 / jnp.maximum(pairs_N, 1.0)
    loss_N = jnp.sum(wins_NKK * -jax.nn.log_sigmoid(margin_NKK), axis=(1, 2)) * share_N
    right_N = jnp.sum(wins_NKK * (margin_NKK > 0), axis=(1, 2)) * share_N
    return (
        jnp.sum(loss_N),
        jnp.sum((pairs_N > 0).astype(jnp.float32)),
        {"accuracy": jnp.sum(right_N)},
    )
