"""PPO for language models (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022) as one
compiled iteration of static shape: rollout, scoring, advantages, epochs of minibatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.cells import PPO
from rlhf_jax.config import ModelConfig
from rlhf_jax.generate import EOS, Sequences, generate, join, response_log_probs
from rlhf_jax.model import Axes, forward, scalars
from rlhf_jax.rl.advantages import gae, masked_mean, token_rewards, whiten
from rlhf_jax.train import TrainState, apply_gradients, gradients
from rlhf_jax.train.state import learning_rate

Score = Callable[[Any, jax.Array, jax.Array], jax.Array]  # (frozen, prompts_BP, responses) -> B


class SamplerMismatch(Exception):
    """The trainer does not give the sampled tokens the probability that the sampler gave them."""


class Experience(NamedTuple):
    """What the epochs of one iteration learn from. Arrays of B rows, R response tokens."""

    tokens_BT: jax.Array
    segments_BT: jax.Array
    positions_BT: jax.Array
    mask_BR: jax.Array
    log_probs_BR: jax.Array  # of the sampler: the behaviour policy
    values_BR: jax.Array
    advantages_BR: jax.Array
    returns_BR: jax.Array


def values(params: Any, cfg: ModelConfig, rows: Sequences, length: int, axes: Axes) -> jax.Array:
    """V_BR: the critic's value of the state in which each response token is chosen."""
    x_DBT, _ = forward(params, cfg, *rows, axes)
    return scalars(params, x_DBT[..., -length - 1 : -1])


def reward_scores(
    frozen: dict[str, Any], cfg: ModelConfig, rows: Sequences, mask_BR: jax.Array, axes: Axes
) -> jax.Array:
    """The reward model's normalised score of each row, read at the last valid token."""
    x_DBT, _ = forward(frozen["reward"], cfg, *rows, axes)
    scores_BR = scalars(frozen["reward"], x_DBT[..., -mask_BR.shape[1] :])
    last_B1 = (jnp.sum(mask_BR, axis=-1, keepdims=True) - 1).astype(jnp.int32)
    here_BR = jnp.arange(mask_BR.shape[1])[None] == last_B1
    score_B = jnp.sum(jnp.where(here_BR, scores_BR, 0.0), axis=-1)
    return frozen["gain"] * score_B + frozen["bias"]


def ppo_objective(
    cell: PPO, cfg: ModelConfig, axes: Axes
) -> Callable[[Any, dict[str, jax.Array]], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]:
    """Clipped policy and value losses, summed over valid tokens."""
    R = cell.task.response_len

    def objective(params: Any, batch: dict[str, jax.Array]) -> tuple:
        e = Experience(**batch)
        rows = Sequences(e.tokens_BT, e.segments_BT, e.positions_BT)
        log_probs_BR, entropy_BR = response_log_probs(
            params["policy"], cfg, rows, R, cell.temperature, axes
        )
        log_ratio_BR = jnp.clip(log_probs_BR - e.log_probs_BR, -20, 20) * e.mask_BR
        ratio_BR = jnp.exp(log_ratio_BR)
        clipped_BR = jnp.clip(ratio_BR, 1 - cell.clip, 1 + cell.clip)
        policy_BR = jnp.maximum(-e.advantages_BR * ratio_BR, -e.advantages_BR * clipped_BR)
        values_BR = values(params["critic"], cfg, rows, R, axes)
        near_BR = jnp.clip(values_BR, e.values_BR - cell.value_clip, e.values_BR + cell.value_clip)
        value_BR = 0.5 * jnp.maximum(
            jnp.square(values_BR - e.returns_BR), jnp.square(near_BR - e.returns_BR)
        )
        mask = e.mask_BR
        sums = {
            "policy_loss": jnp.sum(policy_BR * mask),
            "value_loss": jnp.sum(value_BR * mask),
            "entropy": jnp.sum(entropy_BR * mask),
            "approx_kl": jnp.sum(0.5 * jnp.square(log_ratio_BR) * mask),
            "clip_frac": jnp.sum((jnp.abs(ratio_BR - 1) > cell.clip) * mask),
        }
        total = sums["policy_loss"] + cell.value_coef * sums["value_loss"]
        return total, jnp.sum(mask), sums

    return objective


