"""The loss that enters fits: one fixed set of held-out tokens, the same for every cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.corpus import Corpus
from rlhf_jax.model import forward
from rlhf_jax.model.scoring import map_logits, token_log_probs
from rlhf_jax.model.sharding import place_batch, whole_rows
from rlhf_jax.study.config import ModelConfig
from rlhf_jax.train import Runtime


def ratio_with_error(total: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """sum(total) / sum(weight) over clusters, and its standard error by linearisation (Cochran
    1977, ratio estimator): tokens of a row are not independent, rows nearly are."""
    ratio = float(total.sum() / weight.sum())
    n = len(total)
    residual = total - ratio * weight
    return ratio, float(np.sqrt(n / max(n - 1, 1) * np.sum(residual**2)) / weight.sum())


class HeldoutRows(NamedTuple):
    """The held-out tokens, by row (R,) and by token (n,)."""

    nats_R: np.ndarray
    tokens_R: np.ndarray
    bytes_R: np.ndarray
    confidence_n: np.ndarray  # probability of the likeliest next token
    right_n: np.ndarray  # 1 if it came, 1/m if one of m equally likely ones did, else 0

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats_R.sum() / self.tokens_R.sum())

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats_R.sum() / math.log(2) / self.bytes_R.sum())


def heldout_loss(
    params: Any, cfg: ModelConfig, corpus: Corpus, runtime: Runtime, batch: int = 32
) -> dict[str, float]:
    """Nats per token and bits per byte on the fixed held-out rows, with standard errors over
    rows."""
    rows = _scored_rows(token_log_probs, params, cfg, corpus, runtime, batch)
    loss, error = ratio_with_error(rows.nats_R, rows.tokens_R)
    bits, bits_error = ratio_with_error(rows.nats_R / math.log(2), rows.bytes_R)
    return {
        "loss": loss,
        "stderr": error,
        "bits_per_byte": bits,
        "bits_per_byte_stderr": bits_error,
        "tokens": int(rows.tokens_R.sum()),
    }


def heldout_rows(
    params: Any, cfg: ModelConfig, corpus: Corpus, runtime: Runtime, batch: int = 16
) -> HeldoutRows:
    """The rows behind `heldout_loss`, and for each token whether the likeliest one was right."""
    return _scored_rows(_with_likeliest, params, cfg, corpus, runtime, batch)


def _with_likeliest(
    logits_VBT: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """BT: log p of the targets, the probability of the likeliest tokens, and whether the target is
    one of them (1/m of m)."""
    largest_BT = jnp.max(logits_VBT, axis=0)
    top_BT = largest_BT - jax.nn.logsumexp(logits_VBT, axis=0)
    tied_VBT = (logits_VBT == largest_BT).astype(jnp.float32)
    ids_VBT = jax.lax.broadcasted_iota(jnp.int32, tied_VBT.shape, 0)
    came_BT = jnp.sum(jnp.where(ids_VBT == targets_BT, tied_VBT, 0.0), axis=0)
    right_BT = came_BT / jnp.sum(tied_VBT, axis=0)
    return token_log_probs(logits_VBT, targets_BT), jnp.exp(top_BT), right_BT


def _scored_rows(
    of: Callable[[jax.Array, jax.Array], Any],
    params: Any,
    cfg: ModelConfig,
    corpus: Corpus,
    runtime: Runtime,
    batch: int,
) -> HeldoutRows:
    """`of(logits, targets)` gives log p of the targets, and perhaps more of each token."""
    axes = runtime.axes

    @jax.jit
    def score(params: Any, b: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        x_DBT, _ = forward(params, cfg, b["tokens"], b["segments"], b["positions"], axes)
        log_probs_BT, *more = jax.tree.leaves(
            map_logits(of, params, cfg, x_DBT, b["targets"], axes)
        )
        return -jnp.sum(log_probs_BT * b["weights"], axis=-1), *more

    found = []
    for rows in corpus.heldout(whole_rows(max(1, batch // runtime.accumulate), runtime.mesh)):
        nats_B, *more = jax.device_get(score(params, place_batch(rows, runtime.mesh)))
        used = rows["weights"] > 0
        some = used.any(-1)
        sums = (nats_B.astype(np.float64), rows["weights"].sum(-1), rows["bytes"].sum(-1))
        found.append([*(x[some] for x in sums), *(x[used] for x in more)])
    columns = [np.concatenate(x) for x in zip(*found, strict=True)]
    return HeldoutRows(*columns, *[np.zeros(0)] * (len(HeldoutRows._fields) - len(columns)))


def tax(before: HeldoutRows, after: HeldoutRows) -> dict[str, Any]:
    """Held-out loss after less before, in nats per token and bits per byte, with 95% intervals over
    paired rows. Positive: worse after."""
    nats_R = after.nats_R - before.nats_R
    found: dict[str, Any] = {}
    for name, total_R, weight_R in (
        ("nats_per_token", nats_R, before.tokens_R),
        ("bits_per_byte", nats_R / math.log(2), before.bytes_R),
    ):
        value, error = ratio_with_error(total_R, weight_R)
        found[name] = value
        found[f"{name}_interval"] = (value - 1.96 * error, value + 1.96 * error)
    return found
