"""Next-token losses: pretraining and supervised fine-tuning differ only in their weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.model import Axes, forward
from rlhf_jax.model.scoring import target_log_probs
from rlhf_jax.study.config import ModelConfig

Batch = dict[str, jax.Array]


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
