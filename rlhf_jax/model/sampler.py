"""The one sampler: prefill the prompts, then a fused decode loop over a KV cache that ends early
when every row has stopped. Training rollouts, comparisons, evaluation and the command line all use
it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.data.tokenizer import EOS, PAD  # PAD is never EOS
from rlhf_jax.model import Axes, forward, init_cache, logits
from rlhf_jax.objectives import token_log_probs
from rlhf_jax.study.config import ConfigError, ModelConfig


class Samples(NamedTuple):
    """Responses of R tokens: PAD after the first EOS."""

    tokens_BR: jax.Array
    log_probs_BR: jax.Array  # of the sampled tokens at the sampling temperature; 0 on PAD
    mask_BR: jax.Array  # 1 up to and including EOS
    logits_BV: jax.Array  # of the first response token


def positions_of(segments_BT: jax.Array) -> jax.Array:
    """Position ids of (left-)padded rows: cumsum(mask) - mask."""
    return jnp.cumsum(segments_BT, axis=-1) - segments_BT


def sample_keys(key: jax.Array, items_B: jax.Array, samples_BS: jax.Array, axes: Axes) -> jax.Array:
    """Keys (B x S) of samples of prompts, prompt by prompt: functions of (key, number of the
    prompt, number of the sample) alone."""
    samples_N = axes.constrain(samples_BS, None, None).ravel()
    items_N = jnp.repeat(axes.constrain(items_B, None), samples_BS.shape[1])
    of = lambda item, sample: jax.random.fold_in(jax.random.fold_in(key, item), sample)  # noqa: E731
    return jax.vmap(of)(items_N, samples_N)


def generate(
    params: Any,
    cfg: ModelConfig,
    prompts_BP: jax.Array,
    key: jax.Array,
    *,
    length: int,
    temperature: jax.Array | float,
    axes: Axes,
    samples: int = 1,
) -> Samples:
    """Sample `samples` responses of at most `length` tokens to each prompt (left-padded with PAD).

    Rows come out prompt by prompt; the prefill is shared by the samples of a prompt. `key` is a key
    for each row (`sample_keys`), or one for all, of which row b takes fold_in(key, b). A row draws
    its t-th token with its key and t alone, whatever is sampled beside it. Temperature 0 is greedy,
    and its log-probs are then those at temperature 1. Jit-compatible; no top-k or top-p, so
    log-probs are the policy's own.

    Raises:
        ConfigError: fewer than one token or sample, a temperature that is negative or not finite,
            or rows past the model's table of learned positions, which would be read at its end.
    """
    if isinstance(temperature, int | float) and not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature = {temperature}; expected a finite number of at least 0")
    if min(length, samples) < 1:
        raise ConfigError(f"length = {length}, samples = {samples}; expected at least 1 of each")
    B0, P = prompts_BP.shape
    if cfg.positions == "learned" and P + length > cfg.max_positions:
        raise ConfigError(
            f"rows of {P} + {length} tokens, but the model has a table of {cfg.max_positions} "
            "positions"
        )
    segments_BP = (prompts_BP != PAD).astype(jnp.int32)
    empty = init_cache(cfg, B0, P + length, axes)
    x_DB1, cache = forward(
        params, cfg, prompts_BP, segments_BP, positions_of(segments_BP), axes, empty, last=1
    )
    assert cache is not None
    first_BV = logits(params, cfg, x_DB1, axes)[..., 0].T

    rows_B = jnp.arange(B0 * samples) // samples
    first_BV = first_BV.at[rows_B].get(out_sharding=axes.spec("batch", "vocab"))
    next_B = jnp.sum(segments_BP, axis=-1).at[rows_B].get(out_sharding=axes.spec("batch"))
    cache = cache.repeated(rows_B, axes)
    B = B0 * samples
    row_keys_B = key if key.ndim else jax.vmap(lambda b: jax.random.fold_in(key, b))(jnp.arange(B))
    keys_B = axes.constrain(row_keys_B, "batch")
    safe = jnp.where(temperature > 0, temperature, 1.0)

    def draw(t: jax.Array, logits_BV: jax.Array, done_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise_BV = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, t), (cfg.vocab,)))(
            keys_B
        )
        scaled_BV = logits_BV / safe
        noise_BV = axes.constrain(noise_BV, "batch", "vocab")
        noisy_BV = jnp.where(temperature > 0, scaled_BV + noise_BV, scaled_BV)
        # The first largest, as argmax has it: two plain reductions are a fraction of its time on a
        # CPU.
        ids_BV = jax.lax.broadcasted_iota(jnp.int32, noisy_BV.shape, 1)
        largest_BV = noisy_BV == jnp.max(noisy_BV, axis=-1, keepdims=True)
        token_B = jnp.min(jnp.where(largest_BV, ids_BV, cfg.vocab), axis=-1)
        chosen_B = jnp.sum(jnp.where(ids_BV == token_B[:, None], scaled_BV, 0.0), axis=-1)
        log_prob_B = chosen_B - jax.nn.logsumexp(scaled_BV, axis=-1)
        return jnp.where(done_B, PAD, token_B), jnp.where(done_B, 0.0, log_prob_B)

    def going(carry: Any) -> jax.Array:
        return (carry[0] < length) & ~jnp.all(carry[1])

    def step(carry: Any) -> Any:
        t, done_B, logits_BV, cache, tokens_BR, log_probs_BR, mask_BR = carry
        token_B, log_prob_B = draw(t, logits_BV, done_B)
        put = lambda out, x: jax.lax.dynamic_update_slice(out, x[:, None].astype(out.dtype), (0, t))  # noqa: E731
        tokens_BR, log_probs_BR = put(tokens_BR, token_B), put(log_probs_BR, log_prob_B)
        mask_BR = put(mask_BR, ~done_B)
        alive_B1 = (~done_B)[:, None].astype(jnp.int32)
        position_B1 = jnp.where(alive_B1 > 0, (next_B + t)[:, None], 0)
        x_DB1, cache = forward(params, cfg, token_B[:, None], alive_B1, position_B1, axes, cache)
        done_B |= token_B == EOS
        logits_BV = logits(params, cfg, x_DB1, axes)[..., 0].T
        return t + 1, done_B, logits_BV, cache, tokens_BR, log_probs_BR, mask_BR

    done_B = next_B < 0
    blank_BR = axes.constrain(jnp.zeros((B, length)), "batch", None)
    carry = (jnp.int32(0), done_B, first_BV, cache, blank_BR.astype(jnp.int32), blank_BR, blank_BR)
    carry = jax.lax.while_loop(going, step, carry)
    return Samples(carry[4], carry[5], carry[6], first_BV)


class Sequences(NamedTuple):
    """Prompts and their responses side by side, as every model scores them."""

    tokens_BT: jax.Array
    segments_BT: jax.Array
    positions_BT: jax.Array


def join(prompts_BP: jax.Array, tokens_BR: jax.Array, mask_BR: jax.Array) -> Sequences:
    """Rows of P + R tokens with the positions that the sampler used."""
    segments_BT = jnp.concatenate([prompts_BP != PAD, mask_BR > 0], axis=1).astype(jnp.int32)
    tokens_BT = jnp.concatenate([prompts_BP, tokens_BR], axis=1)
    return Sequences(tokens_BT, segments_BT, positions_of(segments_BT))


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
    logits_VBR = logits(params, cfg, x_DBR, axes) / temperature
    log_probs_BR = token_log_probs(logits_VBR, rows.tokens_BT[:, -x_DBR.shape[-1] :])
    p_VBR = jax.nn.softmax(logits_VBR, axis=0)
    entropy_BR = jax.nn.logsumexp(logits_VBR, axis=0) - jnp.sum(p_VBR * logits_VBR, axis=0)
    return log_probs_BR, entropy_BR


def response_log_probs(
    params: Any,
    cfg: ModelConfig,
    rows: Sequences,
    length: int,
    temperature: jax.Array | float,
    axes: Axes,
) -> tuple[jax.Array, jax.Array]:
    """(log-probs_BR, entropy_BR) in nats of the last `length` tokens of each row, teacher-forced,
    of logits / temperature: the same distribution that `generate` samples from."""
    x_DBR = response_states(params, cfg, rows, length, axes)
    return log_probs_of_states(params, cfg, x_DBR, rows, temperature, axes)
