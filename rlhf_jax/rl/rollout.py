"""A rollout: sample, score, estimate advantages. PPO and its siblings (GRPO, RLOO, REINFORCE) learn
from the same one; they differ in where the advantages come from."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.kinds.ppo.cell import PPO
from rlhf_jax.model import Axes, scalars
from rlhf_jax.model.sampler import EOS, Samples, generate
from rlhf_jax.model.scoring import (
    Sequences,
    join,
    log_probs_of_states,
    response_log_probs,
    response_states,
    response_values,
)
from rlhf_jax.rl.advantages import Rollout, estimated, masked_mean, token_rewards, whiten
from rlhf_jax.rl.scores import Score
from rlhf_jax.study.config import ModelConfig
from rlhf_jax.train import TrainState
from rlhf_jax.train.step import in_micro_batches


class SamplerMismatch(Exception):
    """The trainer does not give the sampled tokens the probability that the sampler gave them."""


class Networks(NamedTuple):
    """Shapes of the models that are trained. No critic: None; on the policy's trunk: the same
    config, and no parameters of its own."""

    policy: ModelConfig
    critic: ModelConfig | None

    def outputs(
        self, params: Any, rows: Sequences, length: int, temperature: float, axes: Axes
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """(log-probs_BR, entropy_BR, values_BR) of the last `length` tokens. The value is of the
        state in which each token is chosen."""
        policy = params["policy"]
        x_DBR = response_states(policy, self.policy, rows, length, axes)
        log_probs, entropy = log_probs_of_states(
            policy, self.policy, x_DBR, rows, temperature, axes
        )
        if self.critic is None:
            return log_probs, entropy, None
        critic = params.get("critic")
        if critic is None:
            return log_probs, entropy, scalars(policy, x_DBR)
        return log_probs, entropy, response_values(critic, self.critic, rows, length, axes)


class Experience(NamedTuple):
    """What the epochs of one iteration learn from. Arrays of B rows, R response tokens."""

    tokens_BT: jax.Array
    segments_BT: jax.Array
    positions_BT: jax.Array
    mask_BR: jax.Array
    value_mask_BR: jax.Array  # where values are learned: one token more if the score lies there
    log_probs_BR: jax.Array  # of the sampler: the behaviour policy
    reference_BR: jax.Array  # log-probs of the policy that it is held near to
    values_BR: jax.Array
    advantages_BR: jax.Array
    returns_BR: jax.Array


class Scored(NamedTuple):
    """What the models say of sampled rows, before the first update."""

    log_probs_BR: jax.Array  # of the trainer, which `check_sampler` compares with the sampler's
    entropy_BR: jax.Array
    values_BR: jax.Array | None
    reference_BR: jax.Array
    score_B: jax.Array


def rollout(
    cell: PPO,
    networks: Networks,
    axes: Axes,
    score: Score,
    state: TrainState,
    frozen: Any,
    prompts_BP: jax.Array,
    key: jax.Array,
    accumulate: int = 1,
) -> tuple[Experience, dict[str, jax.Array]]:
    """Experience of B = batch x samples rows, prompt by prompt, and what is measured before the
    first update. `frozen` holds `reference` parameters and the arrays of the `reward`. Policy,
    critic, reference and reward score the rows in `accumulate` parts, one after the other."""
    R, params, kl_coef = cell.task.response_len, state.params, state.extra["kl_coef"]
    sampled, prompts_BP = responses(cell, networks, axes, params, prompts_BP, key)
    mask_BR = sampled.mask_BR
    rows = join(prompts_BP, sampled.tokens_BR, mask_BR)

    def scored(part: tuple[Sequences, jax.Array]) -> Scored:
        rows, mask_BR = part
        reference_BR, _ = response_log_probs(
            frozen["reference"], networks.policy, rows, R, cell.temperature, axes
        )
        outputs = networks.outputs(params, rows, R, cell.temperature, axes)
        score_B = axes.constrain(score(frozen["reward"], rows, mask_BR), "batch")
        return Scored(*outputs, reference_BR, score_B)

    found: Scored = in_micro_batches(scored, (rows, mask_BR), axes, accumulate)
    kl_BR = (sampled.log_probs_BR - found.reference_BR) * mask_BR
    score_B = score_without_eos(cell, found.score_B, stopped(sampled))
    rewarded = rewards(cell, score_B, kl_BR, kl_coef, mask_BR, found.values_BR, axes)
    values_BR, advantages_BR, returns_BR = targets(cell, rewarded, mask_BR, axes)
    experience = Experience(
        *rows,
        mask_BR,
        rewarded.mask_BR,
        sampled.log_probs_BR,
        found.reference_BR,
        values_BR,
        advantages_BR,
        returns_BR,
    )
    metrics = {"kl_coef": kl_coef, "prompts": prompts_BP, **measured(cell, sampled, found, kl_BR)}
    if networks.critic is not None:
        metrics["explained_variance"] = explained(values_BR, returns_BR, rewarded.mask_BR)
    return experience, metrics


def measured(cell: PPO, sampled: Samples, found: Scored, kl_BR: jax.Array) -> dict[str, jax.Array]:
    """Metrics of the sampled responses, and the responses."""
    mask_BR = sampled.mask_BR
    information_BR = jnp.square(found.log_probs_BR + found.entropy_BR)
    return {
        "reward_proxy": jnp.mean(found.score_B),
        "reward_spread": jnp.std(found.score_B),
        "kl": jnp.mean(jnp.sum(kl_BR, axis=-1)),
        "entropy": masked_mean(found.entropy_BR, mask_BR),
        "response_length": jnp.mean(jnp.sum(mask_BR, axis=-1)),
        "stop_rate": jnp.mean(stopped(sampled).astype(jnp.float32)),
        "logprob_variance": masked_mean(information_BR, mask_BR),
        **sampler_gap(cell, found.log_probs_BR, sampled.log_probs_BR, mask_BR),
        "responses": sampled.tokens_BR,
        "mask": mask_BR,
    }


def stopped(sampled: Samples) -> jax.Array:
    """Which responses ended in EOS, B."""
    return jnp.any(sampled.tokens_BR == EOS, axis=-1)


def responses(
    cell: PPO, networks: Networks, axes: Axes, params: Any, prompts_NP: jax.Array, key: jax.Array
) -> tuple[Samples, jax.Array]:
    """`samples` responses to each prompt, and the prompt of each of them."""
    sampled = generate(
        params["policy"],
        networks.policy,
        prompts_NP,
        key,
        length=cell.task.response_len,
        temperature=cell.temperature,
        axes=axes,
        samples=cell.samples,
    )
    rows_B = jnp.arange(len(sampled.mask_BR)) // cell.samples
    return sampled, prompts_NP.at[rows_B].get(out_sharding=axes.spec("batch", None))


def rewards(
    cell: PPO,
    score_B: jax.Array,
    kl_BR: jax.Array,
    kl_coef: jax.Array,
    mask_BR: jax.Array,
    values_BR: jax.Array | None,
    axes: Axes,
) -> Rollout:
    """Rewards of tokens: the score at one of them, and the KL penalty if it is in the reward."""
    value_mask_BR = mask_BR
    if cell.score_at == "after":
        # The first position is always valid, the others follow those before.
        value_mask_BR = jnp.concatenate([jnp.ones_like(mask_BR[:, :1]), mask_BR[:, :-1]], axis=1)
    penalty = kl_coef if cell.kl_in == "reward" else jnp.zeros_like(kl_coef)
    rewards_BR = token_rewards(score_B, kl_BR, value_mask_BR, penalty)
    if cell.whiten_rewards:
        rewards_BR = whiten(rewards_BR, value_mask_BR, shift_mean=False, bessel=cell.bessel)
    returns_B = axes.constrain(jnp.sum(rewards_BR, axis=-1))
    values_BR = None if values_BR is None else values_BR * value_mask_BR
    return Rollout(returns_B, rewards_BR, value_mask_BR, values_BR)


def sampler_gap(
    cell: PPO, log_probs_BR: jax.Array, sampled_BR: jax.Array, mask_BR: jax.Array
) -> dict[str, jax.Array]:
    """How far trainer and sampler are apart before the first update; see `check_sampler`."""
    gap_BR = (log_probs_BR - sampled_BR) * mask_BR
    ratio_error_BR = jnp.abs(jnp.exp(gap_BR) - 1)
    return {
        "max_logprob_gap": jnp.max(jnp.abs(gap_BR)),
        "max_ratio_error": jnp.max(ratio_error_BR),
        "approx_kl_before": masked_mean(0.5 * jnp.square(gap_BR), mask_BR),
        "clip_frac_before": masked_mean((ratio_error_BR > cell.clip).astype(jnp.float32), mask_BR),
    }


def targets(
    cell: PPO, rollout: Rollout, mask_BR: jax.Array, axes: Axes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(values, advantages, returns) of every token, BR. Without a critic the values are 0 and the
    return of a token is that of its response."""
    advantages = estimated(rollout, cell)
    if advantages.ndim == 1:
        advantages = axes.constrain(advantages, "batch")[:, None] * mask_BR
    if rollout.values_BR is None:
        returns_BR = axes.constrain(rollout.returns_B, "batch")[:, None] * mask_BR
        return jnp.zeros_like(mask_BR), advantages, returns_BR
    returns_BR = (advantages + rollout.values_BR) * rollout.mask_BR
    if cell.whiten_advantages == "batch":
        advantages = whiten(advantages, mask_BR, bessel=cell.bessel)
    return rollout.values_BR, advantages, returns_BR


