"""The matrix product of every layer, with its gradients written out.

Activations are feature-major: a feature is a row, a token a column. So each of the three products of
training (forward, to the input, to the weights) reads its operands in the order in which they lie in
memory, and only the weights, which are small, are ever transposed. Left to automatic differentiation,
XLA's CPU backend transposes activations and takes a slow path for most of the products.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from rlhf_jax.model.axes import platform

PRODUCT = "product"
Saved = tuple[jax.Array, jax.Array]


def dense(w_IO: jax.Array, x_IN: jax.Array, out: PartitionSpec) -> jax.Array:
    """y_ON = transpose(w) x, laid out over the mesh as `out` says. Rematerialisation knows the result
    by its name, `PRODUCT`: it cannot look for products inside of gradients that are written out."""
    return checkpoint_name(_dense(w_IO, x_IN, out), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(w_IO: jax.Array, x_IN: jax.Array, out: PartitionSpec) -> jax.Array:
    return jnp.einsum("OI,IN->ON", in_memory(w_IO.T), x_IN, out_sharding=out)


def _forward(w_IO: jax.Array, x_IN: jax.Array, out: PartitionSpec) -> tuple[jax.Array, Saved]:
    return _dense(w_IO, x_IN, out), (w_IO, x_IN)


def _backward(_: PartitionSpec, saved: Saved, g_ON: jax.Array) -> Saved:
    of_w, of_x = (jax.typeof(a).sharding.spec for a in saved)
    w_IO, x_IN, g_ON = in_memory((*saved, g_ON))
    return (
        jnp.einsum("IN,ON->IO", x_IN, g_ON, out_sharding=of_w),
        jnp.einsum("IO,ON->IN", w_IO, g_ON, out_sharding=of_x),
    )


_dense.defvjp(_forward, _backward)


def in_memory(x: Any) -> Any:
    """On a CPU, makes XLA lay arrays out as they are written, instead of folding a transpose into the
    product that reads them, which is many times slower there; elsewhere XLA knows better."""
    return jax.lax.optimization_barrier(x) if platform() == "cpu" else x
