"""The one place that scores given tokens: log-probabilities, entropies, values and rewards.

Rows are `Sequences`. The logits of all positions are never held at once where they are large
(`map_logits`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.data.tokenizer import PAD
from rlhf_jax.model.axes import Axes
from rlhf_jax.model.network import forward, init_cache, logits, scalars
from rlhf_jax.study.config import ModelConfig

LOGITS_BYTES = 2**28  # of float32 logits on a device at once


class Sequences(NamedTuple):
    """Rows of tokens as every model scores them."""

    tokens_BT: jax.Array
    segments_BT: jax.Array  # 0 on padding
    positions_BT: jax.Array


def positions_of(segments_BT: jax.Array) -> jax.Array:
    """Position ids of rows of one segment, padded on either side: cumsum(mask) - mask."""
    return jnp.cumsum(segments_BT, axis=-1) - segments_BT


def padded_rows(tokens_BP: jax.Array) -> Sequences:
    """Prompts padded with PAD, which is no token of theirs."""
    segments_BP = (tokens_BP != PAD).astype(jnp.int32)
    return Sequences(tokens_BP, segments_BP, positions_of(segments_BP))


def join(prompts_BP: jax.Array, tokens_BR: jax.Array, mask_BR: jax.Array) -> Sequences:
    """Prompts and responses as rows of P + R tokens, with the positions that the sampler used."""
    segments_BT = jnp.concatenate([prompts_BP != PAD, mask_BR > 0], axis=1).astype(jnp.int32)
    tokens_BT = jnp.concatenate([prompts_BP, tokens_BR], axis=1)
    return Sequences(tokens_BT, segments_BT, positions_of(segments_BT))


# --- log-probabilities ---------------------------------------------------------------------------


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


def map_logits(
    of: Callable[[jax.Array, jax.Array], Any],
    params: Any,
    cfg: ModelConfig,
    x_DBT: jax.Array,
    targets_BT: jax.Array,
    axes: Axes,
) -> Any:
    """`of(logits_VBT, targets_BT)`, arrays BT, of hidden states. Where the logits of all positions
    would take more than `LOGITS_BYTES` of a device, they are made one block of positions at a time,
    and made again in the backward pass."""

    def block(x_DBT: jax.Array, targets_BT: jax.Array) -> Any:
        return of(logits(params, cfg, x_DBT, axes), targets_BT)

    def split(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a.reshape(*a.shape[:-1], blocks, T // blocks), -2, 0)

    B, T = targets_BT.shape
    devices = max(1, jax.sharding.get_abstract_mesh().size)
    fewest = math.ceil(4 * cfg.vocab * B * T / devices / LOGITS_BYTES)
    blocks = next(n for n in range(min(fewest, T), T + 1) if T % n == 0)
    if blocks == 1:
        return block(x_DBT, targets_BT)
    each = jax.checkpoint(block)
    found = jax.lax.map(lambda parts: each(*parts), (split(x_DBT), split(targets_BT)))

    def whole(of_nBt: jax.Array) -> jax.Array:
        return jnp.moveaxis(of_nBt, 0, 1).reshape(B, T, out_sharding=axes.spec("batch", None))

    return jax.tree.map(whole, found)


def target_log_probs(
    params: Any, cfg: ModelConfig, x_DBT: jax.Array, targets_BT: jax.Array, axes: Axes
) -> jax.Array:
    """log p(target), BT, of hidden states."""
    return map_logits(token_log_probs, params, cfg, x_DBT, targets_BT, axes)  # type: ignore[no-any-return]


def response_states(
    params: Any, cfg: ModelConfig, rows: Sequences, length: int, axes: Axes
) -> jax.Array:
    """Hidden states x_DBR in which the last `length` tokens of each row are chosen."""
    x_DBT, _ = forward(params, cfg, *rows, axes, last=length + 1)
    return x_DBT[..., :-1]


def log_probs_of_states(
    params: Any,
    cfg: ModelConfig,
    x_DBR: jax.Array,
    rows: Sequences,
    temperature: jax.Array | float,
    axes: Axes,
) -> tuple[jax.Array, jax.Array]:
    """(log-probs_BR, entropy_BR) in nats of the tokens that were chosen in these states."""

    def of(logits_VBR: jax.Array, tokens_BR: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_VBR /= temperature
        p_VBR = jax.nn.softmax(logits_VBR, axis=0)
        entropy_BR = jax.nn.logsumexp(logits_VBR, axis=0) - jnp.sum(p_VBR * logits_VBR, axis=0)
        return token_log_probs(logits_VBR, tokens_BR), entropy_BR

    tokens_BR = rows.tokens_BT[:, -x_DBR.shape[-1] :]
    return map_logits(of, params, cfg, x_DBR, tokens_BR, axes)  # type: ignore[no-any-return]


def response_log_probs(
    params: Any,
    cfg: ModelConfig,
    rows: Sequences,
    length: int,
    temperature: jax.Array | float,
    axes: Axes,
) -> tuple[jax.Array, jax.Array]:
    """(log-probs_BR, entropy_BR) in nats of the last `length` tokens of each row, teacher-forced,
    of logits / temperature: the distribution that `sampler.generate` samples from."""
    x_DBR = response_states(params, cfg, rows, length, axes)
    return log_probs_of_states(params, cfg, x_DBR, rows, temperature, axes)


def completion_log_probs(
    params: Any, cfg: ModelConfig, rows: Sequences, mask_BR: jax.Array, axes: Axes
) -> jax.Array:
    """log p in nats, B, of the last R tokens of each row, of those with mask 1."""
    R = mask_BR.shape[1]
    x_DBR = response_states(params, cfg, rows, R, axes)
    log_probs_BR = target_log_probs(params, cfg, x_DBR, rows.tokens_BT[:, -R:], axes)
    return jnp.sum(jnp.where(mask_BR > 0, log_probs_BR, 0.0), axis=-1)


def choice_log_probs(
    params: Any, cfg: ModelConfig, prompts_BP: jax.Array, choices_BKA: jax.Array, axes: Axes
) -> jax.Array:
    """Log-probability BK in nats of each choice's tokens after its prompt; the choices of a prompt
    share its prefill. Prompts are padded on the left, choices on the right; a choice of padding
    alone has 0."""
    B, P = prompts_BP.shape
    K, A = choices_BKA.shape[1:]
    empty = init_cache(cfg, B, P + A, axes)
    prompts = padded_rows(prompts_BP)
    x_DB1, cache = forward(params, cfg, *prompts, axes, empty, last=1)
    rows_N = jnp.arange(B * K) // K  # the prompt of each choice
    cache = cache.repeated(rows_N, axes)
    choices_NA = choices_BKA.reshape(B * K, A, out_sharding=axes.spec("batch", None))
    mask_NA = (choices_NA != PAD).astype(jnp.int32)
    start_N = jnp.sum(prompts.segments_BT, axis=-1).at[rows_N].get(out_sharding=axes.spec("batch"))
    positions_NA = (start_N[:, None] + jnp.arange(A)) * mask_NA
    x_DNA, _ = forward(params, cfg, choices_NA, mask_NA, positions_NA, axes, cache)
    last_DN1 = x_DB1.at[:, rows_N].get(out_sharding=axes.spec(None, "batch", None))
    x_DNA = jnp.concatenate([last_DN1, x_DNA[..., :-1]], axis=-1)
    log_probs_NA = target_log_probs(params, cfg, x_DNA, choices_NA, axes)
    total_N = jnp.sum(log_probs_NA * mask_NA, axis=-1)
    return total_N.reshape(B, K, out_sharding=axes.spec("batch", None))


# --- values and rewards --------------------------------------------------------------------------


def response_values(
    params: Any, cfg: ModelConfig, rows: Sequences, length: int, axes: Axes
) -> jax.Array:
    """V_BR: a critic's value of the state in which each of the last `length` tokens is chosen."""
    return scalars(params, response_states(params, cfg, rows, length, axes))


def row_scores(
    params: Any,
    cfg: ModelConfig,
    rows: Sequences,
    last_B: jax.Array,
    axes: Axes,
    length: int | None = None,
) -> jax.Array:
    """A reward model's score B of each row, read at position `last_B` of its last `length` tokens
    (None: of all of them)."""
    x_DBT, _ = forward(params, cfg, *rows, axes, last=length)
    scores_BT = scalars(params, x_DBT)
    here_BT = jnp.arange(scores_BT.shape[1])[None] == last_B[:, None]
    return jnp.sum(jnp.where(here_BT, scores_BT, 0.0), axis=-1)
