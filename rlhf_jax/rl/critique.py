"""A model of critiques as a judge: how much likelier it finds the verdict `good` than `bad`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import ModelConfig
from rlhf_jax.data.chat import Template, prompt_ids
from rlhf_jax.data.packing import left_padded
from rlhf_jax.data.signals import verdict_prompt
from rlhf_jax.data.tokenizer import EOS, PAD, Tokenizer
from rlhf_jax.generate import join, response_log_probs
from rlhf_jax.parallel import place_batch
from rlhf_jax.train import Runtime

VERDICTS = ("good", "bad")


def verdict_scores(
    params: Any,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    runtime: Runtime,
    prompt_len: int,
    template: Template = "plain",
    batch: int = 32,
) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    """A reward (prompts, responses) -> scores (n,) float64: log p(good) - log p(bad) in nats, of the
    whole verdicts, EOS included, after `signals.verdict_prompt`.

    Args:
        params: of a language model that has learned from critiques with verdicts.
        prompt_len: tokens of a verdict prompt at most; shorter ones are padded on the left.
        batch: responses scored at a time, always as many rows; twice as many are in memory.

    Raises:
        ConfigError: from the function, where a verdict prompt takes more than `prompt_len` tokens.
    """
    verdicts = [[*tokenizer.encode(verdict), EOS] for verdict in VERDICTS]
    R = max(map(len, verdicts))
    tokens_2R = np.array([v + [PAD] * (R - len(v)) for v in verdicts], np.int32)
    tokens_BR = np.tile(tokens_2R, (batch, 1))  # two rows for each response

    @jax.jit
    def log_probs(params: Any, prompts_BP: jax.Array, tokens_BR: jax.Array) -> jax.Array:
        mask_BR = (tokens_BR != PAD).astype(jnp.float32)
        rows = join(prompts_BP, tokens_BR, mask_BR)
        log_probs_BR, _ = response_log_probs(params, cfg, rows, R, 1.0, runtime.axes)
        return jnp.sum(log_probs_BR * mask_BR, axis=-1)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        texts = [verdict_prompt(p, r) for p, r in zip(prompts, responses, strict=True)]
        ids = left_padded([prompt_ids(tokenizer, t, template) for t in texts], prompt_len)
        scores = np.zeros(len(ids))
        for i in range(0, len(ids), batch):
            some = ids[i : i + batch]
            full = np.pad(some, ((0, batch - len(some)), (0, 0)), mode="edge")
            rows = {"prompts": np.repeat(full, 2, axis=0), "verdicts": tokens_BR}
            placed = place_batch(rows, runtime.mesh, runtime.axes)
            sums = np.asarray(log_probs(params, placed["prompts"], placed["verdicts"]), np.float64)
            scores[i : i + batch] = (sums[::2] - sums[1::2])[: len(some)]
        return scores

    return score
