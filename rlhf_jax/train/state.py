"""The train state and the optimizer: AdamW, warmup and a schedule.

Learning rate, weight decay and the schedule's ends are arrays in the state, so that cells that
differ in numbers alone share one compiled program. `optax.inject_hyperparams` would move them into
the optimizer's state, which changes the layout of checkpoints, and optax's schedules need their
lengths while a program is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rlhf_jax.study.config import OptimConfig


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes. Data order and random keys are functions of `step`."""

    step: jax.Array  # optimizer steps (of PPO: iterations) taken
    params: Any
    opt: Any
    hyper: dict[str, jax.Array]  # lr (peak), weight_decay, and the schedule's first and last step
    extra: dict[str, jax.Array]  # what an algorithm adds, e.g. PPO's KL coefficient


def _adam(optim: OptimConfig) -> optax.GradientTransformation:
    adam = _tensorflow_adam if optim.adam == "tensorflow" else optax.scale_by_adam
    return optax.chain(
        optax.clip_by_global_norm(optim.clip), adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)
    )


def _tensorflow_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam with `eps` beside sqrt(v) before the bias correction, the form in section 2 of Kingma &
    Ba 2015: sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps). Early steps are smaller than with
    `eps` after it."""
    moments = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _, state = moments.update(grads, state, params)
        t = state.count.astype(jnp.float32)
        rate = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        return jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + eps), state.mu, state.nu), state

    return optax.GradientTransformation(moments.init, update)


# Zeros of the parameters' shapes, whatever the numbers in the optimizer's configuration.
_moments = jax.jit(_adam(OptimConfig()).init)


def hyper_parameters(optim: OptimConfig, start: int, end: int) -> dict[str, jax.Array]:
    """The numbers of a cell that runs the optimizer steps [start, end), as arrays: cells that
    differ in them alone share one compiled step."""
    return {
        "lr": jnp.float32(optim.lr),
        "weight_decay": jnp.float32(optim.weight_decay),
        "start": jnp.int32(start),
        "end": jnp.int32(end),
    }


def init_state(params: Any, optim: OptimConfig, steps: int, **extra: Any) -> TrainState:
    """A fresh state over placed parameters, for a run of `steps`; the moments lie where the
    parameters lie."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt=_moments(params),
        hyper=hyper_parameters(optim, 0, steps),
        extra={k: jnp.asarray(v) for k, v in extra.items()},
    )


def learning_rate(optim: OptimConfig, state: TrainState) -> jax.Array:
    """The learning rate of the state's next step: linear warmup, then constant, linear, cosine
    (Loshchilov & Hutter 2016), or warmup-stable-decay (Hu et al. 2024) to `optim.final`."""
    n = jnp.maximum(state.hyper["end"] - state.hyper["start"], 1).astype(jnp.float32)
    t = (state.step - state.hyper["start"]).astype(jnp.float32)  # steps taken so far
    warmup = jnp.round(optim.warmup * n)
    peak = state.hyper["lr"] * jnp.minimum((t + 1) / jnp.maximum(warmup, 1), 1.0)
    if optim.schedule == "constant":
        return peak
    first = jnp.round((1 - optim.decay) * n) if optim.schedule == "wsd" else warmup
    done = jnp.clip((t - first) / jnp.maximum(n - first, 1), 0.0, 1.0)
    fall = 0.5 * (1 - jnp.cos(jnp.pi * done)) if optim.schedule == "cosine" else done
    return peak * (1 - (1 - optim.final) * fall)


def apply_gradients(
    state: TrainState,
    grads: Any,
    optim: OptimConfig,
    rate: jax.Array,
    decays: Callable[[Any], Any],
    factors: Mapping[str, float] = MappingProxyType({}),
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One AdamW update with learning rate `rate`, times the factor that a top-level entry of the
    parameters may have. `decays` gives the mask of (decoupled) weight decay for the parameters'
    tree. `step` is left as it is: whoever owns the loop counts. Metrics: lr, grad_norm (before
    clipping)."""
    updates, opt = _adam(optim).update(grads, state.opt, state.params)
    decay = optax.add_decayed_weights(state.hyper["weight_decay"], decays(state.params))
    updates, _ = decay.update(updates, decay.init(state.params), state.params)

    def move(path: Any, p: jax.Array, u: jax.Array) -> jax.Array:
        return p - rate * factors.get(path[0].key, 1.0) * u

    params = jax.tree_util.tree_map_with_path(move, state.params, updates)
    metrics = {"lr": rate, "grad_norm": optax.tree.norm(grads)}
    return state.replace(params=params, opt=opt), metrics
