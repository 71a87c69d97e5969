"""A model of any architecture: its functions, its initial parameters and its scalar head."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.model.architecture import architecture
from rlhf_jax.model.axes import Axes
from rlhf_jax.model.dense import product
from rlhf_jax.model.parameters import HEAD, Parameter, Tree, describe
from rlhf_jax.model.sharding import AXES, shardings
from rlhf_jax.study.config import ModelConfig

__all__ = [
    "Axes",
    "decays",
    "forward",
    "has_scalar_head",
    "init",
    "init_cache",
    "initialised",
    "logits",
    "param_axes",
    "scalars",
    "with_scalar_head",
    "without_scalar_head",
]
Params = dict[str, Any]


def forward(
    params: Params,
    cfg: ModelConfig,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    positions_BT: jax.Array,
    axes: Axes,
    cache: Any = None,
    last: int | None = None,
) -> tuple[jax.Array, Any]:
    """Hidden states x_DBT and the extended cache; see `architecture.Architecture.forward`."""
    return architecture(cfg).forward(
        params, cfg, tokens_BT, segments_BT, positions_BT, axes, cache, last
    )


def logits(params: Params, cfg: ModelConfig, x_DBT: jax.Array, axes: Axes) -> jax.Array:
    """Next-token logits_VBT in float32."""
    return architecture(cfg).logits(params, cfg, x_DBT, axes)


def init_cache(cfg: ModelConfig, batch: int, length: int, axes: Axes) -> Any:
    """An empty cache for `length` positions."""
    return architecture(cfg).init_cache(cfg, batch, length, axes)


def scalars(params: Params, x_DBT: jax.Array) -> jax.Array:
    """The scalar head at every position, BT in float32: rewards or values."""
    head = params[HEAD]
    return product("DBT,D->BT", x_DBT.astype(jnp.float32), head["w"]) + head["b"]


def has_scalar_head(params: Params) -> bool:
    return HEAD in params


def with_scalar_head(params: Params, cfg: ModelConfig, key: jax.Array | None) -> Params:
    """The same model with a head that reads one number off every position. With a key its weights
    are N(0, 1/(D+1)) (Stiennon et al. 2020, for rewards); without, 0 (Ziegler et al. 2019, for
    values)."""
    D = cfg.width
    w = jnp.zeros(D) if key is None else jax.random.normal(key, (D,)) / math.sqrt(D + 1)
    return {**params, HEAD: {"w": w, "b": jnp.zeros(())}}


def without_scalar_head(params: Params) -> Params:
    return {name: p for name, p in params.items() if name != HEAD}


def mapped(of: Callable[[Parameter], Any], tree: Tree) -> Any:
    """`of` every parameter of a description."""
    return jax.tree.map(of, tree, is_leaf=lambda x: isinstance(x, Parameter))


def param_axes(cfg: ModelConfig, scalar_head: bool = False) -> Params:
    """Logical axis names of every parameter, in the parameters' tree."""
    return mapped(lambda p: p.axes, describe(cfg, scalar_head))  # type: ignore[no-any-return]


def decays(cfg: ModelConfig, params: Params) -> Params:
    """Whether weight decay applies, in the tree of these parameters of the model."""
    tree = describe(cfg, has_scalar_head(params))
    return mapped(lambda p: p.decays, tree)  # type: ignore[no-any-return]


def init(cfg: ModelConfig, key: jax.Array, axes: Axes = Axes()) -> Params:  # noqa: B008
    """Initial parameters, as `parameters` describes them. Under `jit` each device draws only its
    own part of what the mesh in use splits. The numbers are the same on every mesh."""
    of_parameters, structure = jax.tree.flatten(
        describe(cfg), is_leaf=lambda x: isinstance(x, Parameter)
    )

    def drawn(i: int, p: Parameter) -> jax.Array:
        if not p.std:
            return jnp.full(p.shape, p.mean, jnp.float32)
        its_key = jax.random.fold_in(key, i)
        if axes.splits(*p.axes):
            layout = axes.param_spec(*p.axes)
            values = jax.random.normal(its_key, p.shape, jnp.float32, out_sharding=layout)
        else:
            # Flat: XLA's CPU compiler takes three times as long over the index arithmetic of 3-d
            # draws.
            values = jax.random.normal(its_key, (p.size,), jnp.float32).reshape(p.shape)
        return p.std * values + p.mean if p.mean else p.std * values

    return jax.tree.unflatten(structure, [drawn(i, p) for i, p in enumerate(of_parameters)])  # type: ignore[no-any-return]


def initialised(cfg: ModelConfig, key: jax.Array, mesh: Mesh, axes: Axes = AXES) -> Params:
    """Initial parameters on a mesh; no device ever holds more than its part."""
    return initialiser(cfg, mesh, axes)(key)  # type: ignore[no-any-return]


@functools.cache
def initialiser(cfg: ModelConfig, mesh: Mesh, axes: Axes) -> Any:
    """The compiled `init`: one program for all keys."""
    layout = shardings(mesh, param_axes(cfg), axes)
    return jax.jit(functools.partial(init, cfg, axes=axes), out_shardings=layout)