def make_ppo_step(
    cell: PPO, cfg: ModelConfig, axes: Axes, score: Score | None = None, accumulate: int = 1
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled iteration `(state, frozen, prompts_BP) -> (state, metrics)`.

    `state.params` holds `policy` and `critic`; `frozen` holds `reference` and, without a `score` of
    one's own, `reward` with its `gain` and `bias`. Metrics before the first update compare trainer
    and sampler (`max_ratio_error`, `approx_kl_before`, `clip_frac_before`); see `check_sampler`.
    """
    R = cell.task.response_len
    objective = ppo_objective(cell, cfg, axes)

    def rollout(state: TrainState, frozen: Any, prompts_BP: jax.Array, key: jax.Array) -> tuple:
        policy, critic = state.params["policy"], state.params["critic"]
        sampled = generate(
            policy, cfg, prompts_BP, key, length=R, temperature=cell.temperature, axes=axes
        )
        mask_BR = sampled.mask_BR
        rows = join(prompts_BP, sampled.tokens_BR, mask_BR)
        log_probs_BR, entropy_BR = response_log_probs(policy, cfg, rows, R, cell.temperature, axes)
        reference_BR, _ = response_log_probs(
            frozen["reference"], cfg, rows, R, cell.temperature, axes
        )
        if score is None:
            score_B = reward_scores(frozen, cfg, rows, mask_BR, axes)
        else:
            score_B = score(frozen, prompts_BP, sampled.tokens_BR)
        stopped_B = jnp.any(sampled.tokens_BR == EOS, axis=-1)
        scored_B = score_without_eos(cell, score_B, stopped_B)
        values_BR = values(critic, cfg, rows, R, axes) * mask_BR
        kl_BR = (sampled.log_probs_BR - reference_BR) * mask_BR
        rewards_BR = token_rewards(scored_B, kl_BR, mask_BR, state.extra["kl_coef"])
        if cell.whiten_rewards:
            rewards_BR = whiten(rewards_BR, mask_BR, shift_mean=False)
        advantages_BR, returns_BR = gae(rewards_BR, values_BR, mask_BR, cell.gamma, cell.lam)
        experience = Experience(
            *rows,
            mask_BR=mask_BR,
            log_probs_BR=sampled.log_probs_BR,
            values_BR=values_BR,
            advantages_BR=whiten(advantages_BR, mask_BR),
            returns_BR=returns_BR,
        )
        gap_BR = (log_probs_BR - sampled.log_probs_BR) * mask_BR
        residual = masked_mean(jnp.square(returns_BR - values_BR), mask_BR)
        spread = masked_mean(jnp.square(returns_BR - masked_mean(returns_BR, mask_BR)), mask_BR)
        metrics = {
            "reward_proxy": jnp.mean(score_B),
            "kl": jnp.mean(jnp.sum(kl_BR, axis=-1)),
            "kl_coef": state.extra["kl_coef"],
            "entropy": masked_mean(entropy_BR, mask_BR),
            "response_length": jnp.mean(jnp.sum(mask_BR, axis=-1)),
            "stop_rate": jnp.mean(stopped_B.astype(jnp.float32)),
            "explained_variance": 1 - residual / jnp.maximum(spread, 1e-8),
            "max_logprob_gap": jnp.max(jnp.abs(gap_BR)),
            "max_ratio_error": jnp.max(jnp.abs(jnp.exp(gap_BR) - 1)),
            "approx_kl_before": masked_mean(0.5 * jnp.square(gap_BR), mask_BR),
            "clip_frac_before": masked_mean(
                (jnp.abs(jnp.exp(gap_BR) - 1) > cell.clip).astype(jnp.float32), mask_BR
            ),
            "responses": sampled.tokens_BR,
            "mask": mask_BR,
        }
        return experience, metrics

    def learn(
        state: TrainState, e: Experience, rate: jax.Array, key: jax.Array
    ) -> tuple[TrainState, Any]:
        B = e.tokens_BT.shape[0]

        def epoch(state: TrainState, key: jax.Array) -> tuple[TrainState, Any]:
            rows = jax.random.permutation(key, B).reshape(cell.minibatches, -1)

            def minibatch(state: TrainState, rows_b: jax.Array) -> tuple[TrainState, Any]:
                batch = {
                    n: x.at[rows_b].get(out_sharding=axes.spec("batch", None))
                    for n, x in e._asdict().items()
                }
                grads, metrics = gradients(objective, state.params, batch, axes, accumulate)
                state, moved = apply_gradients(state, grads, cell.optim, rate)
                weight = jnp.maximum(metrics.pop("weight"), 1.0)
                loss = metrics.pop("loss")
                means = {n: m / weight for n, m in metrics.items() if n != "entropy"}
                return state, {"loss": loss, **means, **moved}

            return jax.lax.scan(minibatch, state, rows)

        state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, cell.epochs))
        return state, jax.tree.map(jnp.mean, metrics)

    def iteration(state: TrainState, frozen: Any, prompts_BP: jax.Array) -> tuple[TrainState, Any]:
        key = jax.random.fold_in(jax.random.key(cell.seed), state.step)
        sample_key, order_key = jax.random.split(key)
        experience, metrics = rollout(state, frozen, prompts_BP, sample_key)
        rate = learning_rate(cell.optim, state)
        state, learned = learn(state, experience, rate, order_key)
        state = state.replace(step=state.step + 1, extra=adapt_kl(cell, state, metrics["kl"]))
        return state, {**metrics, **learned}

    return jax.jit(iteration, donate_argnums=0)


def score_without_eos(cell: PPO, score_B: jax.Array, stopped_B: jax.Array) -> jax.Array:
    """Scores with `cell.no_eos` applied to the responses that never stopped."""
    if cell.no_eos == "keep":
        return score_B
    changed = cell.no_eos_score if cell.no_eos == "replace" else score_B + cell.no_eos_score
    return jnp.where(stopped_B, score_B, changed)


def adapt_kl(cell: PPO, state: TrainState, kl: jax.Array) -> dict[str, jax.Array]:
    """The controller of Ziegler et al. 2019: beta *= 1 + clip(KL/target - 1, +-0.2) n / horizon."""
    if cell.kl_target is None:
        return state.extra
    error = jnp.clip(kl / cell.kl_target - 1, -0.2, 0.2)
    scale = 1 + error * cell.batch / cell.kl_horizon
    return {**state.extra, "kl_coef": state.extra["kl_coef"] * scale}


def check_sampler(step: int, metrics: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Before the first update of an iteration the ratio of trainer to sampler is 1, up to the rounding
    of two differently fused float32 programs. Raises SamplerMismatch with what to look at."""
    ratio, kl = float(metrics["max_ratio_error"]), float(metrics["approx_kl_before"])
    if ratio <= tolerance and abs(kl) <= 1e-8 and float(metrics["clip_frac_before"]) == 0:
        return
    raise SamplerMismatch(
        f"iteration {step}: before any update max |ratio - 1| = {ratio:.2e} (expected <= {tolerance:g}), "
        f"approx_kl = {kl:.2e} (<= 1e-8), clip_frac = {float(metrics['clip_frac_before']):.3f} (0). "
        "Sampler and trainer score the same tokens differently: look at the temperature, the position "
        "ids and the padding mask of both."
    )
