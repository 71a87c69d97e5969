"""Attention in plain jnp, with one mask rule for packed rows, padding and decoding.

Which kernel computes it is decided in `rlhf_jax.model.dispatch`; this is the one that the others
are tested against.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.model.axes import Axes
from rlhf_jax.model.dense import einsum, in_memory


def visible(
    q_segments_BT: jax.Array,
    k_segments_BS: jax.Array,
    q_positions_BT: jax.Array,
    k_positions_BS: jax.Array,
) -> jax.Array:
    """mask_BTS: a query attends to the keys of its own segment that are not later. Segment 0 is
    padding, or the unwritten part of a cache: no query attends to it."""
    same_BTS = q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
    past_BTS = k_positions_BS[:, None, :] <= q_positions_BT[:, :, None]
    return same_BTS & (k_segments_BS[:, None, :] > 0) & past_BTS


def reference(
    q_HBCT: jax.Array, k_KBCS: jax.Array, v_KBCS: jax.Array, mask_BTS: jax.Array, axes: Axes
) -> jax.Array:
    """Softmax attention (Vaswani et al. 2017), H query heads sharing K key-value heads (Ainslie et
    al. 2023). Scores and softmax in float32. A query whose keys are all masked gets the mean of all
    values; its output is never used. Returns HBCT."""
    H, B, C, T = q_HBCT.shape
    K = k_KBCS.shape[0]
    split = axes.spec("heads", None, "batch", None, None)
    q_KGBCT = q_HBCT.reshape(K, H // K, B, C, T, out_sharding=split)
    scores_KGBTS = einsum("KGBCT,KBCS->KGBTS", q_KGBCT, k_KBCS) * C**-0.5
    scores_KGBTS = jnp.where(mask_BTS, scores_KGBTS, -1e30)
    weights_KGBTS = jax.nn.softmax(scores_KGBTS, axis=-1).astype(v_KBCS.dtype)
    out_KGBCT = einsum("KGBTS,KBCS->KGBCT", weights_KGBTS, v_KBCS).astype(q_HBCT.dtype)
    return out_KGBCT.reshape(H, B, C, T, out_sharding=axes.spec("heads", "batch", None, None))


@jax.custom_vjp
def cpu_attention(
    q_HBCT: jax.Array, k_KBCS: jax.Array, v_KBCS: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """`reference` of float32 arrays, in the order of operations that is fast on a CPU (see
    `rlhf_jax.model.dense`): only the queries and the output's gradient are ever transposed, and the
    backward pass is written by hand. X = H / K T are the queries of the heads that share one
    key-value head, one head after the other."""
    return _forward(q_HBCT, k_KBCS, v_KBCS, mask_BTS)[0]


def _forward(
    q_HBCT: jax.Array, k_KBCS: jax.Array, v_KBCS: jax.Array, mask_BTS: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    H, _, C, _ = q_HBCT.shape
    q_KBCX = _side_by_side(q_HBCT * C**-0.5, len(k_KBCS))
    mask_BXS = jnp.tile(mask_BTS, (1, H // len(k_KBCS), 1))
    scores_KBXS = _product(in_memory(jnp.swapaxes(q_KBCX, 2, 3)), k_KBCS, 3, 2)
    scores_KBXS = jnp.where(mask_BXS, scores_KBXS, -1e30)
    e_KBXS = jnp.exp(scores_KBXS - jnp.max(scores_KBXS, -1, keepdims=True))
    p_KBXS = e_KBXS * (1 / jnp.sum(e_KBXS, -1, keepdims=True))
    out_KBCX = _product(v_KBCS, p_KBXS, 3, 3)
    return _by_head(out_KBCX, H), (q_KBCX, k_KBCS, v_KBCS, p_KBXS, out_KBCX)


def _backward(
    saved: tuple[jax.Array, ...], g_HBCT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_KBCX, k_KBCS, v_KBCS, p_KBXS, out_KBCX = saved
    H, _, C, _ = g_HBCT.shape
    g_KBCX = _side_by_side(g_HBCT, len(k_KBCS))
    to_p_KBXS = _product(in_memory(jnp.swapaxes(g_KBCX, 2, 3)), v_KBCS, 3, 2)
    to_scores_KBXS = p_KBXS * (to_p_KBXS - jnp.sum(g_KBCX * out_KBCX, 2)[..., None])
    to_q_KBCX = _product(k_KBCS, to_scores_KBXS, 3, 3) * C**-0.5
    to_k_KBCS = _product(q_KBCX, to_scores_KBXS, 3, 2)
    to_v_KBCS = _product(g_KBCX, p_KBXS, 3, 2)
    return _by_head(to_q_KBCX, H), to_k_KBCS, to_v_KBCS, None


cpu_attention.defvjp(_forward, _backward)


def _product(a: jax.Array, b: jax.Array, of_a: int, of_b: int) -> jax.Array:
    dimensions = (((of_a,), (of_b,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dimensions, precision=jax.lax.Precision.HIGHEST)


def _side_by_side(x_HBCT: jax.Array, K: int) -> jax.Array:
    """KBCX: the H / K heads of a group, one after the other."""
    H, B, C, T = x_HBCT.shape
    x_KGBCT = x_HBCT.reshape(K, H // K, B, C, T)
    return jnp.transpose(x_KGBCT, (0, 2, 3, 1, 4)).reshape(K, B, C, H // K * T)


def _by_head(x_KBCX: jax.Array, H: int) -> jax.Array:
    """HBCT: the inverse of `_side_by_side`."""
    K, B, C, X = x_KBCX.shape
    x_KBCGT = x_KBCX.reshape(K, B, C, H // K, X * K // H)
    return jnp.transpose(x_KBCGT, (0, 3, 1, 2, 4)).reshape(H, B, C, X * K // H)


def rotate(x_HBCT: jax.Array, positions_BT: jax.Array, base: float) -> jax.Array:
    """Rotary positions (Su et al. 2021), halves convention: channel i turns with channel i +
    C/2."""
    C = x_HBCT.shape[2]
    frequencies_C = base ** (-jnp.arange(0, C, 2, dtype=jnp.float32) / C)
    angles_BCT = positions_BT[:, None].astype(jnp.float32) * frequencies_C[:, None]
    cos, sin = jnp.cos(angles_BCT), jnp.sin(angles_BCT)
    a, b = jnp.split(x_HBCT, 2, axis=2)  # before float32, which XLA would copy whole on a TPU
    turned = (a * cos - b * sin, b * cos + a * sin)
    return jnp.concatenate([half.astype(x_HBCT.dtype) for half in turned], axis=2)
