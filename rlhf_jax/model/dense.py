"""Every matrix product of a model, and the precision that it is computed in.

Precision. By default XLA multiplies float32 in one pass of bfloat16 on a TPU and in TF32 on a
recent GPU. Float32 operands ask for `HIGHEST`, so a float32 model is float32 everywhere; bfloat16
operands are exact in one pass and ask for nothing. In both the products accumulate in float32, over
the devices that share a sum too, and are rounded to the dtype of the activations once, afterwards,
or not at all (logits, attention scores, gradients of parameters). It is an argument of each
product, and not `jax_default_matmul_precision`: that is read while a function is traced, which for
a backward pass is after a context has ended, and it would multiply the float32 intermediates of a
bfloat16 attention kernel in six passes. `in_float32` is for kernels that take no such argument.

Layout. Activations are feature-major: a feature is a row, a token a column. So each of the three
products of training (forward, gradient of the input, gradient of the weights) reads its operands in
memory order, and only the weights, which are small, are ever transposed. With automatic
differentiation, XLA's CPU backend transposes activations and takes a slow path for most of the
products.

Parameters are float32. `dense` and `lookup` take them as they are stored: what is spread over
devices is cast before it is gathered, so half as much is sent in bfloat16, and gradients stay
float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import Precision
from jax.sharding import PartitionSpec

from rlhf_jax.model.axes import Axes, platform

PRODUCT = "product"
Saved = tuple[jax.Array, jax.Array]


def product(
    equation: str, a: jax.Array, b: jax.Array, out: PartitionSpec | None = None
) -> jax.Array:
    """The einsum of two arrays of one dtype, in float32; `out` is its layout over the mesh. XLA's
    CPU backend has no products of bfloat16 with a float32 result, so they are widened before."""
    if platform() == "cpu":
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    precision = Precision.HIGHEST if a.dtype == jnp.float32 else Precision.DEFAULT
    return jnp.einsum(
        equation, a, b, precision=precision, preferred_element_type=jnp.float32, out_sharding=out
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`product` with gradients: the result's is rounded to the operands' dtype before it is
    multiplied. Every letter is in two of the three terms."""
    return product(equation, a, b)


def _einsum_forward(equation: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, Saved]:
    return product(equation, a, b), (a, b)


def _einsum_backward(equation: str, saved: Saved, g: jax.Array) -> Saved:
    a, b = saved
    of_a, of_b, of_g = equation.replace("->", ",").split(",")
    g = g.astype(a.dtype)
    return (
        product(f"{of_g},{of_b}->{of_a}", g, b).astype(a.dtype),
        product(f"{of_g},{of_a}->{of_b}", g, a).astype(b.dtype),
    )


einsum.defvjp(_einsum_forward, _einsum_backward)


def dense(
    w: jax.Array,
    x_IN: jax.Array,
    out: PartitionSpec,
    axes: Axes,
    names: Sequence[str | None],
    inputs: int = 1,
    dtype: Any = None,
) -> jax.Array:
    """y_ON = transpose(w) x, laid out over the mesh as `out` says, in `dtype` (None: that of x).
    The first `inputs` dimensions of the parameter are I together, the others O; `names` are their
    logical axes. Rematerialisation knows the result by its name, `PRODUCT`: it cannot look for
    products inside of gradients that are written out."""
    use = _Use(axes, tuple(names), inputs, w.shape, jax.typeof(w).sharding.spec)
    return checkpoint_name(_dense(w, x_IN, out, use, jnp.dtype(dtype or x_IN.dtype)), PRODUCT)


class _Use(NamedTuple):
    """How a parameter becomes the matrix of a product."""

    axes: Axes
    names: tuple[str | None, ...]
    inputs: int
    shape: tuple[int, ...]
    stored: PartitionSpec

    def matrix(self, w: jax.Array, dtype: Any) -> jax.Array:
        """w_IO in `dtype`, gathered over the data axes."""
        w = self.axes.gathered(w.astype(dtype), *self.names)
        layout = self.axes.spec(self.names[0], self.names[self.inputs])
        return w.reshape(math.prod(self.shape[: self.inputs]), -1, out_sharding=layout)

    def gradient(self, x_IN: jax.Array, g_ON: jax.Array) -> jax.Array:
        """Of the parameter, float32, as it is stored: over the data axes it is summed and
        scattered."""
        layout = PartitionSpec(self.stored[0], self.stored[self.inputs])
        to_w_IO = product("IN,ON->IO", x_IN, g_ON, layout)
        return to_w_IO.reshape(self.shape, out_sharding=self.stored)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dense(w: jax.Array, x_IN: jax.Array, out: PartitionSpec, use: _Use, dtype: Any) -> jax.Array:
    return _forward(w, x_IN, out, use, dtype)[0]


def _forward(
    w: jax.Array, x_IN: jax.Array, out: PartitionSpec, use: _Use, dtype: Any
) -> tuple[jax.Array, Saved]:
    w_IO = use.matrix(w, x_IN.dtype)
    y_ON = product("OI,IN->ON", in_memory(w_IO.T), x_IN, out)
    return y_ON.astype(dtype), (w_IO, x_IN)


def _backward(_: PartitionSpec, use: _Use, __: Any, saved: Saved, g_ON: jax.Array) -> Saved:
    of_x, dtype = jax.typeof(saved[1]).sharding.spec, saved[1].dtype
    w_IO, x_IN, g_ON = in_memory((*saved, g_ON.astype(dtype)))
    to_x_IN = product("IO,ON->IN", w_IO, g_ON, of_x).astype(dtype)
    return use.gradient(x_IN, g_ON), to_x_IN


_dense.defvjp(_forward, _backward)


def lookup(
    table: jax.Array,
    ids: jax.Array,
    out: PartitionSpec,
    axes: Axes,
    names: Sequence[str | None],
    dtype: Any,
) -> jax.Array:
    """Rows of a table in `dtype`, laid out as `out` says; `names` are the table's logical axes.
    Their gradients are added up in float32: those of a frequent token are thousands."""

    def rows(table: jax.Array, ids: jax.Array) -> jax.Array:
        return axes.gathered(table, *names).at[ids].get(out_sharding=out)

    stored = jax.typeof(table)

    @jax.custom_vjp
    def rounded(table: jax.Array, ids: jax.Array) -> jax.Array:
        return rows(table.astype(dtype), ids)

    def forward(table: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        return rounded(table, ids), ids

    def backward(ids: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
        transposed = jax.linear_transpose(lambda table: rows(table, ids), stored)
        return transposed(g.astype(stored.dtype))[0], None

    rounded.defvjp(forward, backward)
    return rounded(table, ids)


def in_float32(kernel: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A kernel of (q, k, v, segments) whose products are float32 in both passes, as far as they ask
    for nothing themselves."""

    @jax.custom_vjp
    def precise(q: jax.Array, k: jax.Array, v: jax.Array, segments: Any) -> jax.Array:
        return forward(q, k, v, segments)[0]

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, segments: Any) -> tuple[jax.Array, Any]:
        with jax.default_matmul_precision("highest"):
            return jax.vjp(lambda *qkv: kernel(*qkv, segments), q, k, v)

    def backward(pull: Any, g: jax.Array) -> tuple[jax.Array, ...]:
        with jax.default_matmul_precision("highest"):
            return (*pull(g), None)

    precise.defvjp(forward, backward)
    return precise


def in_memory(x: Any) -> Any:
    """On a CPU, keeps XLA from folding a transpose into the product that reads it, which is many
    times slower there; on other platforms nothing is done."""
    return jax.lax.optimization_barrier(x) if platform() == "cpu" else x