def explained(values_BR: jax.Array, returns_BR: jax.Array, mask_BR: jax.Array) -> jax.Array:
    """Share of the returns' variance that the values explain."""
    residual = masked_mean(jnp.square(returns_BR - values_BR), mask_BR)
    spread = masked_mean(jnp.square(returns_BR - masked_mean(returns_BR, mask_BR)), mask_BR)
    return 1 - residual / jnp.maximum(spread, 1e-8)


def score_without_eos(cell: PPO, score_B: jax.Array, stopped_B: jax.Array) -> jax.Array:
    """Scores with `cell.no_eos` applied to the responses that never stopped."""
    if cell.no_eos == "keep":
        return score_B
    changed = cell.no_eos_score if cell.no_eos == "replace" else score_B + cell.no_eos_score
    return jnp.where(stopped_B, score_B, changed)


def adapt_kl(cell: PPO, extra: dict[str, Any], kl: jax.Array) -> dict[str, Any]:
    """The controller of Ziegler et al. 2019: beta *= 1 + clip(KL/target - 1, +-0.2) n / horizon,
    with n responses an iteration."""
    if cell.kl_target is None:
        return extra
    error = jnp.clip(kl / cell.kl_target - 1, -0.2, 0.2)
    scale = 1 + error * cell.batch * cell.samples / cell.kl_horizon
    return {**extra, "kl_coef": extra["kl_coef"] * scale}


