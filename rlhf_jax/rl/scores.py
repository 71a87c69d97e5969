"""Rewards as scores of whole responses: one reward model, several, or any callable over texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.model import Axes
from rlhf_jax.model.scoring import Sequences, row_scores
from rlhf_jax.study.callables import check_scores
from rlhf_jax.study.config import ConfigError, ModelConfig

NO_SPREAD = 1e-6
Score = Callable[[Any, Sequences, jax.Array], jax.Array]  # (arrays, rows, mask_BR) -> scores B
Texts = Callable[[Sequence[str], Sequence[str]], Any]  # (prompts, responses) -> scores


class Reward(NamedTuple):
    """`score(arrays, rows, mask_BR)` gives the score B of each response. It is jit-compatible; the
    arrays are passed in, not compiled in.

    Attributes:
        trunk: parameters and configuration of a model that a critic can start from; None: of the
            policy.
    """

    score: Score
    arrays: Any
    trunk: tuple[Any, ModelConfig] | None = None


class Member(NamedTuple):
    """A reward model and what brings its scores to a common scale: gain x score + bias."""

    params: Any
    gain: Any
    bias: Any


def standardising(scores: np.ndarray) -> tuple[float, float]:
    """The gain and bias that bring these scores to mean 0 and variance 1 (Ziegler et al. 2019); of
    scores without spread, to mean 0 alone: what differs from them by rounding would count for a
    million."""
    gain = 1.0 if without_spread(scores) else 1.0 / float(scores.std())
    return gain, -float(scores.mean()) * gain


def without_spread(scores: np.ndarray) -> bool:
    """Whether scores are equal up to rounding."""
    return float(scores.std()) <= NO_SPREAD * max(1.0, float(np.abs(scores).max(initial=0.0)))


def model_scores(
    member: Member, cfg: ModelConfig, rows: Sequences, mask_BR: jax.Array, axes: Axes
) -> jax.Array:
    """The normalised score B of each row, read at the last valid token of the response."""
    last_B = (jnp.sum(mask_BR, axis=-1) - 1).astype(jnp.int32)
    scores_B = row_scores(member.params, cfg, rows, last_B, axes, length=mask_BR.shape[1])
    return member.gain * scores_B + member.bias


def combined(scores_MB: jax.Array, how: str, variance_coef: float = 1.0) -> jax.Array:
    """The scores of M models as one, B: `mean`, `worst`, or `mean_minus_variance`, which takes
    variance_coef times their variance away (Coste et al. 2023)."""
    if how == "worst":
        return jnp.min(scores_MB, axis=0)
    mean_B = jnp.mean(scores_MB, axis=0)
    if how == "mean":
        return mean_B
    return mean_B - variance_coef * jnp.var(scores_MB, axis=0)


def model_reward(
    members: Sequence[Member],
    cfgs: Sequence[ModelConfig],
    axes: Axes,
    how: str = "mean",
    variance_coef: float = 1.0,
) -> Reward:
    """A reward of one or several models."""

    def score(arrays: Any, rows: Sequences, mask_BR: jax.Array) -> jax.Array:
        each = [model_scores(m, c, rows, mask_BR, axes) for m, c in zip(arrays, cfgs, strict=True)]
        return each[0] if len(each) == 1 else combined(jnp.stack(each), how, variance_coef)

    return Reward(score, tuple(members), (members[0].params, cfgs[0]))


_raised: list[ConfigError] = []  # by the last callable that failed inside a compiled program


def cause(error: Exception) -> Exception:
    """What a callable raised, where `error` is what jax made of it; `error` itself otherwise."""
    return next((e for e in _raised if str(e) in str(error)), error)


def callable_reward(function: Texts, decode: Callable[[list[int]], str]) -> Reward:
    """A reward that is any `(prompts, responses) -> scores` over texts, called from inside compiled
    programs; it must give the same scores for the same texts. What it raises there is `cause`
    of."""

    def on_host(prompts_BP: np.ndarray, tokens_BR: np.ndarray) -> np.ndarray:
        prompts = [decode(p.tolist()) for p in np.asarray(prompts_BP)]
        responses = [decode(r.tolist()) for r in np.asarray(tokens_BR)]
        try:
            scores = check_scores(function(prompts, responses), "the reward", responses)
            return scores.astype(np.float32)
        except ConfigError as e:
            _raised[:] = [e]
            raise

    def score(arrays: Any, rows: Sequences, mask_BR: jax.Array) -> jax.Array:
        R = mask_BR.shape[1]
        out = jax.ShapeDtypeStruct((mask_BR.shape[0],), jnp.float32)
        return jax.pure_callback(on_host, out, rows.tokens_BT[:, :-R], rows.tokens_BT[:, -R:])

    return Reward(score, ())
