"""The likeliest next tokens of a language model, as text."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rlhf_jax.data.chat import Template, prompt_ids
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.model import forward, logits
from rlhf_jax.model.scoring import padded_rows
from rlhf_jax.model.sharding import joined, map_rows
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.messages import not_unicode
from rlhf_jax.train import Runtime


def encode_prompt(
    tokenizer: Tokenizer, cfg: ModelConfig, prompt: str, template: Template = "plain"
) -> np.ndarray:
    """The tokens of a prompt as a template has it, (1, P).

    Raises:
        ConfigError: the prompt is empty, not valid Unicode, or longer than the model's positions.
    """
    if not prompt:
        raise ConfigError("the prompt is empty; give the text to go on from")
    if why := not_unicode(prompt):
        raise ConfigError(f"the prompt is {why}")
    ids = prompt_ids(tokenizer, prompt, template)
    if len(ids) >= cfg.max_positions:
        raise ConfigError(
            f"the prompt is {len(ids)} tokens long; the model takes fewer than {cfg.max_positions}"
        )
    return np.array([ids], np.int32)


def likeliest(
    params: Any,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    prompts_NP: np.ndarray,
    runtime: Runtime,
    top: int = 10,
) -> list[list[tuple[str, float]]]:
    """The `top` likeliest next tokens of each left-padded prompt, and their probabilities."""

    @jax.jit
    def distribution(params: Any, prompts_BP: jax.Array) -> jax.Array:
        x_DB1, _ = forward(params, cfg, *padded_rows(prompts_BP), runtime.axes, last=1)
        return jax.nn.softmax(logits(params, cfg, x_DB1, runtime.axes)[..., 0], axis=0).T

    arrays = {"prompts": prompts_NP}
    of = lambda batch: distribution(params, batch["prompts"])  # noqa: E731
    p_NV = joined(map_rows(of, arrays, len(prompts_NP), runtime.mesh, runtime.axes))
    return [
        [(tokenizer.piece(int(i)), float(p_V[i])) for i in np.argsort(-p_V, kind="stable")[:top]]
        for p_V in p_NV
    ]


def next_tokens(
    params: Any,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    prompt: str,
    runtime: Runtime,
    top: int = 10,
    template: Template = "plain",
) -> list[tuple[str, float]]:
    """`likeliest` of one prompt, a text."""
    ids = encode_prompt(tokenizer, cfg, prompt, template)
    return likeliest(params, cfg, tokenizer, ids, runtime, top)[0]
