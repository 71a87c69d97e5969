"""Norms and activations. All compute in float32 and round once, at the end. Each keeps only its
input for the backward pass and recomputes the rest there: memory traffic costs more than
arithmetic."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlhf_jax.model.axes import platform
from rlhf_jax.model.dense import product

# XLA does not merge the forward and the recomputed pass here, so no barriers are needed.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def norm(x: jax.Array, gain: jax.Array, bias: jax.Array | None, axis: int = 0) -> jax.Array:
    """RMSNorm over an axis (Zhang & Sennrich 2019), or LayerNorm (Ba et al. 2016) where there is a
    bias."""
    return _norm(x, gain, bias, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _norm(x: jax.Array, gain: jax.Array, bias: jax.Array | None, axis: int) -> jax.Array:
    return _norm_forward(x, gain, bias, axis)[0]


def _normalized(x: jax.Array, centred: bool, axis: int) -> tuple[jax.Array, jax.Array]:
    """(x with mean 0, if `centred`, and mean square 1 along the axis; the factor)."""
    y = x.astype(jnp.float32)
    weights = jnp.full(x.shape[axis], 1 / x.shape[axis], jnp.float32)
    if centred:
        y -= _along(weights, y, axis)
    scale = jax.lax.rsqrt(_along(weights, jnp.square(y), axis) + 1e-6)
    return y * scale, scale


def _norm_forward(x: jax.Array, gain: jax.Array, bias: jax.Array | None, axis: int) -> Any:
    y, _ = _normalized(x, bias is not None, axis)
    y = y * _on_axis(gain, x, axis)
    if bias is not None:
        y += _on_axis(bias, x, axis)
    return y.astype(x.dtype), (x, gain, bias)


def _norm_backward(axis: int, saved: Any, g: jax.Array) -> Any:
    x, gain, bias = saved
    y, scale = _normalized(x, bias is not None, axis)
    g = g.astype(jnp.float32)
    gy, weights = g * y, gain / x.shape[axis]
    to_x = g * _on_axis(gain, x, axis) - y * _along(weights, gy, axis)
    if bias is not None:
        to_x -= _along(weights, g, axis)
    to_x = (to_x * scale).astype(x.dtype)
    return to_x, _across(gy, axis), None if bias is None else _across(g, axis)


def _along(weights: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Weighted sum along the axis, which stays with length 1. On a CPU as a product, which is
    several times faster there."""
    if platform() == "cpu":
        letters = "abcd"[: x.ndim]
        k = letters[axis]
        total = product(f"{k},{letters}->{letters.replace(k, '')}", weights, x)
        return jnp.expand_dims(total, axis)
    return jnp.sum(_on_axis(weights, x, axis) * x, axis, keepdims=True)


def _across(x: jax.Array, axis: int) -> jax.Array:
    """Sum over all other axes."""
    if platform() == "cpu" and x.ndim == 2:
        return product("ab,b->a", x, jnp.ones(x.shape[1]), PartitionSpec(None))
    return jnp.sum(x, [i for i in range(x.ndim) if i != axis])


def _on_axis(v: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    return v[(slice(None), *[None] * (x.ndim - 1 - axis))]


_norm.defvjp(_norm_forward, _norm_backward)


@_recomputed
def gelu(x: jax.Array) -> jax.Array:
    """The tanh form (Hendrycks & Gimpel 2016)."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


@_recomputed
def swiglu(x: jax.Array, gate: jax.Array) -> jax.Array:
    """Shazeer 2020."""
    return (x * jax.nn.silu(gate.astype(jnp.float32))).astype(x.dtype)
