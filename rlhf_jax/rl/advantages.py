"""Rewards per token, advantages, and KL estimators, over masked BT arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.kinds.ppo.cell import ALGORITHMS, PPO
from rlhf_jax.study.callables import load_callable
from rlhf_jax.study.config import ConfigError


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def kl_estimates(log_probs: jax.Array, reference: jax.Array) -> dict[str, jax.Array]:
    """Per-token estimators of KL(pi || reference) from samples of pi (Schulman 2020): k1 is
    unbiased, k2 and k3 have less variance and are never negative."""
    delta = log_probs - reference
    return {"k1": delta, "k2": jnp.square(delta) / 2, "k3": jnp.exp(-delta) - 1 + delta}


def kl_loss(log_probs: jax.Array, reference: jax.Array) -> jax.Array:
    """KL(pi || reference) a token as a loss: k3's value with k2's gradient, delta times that of log
    pi. k1's would be zero in expectation, and k3's own is biased. The log-ratio is kept within 20,
    k3 below 10."""
    delta = jnp.clip(log_probs - reference, -20, 20)
    estimates = kl_estimates(delta, jnp.zeros_like(delta))
    k2, k3 = estimates["k2"], jnp.clip(estimates["k3"], -10, 10)
    return k2 + jax.lax.stop_gradient(k3 - k2)


def token_rewards(
    score_B: jax.Array, kl_BT: jax.Array, mask_BT: jax.Array, kl_coef: jax.Array
) -> jax.Array:
    """-beta kl_t, plus the score at the last valid token."""
    last_B1 = (jnp.sum(mask_BT, axis=-1, keepdims=True) - 1).astype(jnp.int32)
    at_last_BT = jnp.arange(mask_BT.shape[1])[None] == last_B1
    return (-kl_coef * kl_BT + jnp.where(at_last_BT, score_B[:, None], 0.0)) * mask_BT


def gae(
    rewards_BT: jax.Array, values_BT: jax.Array, mask_BT: jax.Array, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al. 2016): (advantages_BT, returns_BT), 0 where
    masked. The value after the last valid token is 0."""

    def back(carry: Any, x: Any) -> tuple[Any, jax.Array]:
        advantage_B, next_value_B = carry
        reward_B, value_B, mask_B = x
        delta_B = reward_B + gamma * next_value_B - value_B
        advantage_B = (delta_B + gamma * lam * advantage_B) * mask_B
        return (advantage_B, value_B * mask_B), advantage_B

    zero_B = jnp.zeros_like(jnp.sum(rewards_BT, axis=1))  # a column of one row has another layout
    time_first = (rewards_BT.T, values_BT.T, mask_BT.T)
    _, advantages_TB = jax.lax.scan(back, (zero_B, zero_B), time_first, reverse=True)
    advantages_BT = advantages_TB.T
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


class Rollout(NamedTuple):
    """What advantages are estimated from: B rows, `cell.samples` responses to each prompt beside
    each other, R tokens.

    Attributes:
        returns_B: reward of a whole response, its score less the KL penalty.
        rewards_BR: by token. mask_BR: 1 where there are any.
        values_BR: of the critic; None: there is none.
    """

    returns_B: jax.Array
    rewards_BR: jax.Array
    mask_BR: jax.Array
    values_BR: jax.Array | None


# --- algorithms: (rollout, cell) -> advantages, B of responses or BR of tokens --------------------


def generalised(rollout: Rollout, cell: PPO) -> jax.Array:
    """Of tokens, by `gae`."""
    assert rollout.values_BR is not None
    return gae(rollout.rewards_BR, rollout.values_BR, rollout.mask_BR, cell.gamma, cell.lam)[0]


def leave_one_out(rollout: Rollout, cell: PPO) -> jax.Array:
    """The return less the mean of the others of its prompt (RLOO, Ahmadian et al. 2024)."""
    return _centred(rollout.returns_B, cell.samples) * (cell.samples / (cell.samples - 1))


def leave_one_out_of_batch(rollout: Rollout, cell: PPO) -> jax.Array:
    """The return less the mean of all others of the batch."""
    B = len(rollout.returns_B)
    return _centred(rollout.returns_B, B) * (B / (B - 1))


def standardised(rollout: Rollout, cell: PPO) -> jax.Array:
    """The return less the mean of its prompt, in units of the standard deviation (GRPO, Shao et al.
    2024)."""
    returns_Ng = rollout.returns_B.reshape(-1, cell.samples)
    spread_N1 = jnp.std(returns_Ng, axis=1, keepdims=True, ddof=1)
    centred_Ng = _centred(rollout.returns_B, cell.samples).reshape(returns_Ng.shape)
    return (centred_Ng / (spread_N1 + 1e-4)).reshape(rollout.returns_B.shape)


def _centred(x_B: jax.Array, group: int) -> jax.Array:
    """x less the mean of its group of consecutive rows."""
    x_Ng = x_B.reshape(-1, group)
    return (x_Ng - jnp.mean(x_Ng, axis=1, keepdims=True)).reshape(x_B.shape)


def estimated(rollout: Rollout, cell: PPO) -> jax.Array:
    """The advantages, B or BR, that the cell's `algorithm` gives.

    Raises:
        ConfigError: a user's function gives another shape.
    """
    named = ALGORITHMS.get(cell.algorithm)
    found = load_callable(named.function if named else cell.algorithm)(rollout, cell)
    if (shape := jnp.shape(found)) not in (rollout.returns_B.shape, rollout.mask_BR.shape):
        raise ConfigError(
            f"{cell.name}.algorithm = {cell.algorithm!r} gave an array of shape {shape}; expected "
            f"one advantage for each of {rollout.mask_BR.shape[0]} responses, or for each token, "
            f"{rollout.mask_BR.shape}"
        )
    return jnp.asarray(found)


def whiten(
    x: jax.Array, mask: jax.Array, shift_mean: bool = True, bessel: bool = False
) -> jax.Array:
    """Unit variance over the valid entries (biased, as OpenAI 2019 and N+ do; `bessel` as TRL
    does), mean 0 unless `shift_mean` is off; 0 where masked."""
    mean = masked_mean(x, mask)
    n = jnp.sum(mask)
    variance = jnp.sum(jnp.square(x - mean) * mask) / jnp.maximum(n - (1 if bessel else 0), 1.0)
    white = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask
