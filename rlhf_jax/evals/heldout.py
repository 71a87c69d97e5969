"""The loss that enters fits: one fixed set of held-out tokens, the same for every cell."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import ModelConfig
from rlhf_jax.data.corpus import Corpus
from rlhf_jax.model import forward
from rlhf_jax.objectives import target_log_probs
from rlhf_jax.parallel import place_batch
from rlhf_jax.train import Runtime


def ratio_with_error(total: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """sum(total) / sum(weight) over clusters, and its standard error by linearisation (Cochran 1977,
    ratio estimator): tokens of a row are not independent, rows nearly are."""
    ratio = float(total.sum() / weight.sum())
    n = len(total)
    residual = total - ratio * weight
    return ratio, float(np.sqrt(n / max(n - 1, 1) * np.sum(residual**2)) / weight.sum())


def heldout_loss(
    params: Any, cfg: ModelConfig, corpus: Corpus, runtime: Runtime, batch: int = 32
) -> dict[str, float]:
    """Nats per token and bits per byte on the fixed held-out rows, with standard errors over rows."""

    @jax.jit
    def row_nats(params: Any, b: dict[str, jax.Array]) -> jax.Array:
        x_DBT, _ = forward(params, cfg, b["tokens"], b["segments"], b["positions"], runtime.axes)
        log_probs_BT = target_log_probs(params, cfg, x_DBT, b["targets"], runtime.axes)
        return -jnp.sum(log_probs_BT * b["weights"], axis=-1)

    nats, tokens, size = [], [], []
    for rows in corpus.heldout(batch):
        nats.append(np.asarray(jax.device_get(row_nats(params, place_batch(rows, runtime.mesh)))))
        tokens.append(rows["weights"].sum(-1))
        size.append(rows["bytes"].sum(-1))
    nats_R = np.concatenate(nats).astype(np.float64)
    tokens_R, bytes_R = np.concatenate(tokens), np.concatenate(size)
    keep = tokens_R > 0
    loss, error = ratio_with_error(nats_R[keep], tokens_R[keep])
    bits, bits_error = ratio_with_error(nats_R[keep] / math.log(2), bytes_R[keep])
    return {
        "loss": loss,
        "stderr": error,
        "bits_per_byte": bits,
        "bits_per_byte_stderr": bits_error,
        "tokens": int(tokens_R.sum()),
    }
