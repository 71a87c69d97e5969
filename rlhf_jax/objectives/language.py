"""Next-token losses: pretraining and supervised fine-tuning differ only in their weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.config import ModelConfig
from rlhf_jax.model import Axes, forward, logits

Batch = dict[str, jax.Array]


def token_log_probs(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """log p(target), BT. The target's logit is picked by comparison rather than by a gather, which
    stays local when the vocabulary is sharded."""
    vocab = jax.lax.broadcasted_iota(jnp.int32, (1, 1, logits_BTV.shape[-1]), 2)
    hit_BTV = targets_BT[..., None] == vocab
    target_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1)
    return target_BT - jax.nn.logsumexp(logits_BTV, axis=-1)


def language_modelling(
    params: Any, batch: Batch, cfg: ModelConfig, axes: Axes
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Negative log-likelihood in nats, summed over weighted targets. `batch` holds BT arrays tokens,
    targets, segments, positions, weights and bytes (UTF-8 bytes of each weighted target)."""
    x_BTD, _ = forward(params, cfg, batch["tokens"], batch["segments"], batch["positions"], axes)
    nll_BT = -token_log_probs(logits(params, cfg, x_BTD, axes), batch["targets"])
    total = jnp.sum(nll_BT * batch["weights"])
    return total, jnp.sum(batch["weights"]), {"bytes": jnp.sum(batch["bytes"]).astype(jnp.float32)}
