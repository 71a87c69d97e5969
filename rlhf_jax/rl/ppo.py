"""PPO for language models (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022) as one
compiled iteration of static shape: rollout, then epochs of minibatches over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.kinds.ppo.cell import POLICY_LOSSES, PPO
from rlhf_jax.model import Axes, decays
from rlhf_jax.model.scoring import Sequences
from rlhf_jax.objectives import language_modelling
from rlhf_jax.rl.advantages import kl_loss, whiten
from rlhf_jax.rl.rollout import Experience, Networks, adapt_kl, rollout
from rlhf_jax.rl.scores import Score
from rlhf_jax.study.callables import load_callable
from rlhf_jax.study.config import ConfigError
from rlhf_jax.train import TrainState, apply_gradients, gradients
from rlhf_jax.train.state import learning_rate

Batch = dict[str, jax.Array]
Iteration = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def ppo_objective(
    cell: PPO, networks: Networks, axes: Axes
) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]:
    """Clipped policy and value losses, summed over valid tokens; the batch holds an `Experience`,
    and a copy a row of `kl_coef` and of `value_scale` (see `value_scale`), which in a micro-batch
    is that of the whole minibatch; without one it is the batch's own."""
    R = cell.task.response_len
    policy_loss = load_callable(POLICY_LOSSES.get(cell.policy_loss, cell.policy_loss))

    def objective(params: Any, batch: Batch) -> tuple:
        e = Experience(**{n: batch[n] for n in Experience._fields})
        rows, mask = Sequences(e.tokens_BT, e.segments_BT, e.positions_BT), e.mask_BR
        log_probs_BR, entropy_BR, values_BR = networks.outputs(
            params, rows, R, cell.temperature, axes
        )
        log_ratio_BR = jnp.clip(log_probs_BR - e.log_probs_BR, -20, 20) * mask
        ratio_BR = jnp.exp(log_ratio_BR)
        policy_BR = policy_loss(ratio_BR, e.advantages_BR, cell)
        if (shape := jnp.shape(policy_BR)) != mask.shape:
            raise ConfigError(
                f"{cell.name}.policy_loss = {cell.policy_loss!r} gave an array of shape {shape}; "
                f"expected {mask.shape}, the loss of each token"
            )
        sums = {
            "policy_loss": jnp.sum(policy_BR * mask),
            "entropy": jnp.sum(entropy_BR * mask),
            "approx_kl": jnp.sum(0.5 * jnp.square(log_ratio_BR) * mask),
            "clip_frac": jnp.sum((jnp.abs(ratio_BR - 1) > cell.clip) * mask),
        }
        total = sums["policy_loss"]
        if values_BR is not None:
            value_BR = value_loss(values_BR, e, cell.value_clip)
            given_B = batch.get("value_scale")
            scale = value_scale(e.value_mask_BR, mask) if given_B is None else jnp.max(given_B)
            sums["value_loss"] = scale * jnp.sum(value_BR * e.value_mask_BR)
            total += cell.value_coef * sums["value_loss"]
        if cell.kl_in == "loss":
            sums["kl_loss"] = jnp.sum(kl_loss(log_probs_BR, e.reference_BR) * mask)
            total += jnp.max(batch["kl_coef"]) * sums["kl_loss"]
        return total, jnp.sum(mask), sums

    return objective


def clipped(ratio_BR: jax.Array, advantages_BR: jax.Array, cell: PPO) -> jax.Array:
    """The clipped surrogate of Schulman et al. 2017, as a loss BR."""
    near_BR = jnp.clip(ratio_BR, 1 - cell.clip, 1 + cell.clip)
    return jnp.maximum(-advantages_BR * ratio_BR, -advantages_BR * near_BR)


def value_scale(value_mask_BR: jax.Array, mask_BR: jax.Array) -> jax.Array:
    """The weight of the policy's tokens over that of the values: a sum over values, times this,
    over the policy's weight, is their mean."""
    return jnp.sum(mask_BR) / jnp.maximum(jnp.sum(value_mask_BR), 1.0)


def value_loss(values_BR: jax.Array, e: Experience, clip: float | None) -> jax.Array:
    """Half the squared error of the returns; with `clip`, the larger of it and that of a value that
    has moved by no more than that."""
    error_BR = jnp.square(values_BR - e.returns_BR)
    if clip is not None:
        near_BR = jnp.clip(values_BR, e.values_BR - clip, e.values_BR + clip)
        error_BR = jnp.maximum(error_BR, jnp.square(near_BR - e.returns_BR))
    return 0.5 * error_BR


def minibatch_of(cell: PPO, batch: Batch, rows_b: jax.Array, axes: Axes, has_critic: bool) -> Batch:
    """These rows of an iteration's batch, as the objective takes them."""
    part = {
        n: a.at[rows_b].get(out_sharding=axes.spec("batch", *[None] * (a.ndim - 1)))
        for n, a in batch.items()
    }
    if has_critic:
        if cell.whiten_advantages == "minibatch":
            white = whiten(part["advantages_BR"], part["mask_BR"], bessel=cell.bessel)
            part["advantages_BR"] = white
        scale = value_scale(part["value_mask_BR"], part["mask_BR"])
        part["value_scale"] = scale * jnp.ones_like(part["mask_BR"][:, 0])
    return part


