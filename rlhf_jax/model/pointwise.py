"""What is not a matrix product: norms and activations. Each keeps nothing for its backward pass but
its input, and works the rest out again there; memory traffic costs more than arithmetic."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

# Without the barriers that keep the compiler from merging both passes: it does not, here.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def norm(x: jax.Array, gain: jax.Array, bias: jax.Array | None, axis: int = 0) -> jax.Array:
    """RMSNorm over an axis (Zhang & Sennrich 2019), or LayerNorm (Ba et al. 2016) where there is a
    bias. In float32."""
    across = (slice(None), *[None] * (x.ndim - 1 - axis))

    @_recomputed
    def normed(x: jax.Array, gain: jax.Array, bias: jax.Array | None) -> jax.Array:
        y = x.astype(jnp.float32)
        if bias is not None:
            y -= jnp.mean(y, axis, keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis, keepdims=True) + 1e-6)
        y = y * gain[across] if bias is None else y * gain[across] + bias[across]
        return y.astype(x.dtype)

    return normed(x, gain, bias)


@_recomputed
def gelu(x: jax.Array) -> jax.Array:
    """The tanh form (Hendrycks & Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=True)


@_recomputed
def swiglu(x: jax.Array, gate: jax.Array) -> jax.Array:
    """Shazeer 2020."""
    return x * jax.nn.silu(gate)
