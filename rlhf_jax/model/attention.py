"""Attention in plain jnp, with one mask rule for packed rows, padding, decoding and encoders.

Which kernel computes it is decided in `rlhf_jax.model.dispatch`; this is the one that the others are
tested against.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.model.axes import Axes


def visible(
    q_segments_BT: jax.Array,
    k_segments_BS: jax.Array,
    q_positions_BT: jax.Array,
    k_positions_BS: jax.Array,
    causal: bool = True,
) -> jax.Array:
    """mask_BTS: a query sees the keys of its own segment that are not in its future. Segment 0 is
    padding (and the unwritten part of a cache): nobody sees it. An encoder drops `causal`."""
    mask_BTS = (q_segments_BT[:, :, None] == k_segments_BS[:, None, :]) & (
        k_segments_BS[:, None, :] > 0
    )
    if causal:
        mask_BTS &= k_positions_BS[:, None, :] <= q_positions_BT[:, :, None]
    return mask_BTS


def reference(
    q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array, mask_BTS: jax.Array, axes: Axes
) -> jax.Array:
    """Softmax attention (Vaswani et al. 2017), H query heads sharing K key-value heads (Ainslie et
    al. 2023). Softmax in float32. A query that sees nothing gets the mean of all values, and its
    output is never used. Returns BTHC."""
    B, T, H, C = q_BTHC.shape
    K = k_BSKC.shape[2]
    q_BTKGC = q_BTHC.reshape(
        B, T, K, H // K, C, out_sharding=axes.spec("batch", None, "heads", None, None)
    )
    scores_BKGTS = jnp.einsum("BTKGC,BSKC->BKGTS", q_BTKGC, k_BSKC).astype(jnp.float32) * C**-0.5
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, -1e30)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKC.dtype)
    out_BTKGC = jnp.einsum("BKGTS,BSKC->BTKGC", weights_BKGTS, v_BSKC)
    return out_BTKGC.reshape(B, T, H, C, out_sharding=axes.spec("batch", None, "heads", None))


def rotate(x_BTHC: jax.Array, positions_BT: jax.Array, base: float) -> jax.Array:
    """Rotary positions (Su et al. 2021), halves convention: channel i turns with channel i + C/2."""
    C = x_BTHC.shape[-1]
    frequencies = base ** (-jnp.arange(0, C, 2, dtype=jnp.float32) / C)
    angles_BTC = positions_BT[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles_BTC)[:, :, None], jnp.sin(angles_BTC)[:, :, None]
    a, b = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHC.dtype)