class Learner:
    """The epochs of one iteration over its experience.

    Args:
        accumulate: micro-batches of an update.
    """

    def __init__(self, cell: PPO, networks: Networks, axes: Axes, accumulate: int) -> None:
        self.cell, self.networks, self.axes, self.accumulate = cell, networks, axes, accumulate
        self.objective = ppo_objective(cell, networks, axes)
        self.factors = {} if cell.critic_lr is None else {"critic": cell.critic_lr / cell.optim.lr}

    def decays(self, params: Any) -> Any:
        """The mask of weight decay of all networks."""
        cfgs = {"policy": self.networks.policy, "critic": self.networks.critic}
        return {name: decays(cfgs[name] or self.networks.policy, p) for name, p in params.items()}

    def pretraining(self, params: Any, batch: Batch) -> tuple:
        return language_modelling(params["policy"], batch, self.networks.policy, self.axes)

    def update(self, state: TrainState, batch: Batch, text: Batch | None, rate: jax.Array) -> Any:
        """One minibatch. The gradients of PPO-ptx's two objectives are added before the one
        update."""
        cell, axes, accumulate = self.cell, self.axes, self.accumulate
        grads, metrics = gradients(self.objective, state.params, batch, axes, accumulate)
        weight = jnp.maximum(metrics.pop("weight"), 1.0)
        loss = metrics.pop("loss")
        means = {n: m / weight for n, m in metrics.items() if n != "entropy"}
        if text is not None:
            more, seen = gradients(self.pretraining, state.params, text, axes, accumulate)
            grads = jax.tree.map(lambda a, b: a + cell.ptx_coef * b, grads, more)
            means["ptx_loss"] = seen["loss"]
        state, moved = apply_gradients(state, grads, cell.optim, rate, self.decays, self.factors)
        return state, {"loss": loss, **means, **moved}

    def learn(
        self, state: TrainState, batch: Batch, text: Batch | None, rate: jax.Array, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The state after all epochs, and means of the metrics over minibatches."""
        cell, B = self.cell, batch["tokens_BT"].shape[0]

        def minibatch(state: TrainState, x: tuple[jax.Array, Batch | None]) -> tuple:
            rows_b, text = x
            has_critic = self.networks.critic is not None
            part = minibatch_of(cell, batch, rows_b, self.axes, has_critic)
            return self.update(state, part, text, rate)

        orders = jax.vmap(lambda k: jax.random.permutation(k, B))(
            jax.random.split(key, cell.epochs)
        )
        rows = orders.reshape(cell.epochs * cell.minibatches, -1)
        each: dict[str, jax.Array]
        state, each = jax.lax.scan(minibatch, state, (rows, text))
        return state, jax.tree.map(jnp.mean, each)


def make_ppo_step(
    cell: PPO, networks: Networks, axes: Axes, score: Score, accumulate: int = 1
) -> Iteration:
    """The compiled iteration `(state, frozen, prompts_BP, text=None) -> (state, metrics)`.

    `state.params` holds `policy`, `critic` unless it shares the policy's trunk or there is none,
    and `ema` if the cell averages weights. `frozen` holds the `reference` parameters, the
    `reward`'s arrays and the `seed`, so that cells that differ in it share a compiled program.
    `text` is for PPO-ptx: a batch of the corpus of epochs x minibatches x ptx_batch rows. Metrics
    before the first update compare trainer and sampler (`max_ratio_error`, `approx_kl_before`,
    `clip_frac_before`); see `check_sampler`.
    """
    learner = Learner(cell, networks, axes, accumulate)

    def iteration(
        state: TrainState, frozen: Any, prompts_BP: jax.Array, text: Batch | None = None
    ) -> tuple[TrainState, Any]:
        key = jax.random.fold_in(jax.random.key(frozen["seed"]), state.step)
        sample_key, order_key = jax.random.split(key)
        experience, metrics = rollout(
            cell, networks, axes, score, state, frozen, prompts_BP, sample_key, accumulate
        )
        batch = experience._asdict()
        if cell.kl_in == "loss":
            batch["kl_coef"] = metrics["kl_coef"] * jnp.ones_like(batch["mask_BR"][:, 0])
        if text is not None:
            steps, layout = cell.epochs * cell.minibatches, axes.spec(None, "batch", None)
            text = {
                n: x.reshape(steps, -1, x.shape[1], out_sharding=layout) for n, x in text.items()
            }
        average = state.params.get("ema")
        trained = {n: p for n, p in state.params.items() if n != "ema"}
        rate = learning_rate(cell.optim, state)
        moved, learned = learner.learn(state.replace(params=trained), batch, text, rate, order_key)
        params = moved.params
        if average is not None and (decay := cell.ema) is not None:
            average = jax.tree.map(
                lambda a, p: decay * a + (1 - decay) * p, average, params["policy"]
            )
            params = {**params, "ema": average}
        extra = adapt_kl(cell, state.extra, metrics["kl"])
        moved = moved.replace(step=state.step + 1, params=params, extra=extra)
        return moved, {**metrics, **learned}

    return jax.jit(iteration, donate_argnums=0)