def sampler_tolerance(cfg: ModelConfig, logprob_variance: float) -> tuple[float, float]:
    """(approximate KL, |log ratio| of one token) up to which rounding explains that two programs of
    one model, decoding with a cache and scoring whole rows, give the same tokens other log-probs.

    Activations are rounded to the compute dtype, of unit roundoff u (2^-8 in bfloat16). Where the
    two programs round independently, that moves the logits by a share of their own spread. So the
    mean square of the log ratio is c u^2 V, where V = E[Var(log p)] = Var(z / T) is the
    `logprob_variance` that the rollout measures, and c grows with the layers L, whose roundings add
    up. Measured with independent roundings (1 to 12 layers, initial and trained, temperatures 0.7
    and 1): c = 0.3 to 21 where branches are scaled down as `init` does it, and up to 109 of 9
    layers where each branch is as large as the stream that it is added to. Allowed are c = 40 + 12
    L, and 20 times the root of the mean square for one token (measured: 10); and 2e-8 and 1e-4 for
    what is float32 in every model: logits, softmax, norms.

    A temperature that is off by a share e has the mean square e^2 V, so 10% are found in bfloat16
    in models of up to 51 layers. A fault that moves log-probs by less than rounding does is found
    in float32 alone.
    """
    u = float(jnp.finfo(cfg.compute).eps) / 2
    rounding = (40 + 12 * cfg.layers) * u**2 * logprob_variance
    return (2e-8 + rounding) / 2, 1e-4 + 20 * math.sqrt(rounding)


def check_sampler(step: int, metrics: dict[str, Any], cfg: ModelConfig | None = None) -> None:
    """Before the first update of an iteration the ratio of trainer to sampler is 1, up to the
    rounding of two programs of the model `cfg` (None: of float32); see `sampler_tolerance`. Raises
    SamplerMismatch with what to look at; NaN is a mismatch."""
    cfg = cfg or ModelConfig()
    gap, kl = float(metrics["max_logprob_gap"]), float(metrics["approx_kl_before"])
    most_kl, most_gap = sampler_tolerance(cfg, float(metrics["logprob_variance"]))
    if kl <= most_kl and gap <= most_gap:
        return
    raise SamplerMismatch(
        f"iteration {step}: before any update max |log ratio| = {gap:.2e} (expected <= "
        f"{most_gap:.2g}), approx_kl = {kl:.2e} (<= {most_kl:.2g}; {cfg.layers} layers in "
        f"{cfg.compute}), clip_frac = {float(metrics['clip_frac_before']):.3f}. "
        "Sampler and trainer score the same tokens differently: look at the temperature, the "
        "position ids and the padding mask of both."
    )
