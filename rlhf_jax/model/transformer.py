"""The Transformer, as `rlhf_jax.model.architecture.Architecture`.

Parameters (`rlhf_jax.model.parameters.transformer`) are a plain dict of float32 arrays; those of
the layers are stacked along a leading L and scanned. Shapes are in the names: see
`rlhf_jax.study.config.ModelConfig` for the letters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.model.attention import rotate
from rlhf_jax.model.axes import Axes, platform
from rlhf_jax.model.dense import PRODUCT, dense, in_memory, lookup
from rlhf_jax.model.dispatch import Mask, attend, attention_mask
from rlhf_jax.model.parameters import attended
from rlhf_jax.model.parameters import transformer as describe
from rlhf_jax.model.pointwise import gelu, norm, swiglu
from rlhf_jax.study.config import ModelConfig

__all__ = ["attended", "describe", "forward", "init_cache", "logits"]
Params = dict[str, Any]
# Layers are unrolled on a CPU up to this many: a loop costs a few percent of a step there, but
# without one, compiling takes longer with every layer.
UNROLLED = 8


class Cache(NamedTuple):
    """Keys and values of S positions, `length` of them written.

    Attributes:
        layers: (k_KBCS, v_KBCS) of every layer; where layers are scanned, one pair of LKBCS.
        segments_BS: 0 where nothing is written, and on padding.
    """

    layers: Any
    segments_BS: jax.Array
    positions_BS: jax.Array
    length: jax.Array

    def repeated(self, rows_B: jax.Array, axes: Axes) -> Cache:
        """The cache of a batch whose rows are these rows of this one."""

        def rows(x: jax.Array) -> jax.Array:
            stacked = (None,) * (x.ndim - 4)
            spec = axes.spec(*stacked, "heads", "batch", None, None)
            return x.at[(slice(None),) * (x.ndim - 3) + (rows_B,)].get(out_sharding=spec)

        ids = axes.spec("batch", None)
        return Cache(
            jax.tree.map(rows, self.layers),
            self.segments_BS.at[rows_B].get(out_sharding=ids),
            self.positions_BS.at[rows_B].get(out_sharding=ids),
            self.length,
        )

    def extended(self, segments_BT: jax.Array, positions_BT: jax.Array) -> Cache:
        """With segments and positions of T more tokens; `length` and `layers` as they are."""
        at = (0, self.length)
        return self._replace(
            segments_BS=jax.lax.dynamic_update_slice(self.segments_BS, segments_BT, at),
            positions_BS=jax.lax.dynamic_update_slice(self.positions_BS, positions_BT, at),
        )


class States(NamedTuple):
    """Hidden states DN of rows of tokens, N = B T, and the tokens' positions."""

    x_DN: jax.Array
    positions_BT: jax.Array


def unrolled(cfg: ModelConfig) -> bool:
    """Whether layers follow each other in the program, instead of in a loop."""
    return platform() == "cpu" and cfg.layers <= UNROLLED


def init_cache(cfg: ModelConfig, batch: int, length: int, axes: Axes) -> Cache:
    """An empty cache for `length` positions."""
    shape, names = (cfg.K, batch, cfg.C, length), ("heads", "batch", None, None)
    ids = axes.constrain(jnp.zeros((batch, length), jnp.int32), "batch", None)
    layers: Any
    if unrolled(cfg):
        kv = axes.constrain(jnp.zeros(shape, cfg.compute), *names)
        layers = ((kv, kv),) * cfg.layers
    else:
        kv = axes.constrain(jnp.zeros((cfg.layers, *shape), cfg.compute), None, *names)
        layers = (kv, kv)
    return Cache(layers, ids, ids, jnp.zeros((), jnp.int32))


