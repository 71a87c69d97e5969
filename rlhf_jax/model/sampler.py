"""The one sampler: prefill the prompts, then a fused decode loop over a cache that ends early when
every row has stopped. Training rollouts, comparisons, evaluation and the command line all use
it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.data.tokenizer import EOS, PAD  # PAD is never EOS
from rlhf_jax.model.axes import Axes
from rlhf_jax.model.network import forward, init_cache, logits
from rlhf_jax.model.scoring import padded_rows
from rlhf_jax.study.config import ConfigError, ModelConfig


class Samples(NamedTuple):
    """Responses of R tokens: PAD after the first EOS."""

    tokens_BR: jax.Array
    log_probs_BR: jax.Array  # of the sampled tokens at the sampling temperature; 0 on PAD
    mask_BR: jax.Array  # 1 up to and including EOS
    logits_BV: jax.Array  # of the first response token


class _Decoding(NamedTuple):
    """The state of the decode loop after t tokens."""

    t: jax.Array
    done_B: jax.Array
    logits_BV: jax.Array  # of token t
    cache: Any
    tokens_BR: jax.Array
    log_probs_BR: jax.Array
    mask_BR: jax.Array


def sample_keys(key: jax.Array, items_B: jax.Array, samples_BS: jax.Array, axes: Axes) -> jax.Array:
    """Keys (B x S) of samples of prompts, prompt by prompt: functions of (key, number of the
    prompt, number of the sample) alone."""

    def of(item: jax.Array, sample: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, item), sample)

    samples_N = axes.constrain(samples_BS, None, None).ravel()
    items_N = jnp.repeat(axes.constrain(items_B, None), samples_BS.shape[1])
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
    _check(cfg, prompts_BP.shape[1], length, samples, temperature)
    B = prompts_BP.shape[0] * samples
    first_BV, next_B, cache = _prefilled(params, cfg, prompts_BP, length, samples, axes)
    row_keys_B = key if key.ndim else jax.vmap(lambda b: jax.random.fold_in(key, b))(jnp.arange(B))
    keys_B = axes.constrain(row_keys_B, "batch")

    def put(out_BR: jax.Array, x_B: jax.Array, t: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(out_BR, x_B[:, None].astype(out_BR.dtype), (0, t))

    def step(s: _Decoding) -> _Decoding:
        token_B, log_prob_B = _drawn(s.logits_BV, keys_B, s.t, temperature, axes)
        token_B = jnp.where(s.done_B, PAD, token_B)
        log_prob_B = jnp.where(s.done_B, 0.0, log_prob_B)
        alive_B1 = (~s.done_B)[:, None].astype(jnp.int32)
        position_B1 = jnp.where(alive_B1 > 0, (next_B + s.t)[:, None], 0)
        x_DB1, cache = forward(params, cfg, token_B[:, None], alive_B1, position_B1, axes, s.cache)
        return _Decoding(
            s.t + 1,
            s.done_B | (token_B == EOS),
            logits(params, cfg, x_DB1, axes)[..., 0].T,
            cache,
            put(s.tokens_BR, token_B, s.t),
            put(s.log_probs_BR, log_prob_B, s.t),
            put(s.mask_BR, ~s.done_B, s.t),
        )

    blank_BR = axes.constrain(jnp.zeros((B, length)), "batch", None)
    tokens_BR = blank_BR.astype(jnp.int32)
    start = _Decoding(jnp.int32(0), next_B < 0, first_BV, cache, tokens_BR, blank_BR, blank_BR)
    end = jax.lax.while_loop(lambda s: (s.t < length) & ~jnp.all(s.done_B), step, start)
    return Samples(end.tokens_BR, end.log_probs_BR, end.mask_BR, first_BV)


def _check(
    cfg: ModelConfig, P: int, length: int, samples: int, temperature: jax.Array | float
) -> None:
    if isinstance(temperature, int | float) and not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature = {temperature}; expected a finite number of at least 0")
    if min(length, samples) < 1:
        raise ConfigError(f"length = {length}, samples = {samples}; expected at least 1 of each")
    if cfg.positions == "learned" and P + length > cfg.max_positions:
        raise ConfigError(
            f"rows of {P} + {length} tokens, but the model has a table of {cfg.max_positions} "
            "positions"
        )


def _prefilled(
    params: Any, cfg: ModelConfig, prompts_BP: jax.Array, length: int, samples: int, axes: Axes
) -> tuple[jax.Array, jax.Array, Any]:
    """(logits_BV of the first response token, its position B, the cache), each prompt's row
    repeated for its samples."""
    B0, P = prompts_BP.shape
    rows = padded_rows(prompts_BP)
    empty = init_cache(cfg, B0, P + length, axes)
    x_DB1, cache = forward(params, cfg, *rows, axes, empty, last=1)
    first_BV = logits(params, cfg, x_DB1, axes)[..., 0].T
    rows_B = jnp.arange(B0 * samples) // samples
    first_BV = first_BV.at[rows_B].get(out_sharding=axes.spec("batch", "vocab"))
    next_B = jnp.sum(rows.segments_BT, axis=-1).at[rows_B].get(out_sharding=axes.spec("batch"))
    return first_BV, next_B, cache.repeated(rows_B, axes)


def _drawn(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    t: jax.Array,
    temperature: jax.Array | float,
    axes: Axes,
) -> tuple[jax.Array, jax.Array]:
    """(tokens, log-probs) B of the t-th token, by the Gumbel-max trick."""
    V = logits_BV.shape[1]
    noise_BV = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, t), (V,)))(keys_B)
    scaled_BV = logits_BV / jnp.where(temperature > 0, temperature, 1.0)
    noise_BV = axes.constrain(noise_BV, "batch", "vocab")
    noisy_BV = jnp.where(temperature > 0, scaled_BV + noise_BV, scaled_BV)
    # The first largest, as argmax finds it, by two plain reductions: a fraction of argmax's time on
    # a CPU.
    ids_BV = jax.lax.broadcasted_iota(jnp.int32, noisy_BV.shape, 1)
    largest_BV = noisy_BV == jnp.max(noisy_BV, axis=-1, keepdims=True)
    token_B = jnp.min(jnp.where(largest_BV, ids_BV, V), axis=-1)
    chosen_B = jnp.sum(jnp.where(ids_BV == token_B[:, None], scaled_BV, 0.0), axis=-1)
    return token_B, chosen_B - jax.nn.logsumexp(scaled_BV, axis=-1)
