"""A model of critiques as a judge: how much likelier it finds the verdict `good` than `bad`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.chat import Template, prompt_ids
from rlhf_jax.data.packing import left_padded
from rlhf_jax.data.signals import verdict_ids, verdict_prompt, verdict_tokens
from rlhf_jax.data.tokenizer import ASSISTANT, BOS, END, FIRST_BYTE, PAD, USER, Tokenizer
from rlhf_jax.model import Axes
from rlhf_jax.model.scoring import Sequences, completion_log_probs, join, positions_of
from rlhf_jax.model.sharding import joined, map_rows
from rlhf_jax.rl.scores import Member, Reward
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.train import Runtime


def verdict_scores(
    params: Any,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    runtime: Runtime,
    prompt_len: int,
    template: Template = "plain",
    batch: int = 32,
) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    """A reward (prompts, responses) -> scores (n,) float64: log p(good) - log p(bad) in nats, of
    the whole verdicts, EOS included, after `signals.verdict_prompt`.

    Args:
        params: of a language model that has learned from critiques with verdicts.
        prompt_len: tokens of a verdict prompt at most; shorter ones are padded on the left.
        batch: responses scored at a time, about; twice as many rows are in memory.

    Raises:
        ConfigError: from the function, where a verdict prompt takes more than `prompt_len` tokens.
    """
    verdicts = verdict_ids(tokenizer)
    R = max(map(len, verdicts))
    tokens_2R = np.array([v + [PAD] * (R - len(v)) for v in verdicts], np.int32)

    @jax.jit
    def log_odds(params: Any, prompts_BP: jax.Array) -> jax.Array:
        axes, B = runtime.axes, len(prompts_BP)
        asked_NP = prompts_BP.at[jnp.arange(2 * B) // 2].get(out_sharding=axes.spec("batch", None))
        tokens_NR = axes.constrain(jnp.tile(tokens_2R, (B, 1)), "batch", None)
        mask_NR = (tokens_NR != PAD).astype(jnp.float32)
        rows = join(asked_NP, tokens_NR, mask_NR)
        sums_N = completion_log_probs(params, cfg, rows, mask_NR, axes)
        sums_B2 = sums_N.reshape(B, 2, out_sharding=axes.spec("batch", None))
        return sums_B2[:, 0] - sums_B2[:, 1]

    def score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        texts = [verdict_prompt(p, r) for p, r in zip(prompts, responses, strict=True)]
        ids = left_padded([prompt_ids(tokenizer, t, template) for t in texts], prompt_len)
        if not len(ids):
            return np.zeros(0)
        of = lambda rows: log_odds(params, rows["prompts"])  # noqa: E731
        found = map_rows(of, {"prompts": ids}, batch, runtime.mesh, runtime.axes)
        return joined(found).astype(np.float64)

    return score


def verdict_reward(
    member: Member,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    axes: Axes,
    template: Template = "plain",
) -> Reward:
    """The same score as a reward inside compiled programs: gain x log-odds + bias, with the
    log-odds in nats. The verdict prompt is put together from the token ids of prompt and response,
    without their control tokens, and scored once with each verdict.

    It is the prompt that `verdict_scores` makes of the texts if prompt and response have the ids
    that their texts encode to: no piece holds a line break, and line breaks part the prompt, the
    response and what stands between them, so the parts are encoded together as they are apart.
    Other ids for a text, which a policy can sample, are scored as they are. Turns of a conversation
    keep their markers with the plain template only; in a chat they are control tokens.

    Raises:
        ConfigError: from the score, where the longest prompt would take more than
            cfg.max_positions.
    """
    _, between, after = re.split("[\0\1]", verdict_prompt("\0", "\1"))
    opening, closing = ([BOS], []) if template == "plain" else ([BOS, USER], [END, ASSISTANT])
    before_response = tokenizer.encode(between)
    before_verdict = [*tokenizer.encode(after), *closing]
    good, bad = verdict_ids(tokenizer)
    fixed = verdict_tokens(tokenizer, template)

    def score(arrays: Any, rows: Sequences, mask_BR: jax.Array) -> jax.Array:
        (member,) = arrays
        (B, T), P = rows.tokens_BT.shape, rows.tokens_BT.shape[1] - mask_BR.shape[1]
        if T + fixed > cfg.max_positions:
            raise ConfigError(
                f"prompt and response of {T} tokens make a verdict prompt of {T + fixed}, but the "
                f"critique model has max_positions = {cfg.max_positions}; shorten them or raise it"
            )
        kept_BT = (rows.segments_BT > 0) & (rows.tokens_BT >= FIRST_BYTE)

        def always(ids: list[int]) -> tuple[jax.Array, jax.Array]:
            ids_BF = jnp.broadcast_to(jnp.array(ids, jnp.int32), (B, len(ids)))
            ids_BF = axes.constrain(ids_BF, "batch", None)
            return ids_BF, jnp.ones_like(ids_BF, bool)

        def log_prob(verdict: list[int]) -> jax.Array:
            parts = [
                always(opening),
                (rows.tokens_BT[:, :P], kept_BT[:, :P]),
                always(before_response),
                (rows.tokens_BT[:, P:], kept_BT[:, P:]),
                always([*before_verdict, *verdict]),
            ]
            tokens_BS, kept_BS = (jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True))
            segments_BS = kept_BS.astype(jnp.int32)
            verdicts = Sequences(tokens_BS, segments_BS, positions_of(segments_BS))
            mask_BV = kept_BS[:, -len(verdict) :]
            return completion_log_probs(member.params, cfg, verdicts, mask_BV, axes)

        return member.gain * (log_prob(good) - log_prob(bad)) + member.bias

    return Reward(score, (member,), (member.params, cfg))