def forward(
    params: Params,
    cfg: ModelConfig,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    positions_BT: jax.Array,
    axes: Axes,
    cache: Cache | None = None,
    last: int | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Hidden states x_DBT after the final norm, of the `last` positions alone if that is given.
    Tokens see their own segment's past; segment 0 is padding. With a cache the T tokens are written
    at `cache.length` and see what is in it, and the extended cache is returned: T = prompt length
    prefills, T = 1 decodes."""
    B, T = tokens_BT.shape
    last = T if last is None else min(last, T)
    keys = (segments_BT, positions_BT)
    if cache is not None:
        cache = cache.extended(segments_BT, positions_BT)
        keys = (cache.segments_BS, cache.positions_BS)
    # Unrolled, the last layer computes the last positions alone.
    trimmed = unrolled(cfg) and last < T
    masks = {}
    for n in (T, last) if trimmed else (T,):
        queries = (segments_BT[:, T - n :], positions_BT[:, T - n :])
        other_keys = cache is not None or n < T
        masks[n] = attention_mask(cfg.C, cfg.compute, queries, keys, other_keys)

    def block(x_DN: jax.Array, layer: tuple[Params, Any], n: int = T) -> tuple[jax.Array, Any]:
        """One layer; of its result, the last n positions of each row."""
        w, kv = layer
        x_DN = axes.constrain(x_DN, None, "batch")
        h_DN = norm(x_DN, w["norm1"], w.get("bias1"))
        states = States(h_DN, positions_BT)
        queries = States(ending(h_DN, B, n, axes), positions_BT[:, T - n :])
        mixed_DN, kv = _attention(w, cfg, queries, states, masks[n], axes, kv, cache)
        x_DN = ending(x_DN, B, n, axes) + mixed_DN
        x_DN += _mlp(w, cfg, norm(x_DN, w["norm2"], w.get("bias2")), axes)
        return axes.constrain(x_DN, "residual", "batch"), kv

    # Between layers, where it is kept for the backward pass, the residual stream lies over `tensor`
    # too; whole on each device it would be most of the memory.
    x_DN = _embedded(params, cfg, tokens_BT, positions_BT, axes)
    x_DN = axes.constrain(x_DN, "residual", "batch")
    run, run_last = (_rematerialised(f, cfg) for f in (block, functools.partial(block, n=last)))
    before = None if cache is None else cache.layers
    layers: Any
    if unrolled(cfg):
        x_DN, layers = _unrolled(run, run_last if trimmed else run, params["layers"], x_DN, before)
    else:
        x_DN, layers = jax.lax.scan(run, x_DN, (params["layers"], before))
    if cache is not None:
        cache = cache._replace(layers=layers, length=cache.length + T)
    x_DN = axes.constrain(x_DN, None, "batch")
    if not trimmed:
        x_DN = ending(x_DN, B, last, axes)
    x_DN = norm(x_DN, params["final_norm"], params.get("final_bias"))
    return x_DN.reshape(-1, B, last, out_sharding=axes.spec(None, "batch", None)), cache


def logits(params: Params, cfg: ModelConfig, x_DBT: jax.Array, axes: Axes) -> jax.Array:
    """Next-token logits_VBT in float32."""
    D, B, T = x_DBT.shape
    x_DN = x_DBT.reshape(D, B * T, out_sharding=axes.spec(None, "batch"))
    w_DV, out = params["embed"].T if cfg.tied else params["unembed"], axes.spec("vocab", "batch")
    logits_VN = dense(w_DV, x_DN, out, axes, ("embed", "vocab"), dtype=jnp.float32)
    return logits_VN.reshape(-1, B, T, out_sharding=axes.spec("vocab", "batch", None))


def _embedded(
    params: Params, cfg: ModelConfig, tokens_BT: jax.Array, positions_BT: jax.Array, axes: Axes
) -> jax.Array:
    """x_DN: embeddings of tokens, and of positions where they are learned."""
    (B, T), dtype = tokens_BT.shape, jnp.dtype(cfg.compute)
    rows = axes.spec("batch", None, None)
    x_BTD = lookup(params["embed"], tokens_BT, rows, axes, ("vocab", "embed"), dtype)
    if cfg.positions == "learned":
        x_BTD += lookup(params["positions"], positions_BT, rows, axes, (None, "embed"), dtype)
    x_ND = in_memory(x_BTD.reshape(B * T, cfg.width, out_sharding=axes.spec("batch", None)))
    return in_memory(x_ND.T)  # type: ignore[no-any-return]


def ending(x_XN: jax.Array, B: int, n: int, axes: Axes) -> jax.Array:
    """The last n positions of each of B rows."""
    T = x_XN.shape[1] // B
    if n == T:
        return x_XN
    x_XBT = x_XN.reshape(-1, B, T, out_sharding=axes.spec(None, "batch", None))
    return x_XBT[..., T - n :].reshape(-1, B * n, out_sharding=axes.spec(None, "batch"))


def _rematerialised(block: Callable[..., Any], cfg: ModelConfig) -> Callable[..., Any]:
    """A layer whose backward pass finds what `cfg.remat` says, and computes the rest again."""
    if cfg.remat == "none":
        return block
    known = jax.checkpoint_policies
    policies = {
        "dots": known.save_only_these_names(PRODUCT),
        "offload": known.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[PRODUCT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
    return jax.checkpoint(block, policy=policies.get(cfg.remat))  # type: ignore[no-any-return]


def _unrolled(
    run: Callable[..., Any],
    run_last: Callable[..., Any],
    stacked: Params,
    x: jax.Array,
    before: Any,
) -> tuple[jax.Array, Any]:
    """Layers one after the other, the last one by `run_last`."""
    weights, layers = jax.tree.map(jnp.unstack, stacked), []
    L = len(next(iter(weights.values())))
    for i in range(L):
        w = {name: of_layer[i] for name, of_layer in weights.items()}
        of = run if i < L - 1 else run_last
        x, kv = of(x, (w, None if before is None else before[i]))
        layers.append(kv)
    return x, tuple(layers)


def _attention(
    w: Params,
    cfg: ModelConfig,
    queries: States,
    keys: States,
    mask: Mask,
    axes: Axes,
    kv: Any,
    cache: Cache | None,
) -> tuple[jax.Array, Any]:
    """Attention of `queries` to `keys`, DN; and the layer's entry of the cache, extended."""

    def project(name: str, of: States) -> jax.Array:
        B, T = of.positions_BT.shape
        out = axes.spec("heads", "batch")
        y_XN = dense(w[name], of.x_DN, out, axes, ("embed", "heads", None))
        heads = axes.spec("heads", None, "batch", None)
        return jnp.swapaxes(y_XN.reshape(-1, cfg.C, B, T, out_sharding=heads), 1, 2)

    q_HBCT = project("wq", queries)
    k_KBCT, v_KBCT = project("wk", keys), project("wv", keys)
    if cfg.qk_norm:
        q_HBCT, k_KBCT = norm(q_HBCT, w["q_norm"], None, 2), norm(k_KBCT, w["k_norm"], None, 2)
    if cfg.positions == "rope":
        q_HBCT = rotate(q_HBCT, queries.positions_BT, cfg.rope_base)
        k_KBCT = rotate(k_KBCT, keys.positions_BT, cfg.rope_base)
    if cache is not None:
        at = (0, 0, 0, cache.length)
        k_KBCT = jax.lax.dynamic_update_slice(kv[0], k_KBCT, at)
        v_KBCT = jax.lax.dynamic_update_slice(kv[1], v_KBCT, at)
        kv = (k_KBCT, v_KBCT)
    out_HCBT = jnp.swapaxes(attend(q_HBCT, k_KBCT, v_KBCT, mask, axes), 1, 2)
    out_XN = out_HCBT.reshape(-1, queries.x_DN.shape[1], out_sharding=axes.spec("heads", "batch"))
    out = axes.spec(None, "batch")
    return dense(w["wo"], out_XN, out, axes, ("heads", None, "embed"), inputs=2), kv


def _mlp(w: Params, cfg: ModelConfig, x_DN: jax.Array, axes: Axes) -> jax.Array:
    def project(name: str) -> jax.Array:
        return dense(w[name], x_DN, axes.spec("ff", "batch"), axes, ("embed", "ff"))

    h_FN = project("w_in")
    if cfg.activation == "swiglu":
        h_FN = swiglu(h_FN, project("w_gate"))
    elif cfg.activation == "relu2":
        h_FN = jnp.square(jax.nn.relu(h_FN))
    else:
        h_FN = gelu(h_FN)
    return dense(w["w_out"], h_FN, axes.spec(None, "batch"), axes, ("ff", "embed"))
