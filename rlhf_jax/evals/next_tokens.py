"""What a language model expects next, in words."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rlhf_jax.config import ConfigError, ModelConfig
from rlhf_jax.data.tokenizer import BOS, Tokenizer
from rlhf_jax.generate import positions_of
from rlhf_jax.model import forward, logits
from rlhf_jax.parallel import place_batch
from rlhf_jax.train import Runtime


def encode_prompt(
    tokenizer: Tokenizer, cfg: ModelConfig, prompt: str, runtime: Runtime
) -> jax.Array:
    """BOS and the prompt's tokens, (1, P) on the mesh."""
    ids = [BOS, *tokenizer.encode(prompt)]
    if len(ids) >= cfg.max_positions:
        raise ConfigError(
            f"the prompt is {len(ids)} tokens long; the model takes fewer than {cfg.max_positions}"
        )
    return place_batch({"ids": np.array([ids], np.int32)}, runtime.mesh, runtime.axes)["ids"]


def next_tokens(
    params: Any,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    prompt: str,
    runtime: Runtime,
    top: int = 10,
) -> list[tuple[str, float]]:
    """The `top` likeliest next tokens and their probabilities."""
    ids = encode_prompt(tokenizer, cfg, prompt, runtime)
    segments = (ids >= 0).astype(np.int32)

    @jax.jit
    def distribution(params: Any, ids: jax.Array, segments: jax.Array) -> jax.Array:
        x_DBT, _ = forward(params, cfg, ids, segments, positions_of(segments), runtime.axes)
        return jax.nn.softmax(logits(params, cfg, x_DBT, runtime.axes)[:, 0, -1])

    p_V = np.asarray(jax.device_get(distribution(params, ids, segments)))
    return [(tokenizer.piece(int(i)), float(p_V[i])) for i in np.argsort(-p_V)[:top]]
