"""The one train step: objectives plug in as (sum, weight, metrics)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.model import Axes
from rlhf_jax.study.config import ConfigError, OptimConfig
from rlhf_jax.train.state import TrainState, apply_gradients, learning_rate

Batch = dict[str, jax.Array]
Objective = Callable[[Any, Batch], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
Decays = Callable[[Any], Any]  # parameters -> a tree of bools: `model.decays` of a configuration
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def gradients(
    objective: Objective, params: Any, batch: Batch, axes: Axes, accumulate: int = 1
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradients of (global sum) / (global weight) and the metrics `loss`, `weight` and the
    objective's own sums, over `accumulate` micro-batches: equal to the big batch whatever the
    masks, because sums and weights are added up before the one division."""

    def summed(
        params: Any, batch: Batch
    ) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
        total, weight, metrics = objective(params, batch)
        return total, (weight, metrics)

    grad = jax.value_and_grad(summed, has_aux=True)
    if accumulate == 1:
        (total, (weight, metrics)), grads = grad(params, batch)
    else:

        def add(carry: Any, micro: Batch) -> tuple[Any, None]:
            (total, (weight, metrics)), grads = grad(params, micro)
            return jax.tree.map(jnp.add, carry, (total, weight, metrics, grads)), None

        micros = micro_batches(batch, axes, accumulate)
        first = jax.tree.map(lambda x: x[0], micros)
        (total, (weight, metrics)), grads = grad(params, first)
        rest = jax.tree.map(lambda x: x[1:], micros)
        (total, weight, metrics, grads), _ = jax.lax.scan(
            add, (total, weight, metrics, grads), rest
        )
    scale = 1.0 / jnp.maximum(weight, 1.0)
    grads = jax.tree.map(lambda g: g * scale, grads)
    return grads, {"loss": total * scale, "weight": weight, **metrics}


def micro_batches(batch: Any, axes: Axes, accumulate: int) -> Any:
    """Arrays (B, ...) as (accumulate, B / accumulate, ...), the rows of each part over the batch
    axes."""
    B = jax.tree.leaves(batch)[0].shape[0]
    if B % accumulate:
        raise ConfigError(f"{accumulate} accumulation steps do not divide a batch of {B}")

    def split(x: jax.Array) -> jax.Array:
        shape = (accumulate, B // accumulate, *x.shape[1:])
        rest = [None] * (x.ndim - 1)
        return x.reshape(shape, out_sharding=axes.spec(None, "batch", *rest))

    return jax.tree.map(split, batch)


def in_micro_batches(of: Callable[[Any], Any], batch: Any, axes: Axes, accumulate: int = 1) -> Any:
    """`of(batch)`, whose outputs are arrays of the batch's rows, in `accumulate` parts one after
    the other, so that a part's activations are in memory at a time."""
    if accumulate == 1:
        return of(batch)

    def joined(x: jax.Array) -> jax.Array:
        rest = [None] * (x.ndim - 2)
        return x.reshape(-1, *x.shape[2:], out_sharding=axes.spec("batch", *rest))

    return jax.tree.map(joined, jax.lax.map(of, micro_batches(batch, axes, accumulate)))


def train_step(
    objective: Objective, optim: OptimConfig, decays: Decays, axes: Axes, accumulate: int = 1
) -> Step:
    """One optimizer step as a pure function. `decays`: see `apply_gradients`."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, metrics = gradients(objective, state.params, batch, axes, accumulate)
        rate = learning_rate(optim, state)
        state, moved = apply_gradients(state, grads, optim, rate, decays)
        return state.replace(step=state.step + 1), {**metrics, **moved}

    return step


def make_train_step(
    objective: Objective, optim: OptimConfig, decays: Decays, axes: Axes, accumulate: int = 1
) -> Step:
    """The compiled step. The state's buffers are donated."""
    return jax.jit(train_step(objective, optim, decays, axes, accumulate), donate_argnums=0)
