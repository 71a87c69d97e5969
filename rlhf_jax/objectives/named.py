"""Objectives that a study names as MODULE:FUNCTION, in the place of `language_modelling`.

The function has the same signature, (params, batch, cfg, axes) -> (sum, weight, metrics):

    params: the model's parameters. cfg: its `ModelConfig`. axes: the layout of arrays on the mesh.
        `rlhf_jax.model` and `rlhf_jax.model.scoring` compute hidden states, logits and log-probs.
    batch: BT arrays tokens, targets, segments, positions, weights and bytes, as
        `language_modelling` has them.
    sum, weight: the loss is the global sum over the global weight, of all devices and
        micro-batches.
    metrics: sums over the same elements by name; metrics.jsonl has them divided by the weight.

It is traced by jax, so it must be a pure function of jax arrays.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.model import Axes
from rlhf_jax.objectives.language import Batch, language_modelling
from rlhf_jax.study.callables import load_callable, raised, said
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.messages import shown
from rlhf_jax.train.step import Objective

RESERVED = ("loss", "weight", "bytes", "lr", "grad_norm")  # metrics that every step has


def named_objective(name: str, where: str, cfg: ModelConfig, axes: Axes) -> Objective:
    """The objective (params, batch) that a cell's field `where` names; empty: `language_modelling`.
    Its metrics have the `bytes` of the weighted targets.

    Raises:
        ConfigError: while it is traced: the function fails, or returns something else.
    """
    if not name:
        return lambda params, batch: language_modelling(params, batch, cfg, axes)
    function, what = load_callable(name), f"{where} = {name!r}"

    def objective(params: Any, batch: Batch) -> tuple:
        try:
            found = function(params, batch, cfg, axes)
        except ConfigError:
            raise
        except Exception as e:  # of the user's function, whatever it is
            raise ConfigError(f"{what} raised {said(e)}{raised(e)}") from e
        total, weight, metrics = _checked(found, what)
        size = jnp.sum(batch["bytes"]).astype(jnp.float32)
        return total, weight, {**metrics, "bytes": size}

    return objective


def _checked(found: Any, what: str) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(sum, weight, metrics) as float32 scalars."""
    wanted = "expected (sum, weight, metrics): two scalars and a dict of scalars by name"
    if not isinstance(found, tuple) or len(found) != 3:
        kind = f"a tuple of {len(found)}" if isinstance(found, tuple) else type(found).__name__
        raise ConfigError(f"{what} returned {kind}; {wanted}")
    total, weight, metrics = found
    if not isinstance(metrics, dict) or not all(isinstance(k, str) for k in metrics):
        raise ConfigError(f"{what} returned {shown(metrics)} as metrics; {wanted}")
    if taken := [k for k in metrics if k in RESERVED]:
        raise ConfigError(
            f"{what} returned a metric named {taken[0]!r}, which every step has; rename it"
        )
    return (
        _scalar(total, "the sum", what),
        _scalar(weight, "the weight", what),
        {k: _scalar(v, f"metric {k!r}", what) for k, v in metrics.items()},
    )


def _scalar(value: Any, name: str, what: str) -> jax.Array:
    try:
        array = jnp.asarray(value)
        number = array.ndim == 0 and (
            jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
        )
    except (TypeError, ValueError):
        raise ConfigError(f"{what} returned {shown(value)} as {name}; expected a scalar") from None
    if not number:
        raise ConfigError(
            f"{what} returned an array of shape {array.shape} and type {array.dtype} as {name}; "
            f"expected a scalar: sum over rows and positions"
        )
    return array.astype(jnp.float32)
