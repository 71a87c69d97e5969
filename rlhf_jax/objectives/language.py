"""Next-token losses: pretraining and supervised fine-tuning differ only in their weights."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.model import Axes, forward, logits
from rlhf_jax.study.config import ModelConfig

Batch = dict[str, jax.Array]
LOGITS_BYTES = 2**28  # of float32 logits on a device at once


@jax.custom_vjp
def token_log_probs(logits_VBT: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """log p(target), BT. The target's logit is picked by comparison rather than by a gather, which
    stays local when the vocabulary is sharded. The backward pass keeps the logits alone."""
    return _forward(logits_VBT, targets_BT)[0]


def _hit(logits_VBT: jax.Array, targets_BT: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, (logits_VBT.shape[0], 1, 1), 0) == targets_BT


def _forward(logits_VBT: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, Any]:
    norm_BT = jax.nn.logsumexp(logits_VBT, axis=0)
    target_BT = jnp.sum(jnp.where(_hit(logits_VBT, targets_BT), logits_VBT, 0.0), axis=0)
    return target_BT - norm_BT, (logits_VBT, targets_BT, norm_BT)


def _backward(saved: Any, g_BT: jax.Array) -> tuple[jax.Array, None]:
    logits_VBT, targets_BT, norm_BT = saved
    p_VBT = jnp.exp(logits_VBT - norm_BT)
    return (_hit(logits_VBT, targets_BT) - p_VBT) * g_BT, None


token_log_probs.defvjp(_forward, _backward)


def target_log_probs(
    params: Any, cfg: ModelConfig, x_DBT: jax.Array, targets_BT: jax.Array, axes: Axes
) -> jax.Array:
    """log p(target), BT, of hidden states. Where the logits of all positions would take more than
    `LOGITS_BYTES` of a device, they are made one block of positions at a time, and made again in
    the backward pass."""

    def block(x_DBT: jax.Array, targets_BT: jax.Array) -> jax.Array:
        return token_log_probs(logits(params, cfg, x_DBT, axes), targets_BT)

    def split(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a.reshape(*a.shape[:-1], blocks, T // blocks), -2, 0)

    B, T = targets_BT.shape
    devices = max(1, jax.sharding.get_abstract_mesh().size)
    fewest = math.ceil(4 * cfg.vocab * B * T / devices / LOGITS_BYTES)
    blocks = next(n for n in range(min(fewest, T), T + 1) if T % n == 0)
    if blocks == 1:
        return block(x_DBT, targets_BT)
    each = jax.checkpoint(block)
    of_nBt = jax.lax.map(lambda of: each(*of), (split(x_DBT), split(targets_BT)))
    return jnp.moveaxis(of_nBt, 0, 1).reshape(B, T, out_sharding=axes.spec("batch", None))


def language_modelling(
    params: Any, batch: Batch, cfg: ModelConfig, axes: Axes
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Negative log-likelihood in nats, summed over weighted targets. `batch` holds BT arrays
    tokens, targets, segments, positions, weights and bytes (UTF-8 bytes of each weighted
    target)."""
    x_DBT, _ = forward(params, cfg, batch["tokens"], batch["segments"], batch["positions"], axes)
    nll_BT = -target_log_probs(params, cfg, x_DBT, batch["targets"], axes)
    total = jnp.sum(nll_BT * batch["weights"])
    return total, jnp.sum(batch["weights"]), {"bytes": jnp.sum(batch["bytes"]).astype(jnp.float32)}
