"""A Transformer: `init` makes the parameters, `forward` is the one pass that training, scoring and
sampling share, `logits` and `scalars` are its heads.

Parameters are a plain dict of float32 arrays; those of the layers are stacked along a leading L and
scanned. Shapes are in the names: see `rlhf_jax.config.ModelConfig` for the letters.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.config import ModelConfig
from rlhf_jax.model.attention import rotate
from rlhf_jax.model.axes import Axes
from rlhf_jax.model.dispatch import Sight, attend, look

Params = dict[str, Any]


class Cache(NamedTuple):
    """Keys and values of S positions, `length` of them written."""

    k_LBSKC: jax.Array
    v_LBSKC: jax.Array
    segments_BS: jax.Array  # 0: not written, or padding
    positions_BS: jax.Array
    length: jax.Array


def shapes(cfg: ModelConfig) -> tuple[Params, Params]:
    """(shapes, logical axes) of every parameter, as two trees of tuples."""
    L, D, H, K, C, F, V = cfg.layers, cfg.width, cfg.heads, cfg.K, cfg.C, cfg.F, cfg.vocab
    layer: dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]] = {
        "wq": ((L, D, H, C), (None, "embed", "heads", None)),
        "wk": ((L, D, K, C), (None, "embed", "heads", None)),
        "wv": ((L, D, K, C), (None, "embed", "heads", None)),
        "wo": ((L, H, C, D), (None, "heads", None, "embed")),
        "w_in": ((L, D, F), (None, "embed", "ff")),
        "w_out": ((L, F, D), (None, "ff", "embed")),
        "norm1": ((L, D), (None, None)),
        "norm2": ((L, D), (None, None)),
    }
    if cfg.activation == "swiglu":
        layer["w_gate"] = layer["w_in"]
    if cfg.qk_norm:
        layer["q_norm"] = layer["k_norm"] = ((L, C), (None, None))
    tree: dict[str, Any] = {
        "embed": ((V, D), ("vocab", "embed")),
        "layers": layer,
        "final_norm": ((D,), (None,)),
    }
    if cfg.norm == "layer":
        layer["bias1"] = layer["bias2"] = ((L, D), (None, None))
        tree["final_bias"] = ((D,), (None,))
    if cfg.positions == "learned":
        tree["positions"] = ((cfg.max_positions, D), (None, "embed"))
    if not cfg.tied:
        tree["unembed"] = ((D, V), ("embed", "vocab"))

    def pair(x: Any) -> bool:
        return isinstance(x, tuple)

    return (
        jax.tree.map(lambda x: x[0], tree, is_leaf=pair),
        jax.tree.map(lambda x: x[1], tree, is_leaf=pair),
    )


def param_axes(cfg: ModelConfig, scalar_head: bool = False) -> Params:
    """Logical axis names of every parameter, in the parameters' tree."""
    axes = shapes(cfg)[1]
    return {**axes, "scalar": {"w": (None,), "b": ()}} if scalar_head else axes


def init(cfg: ModelConfig, key: jax.Array) -> Params:
    """Parameters. Matrices are N(0, 1/fan_in); those that write to the residual stream are divided
    by sqrt(2 L) (GPT-2); embeddings are N(0, 1/D); gains 1, biases 0."""
    tree = shapes(cfg)[0]
    paths, treedef = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: isinstance(x, tuple)
    )
    leaves = []
    for i, (path, shape) in enumerate(paths):
        name = path[-1].key
        if "norm" in name:
            leaves.append(jnp.ones(shape, jnp.float32))
            continue
        if "bias" in name:
            leaves.append(jnp.zeros(shape, jnp.float32))
            continue
        if name in ("embed", "positions"):
            std = cfg.width**-0.5
        elif name == "wo":
            std = (cfg.heads * cfg.C * 2 * cfg.layers) ** -0.5
        elif name == "w_out":
            std = (cfg.F * 2 * cfg.layers) ** -0.5
        else:
            std = cfg.width**-0.5
        # Drawn flat: XLA's CPU compiler takes five times as long over the index arithmetic of 3-d draws.
        flat = jax.random.normal(jax.random.fold_in(key, i), (math.prod(shape),), jnp.float32)
        leaves.append(std * flat.reshape(shape))
    return jax.tree.unflatten(treedef, leaves)


def with_scalar_head(params: Params, key: jax.Array | None) -> Params:
    """The same model with a head that reads one number off every position. With a key its weights
    are N(0, 1/(D+1)) (Stiennon et al. 2020, for rewards); without, 0 (Ziegler et al. 2019, for values)."""
    D = params["embed"].shape[1]
    w = jnp.zeros(D) if key is None else jax.random.normal(key, (D,)) / math.sqrt(D + 1)
    return {**params, "scalar": {"w": w, "b": jnp.zeros(())}}


def init_cache(cfg: ModelConfig, batch: int, length: int, axes: Axes) -> Cache:
    """An empty cache for `length` positions."""
    shape = (cfg.layers, batch, length, cfg.K, cfg.C)
    kv = axes.constrain(jnp.zeros(shape, cfg.compute), None, "batch", None, "heads", None)
    ids = axes.constrain(jnp.zeros((batch, length), jnp.int32), "batch", None)
    return Cache(kv, kv, ids, ids, jnp.zeros((), jnp.int32))


def forward(
    params: Params,
    cfg: ModelConfig,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    positions_BT: jax.Array,
    axes: Axes,
    cache: Cache | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Hidden states x_BTD after the final norm. Tokens see their own segment's past; segment 0 is
    padding. With a cache the T tokens are written at `cache.length` and see what is in it, and the
    extended cache is returned: T = prompt length prefills, T = 1 decodes."""
    dtype = jnp.dtype(cfg.compute)
    embed_VD = axes.gathered(params["embed"], "vocab", None).astype(dtype)
    x_BTD = embed_VD.at[tokens_BT].get(out_sharding=axes.spec("batch", None, None))
    if cfg.positions == "learned":
        table = axes.gathered(params["positions"], None, None).astype(dtype)
        x_BTD += table.at[positions_BT].get(out_sharding=axes.spec("batch", None, None))
    if cache is None:
        keys = (segments_BT, positions_BT)
        layers_kv: Any = None
    else:
        at = (0, cache.length)
        cache = cache._replace(
            segments_BS=jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, at),
            positions_BS=jax.lax.dynamic_update_slice(cache.positions_BS, positions_BT, at),
        )
        keys = (cache.segments_BS, cache.positions_BS)
        layers_kv = (cache.k_LBSKC, cache.v_LBSKC)
    sight = look(cfg.C, cfg.compute, (segments_BT, positions_BT), keys, cache is not None)

    def block(x_BTD: jax.Array, layer: tuple[Params, Any]) -> tuple[jax.Array, Any]:
        w, kv = layer
        x_BTD = axes.constrain(x_BTD, "batch", None, None)
        h_BTD = _norm(x_BTD, w["norm1"], w.get("bias1"))
        attended_BTD, kv = _attention(w, cfg, h_BTD, positions_BT, sight, axes, kv, cache)
        x_BTD += attended_BTD
        x_BTD += _mlp(w, cfg, _norm(x_BTD, w["norm2"], w.get("bias2")), axes)
        return axes.constrain(x_BTD, "batch", None, "residual"), kv

    # Between layers, where it is kept for the backward pass, the residual stream lies over `tensor`
    # too; whole on each device it would be most of the memory.
    x_BTD = axes.constrain(x_BTD, "batch", None, "residual")
    if cfg.remat != "none":
        known = jax.checkpoint_policies
        policies = {
            "dots": known.dots_with_no_batch_dims_saveable,
            "offload": known.offload_dot_with_no_batch_dims("device", "pinned_host"),
        }
        block = jax.checkpoint(block, policy=policies.get(cfg.remat))
    x_BTD, layers_kv = jax.lax.scan(block, x_BTD, (params["layers"], layers_kv))
    if cache is not None:
        T = tokens_BT.shape[1]
        cache = cache._replace(k_LBSKC=layers_kv[0], v_LBSKC=layers_kv[1], length=cache.length + T)
    x_BTD = axes.constrain(x_BTD, "batch", None, None)
    return _norm(x_BTD, params["final_norm"], params.get("final_bias")), cache


def logits(params: Params, cfg: ModelConfig, x_BTD: jax.Array, axes: Axes) -> jax.Array:
    """Next-token logits_BTV in float32."""
    out = axes.spec("batch", None, "vocab")
    if cfg.tied:
        w_VD = axes.gathered(params["embed"], "vocab", None).astype(x_BTD.dtype)
        return jnp.einsum("BTD,VD->BTV", x_BTD, w_VD, out_sharding=out).astype(jnp.float32)
    w_DV = axes.gathered(params["unembed"], None, "vocab").astype(x_BTD.dtype)
    return jnp.einsum("BTD,DV->BTV", x_BTD, w_DV, out_sharding=out).astype(jnp.float32)


def scalars(params: Params, x_BTD: jax.Array) -> jax.Array:
    """The scalar head at every position, BT in float32: rewards or values."""
    head = params["scalar"]
    return jnp.einsum("BTD,D->BT", x_BTD.astype(jnp.float32), head["w"]) + head["b"]


def _norm(x_BTD: jax.Array, gain: jax.Array, bias: jax.Array | None) -> jax.Array:
    """RMSNorm (Zhang & Sennrich 2019), or LayerNorm (Ba et al. 2016) where there is a bias."""
    x = x_BTD.astype(jnp.float32)
    if bias is not None:
        x -= jnp.mean(x, axis=-1, keepdims=True)
    x *= jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    x = x * gain if bias is None else x * gain + bias
    return x.astype(x_BTD.dtype)


def _attention(
    w: Params,
    cfg: ModelConfig,
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    sight: Sight,
    axes: Axes,
    kv: Any,
    cache: Cache | None,
) -> tuple[jax.Array, Any]:
    out = axes.spec("batch", None, "heads", None)

    def project(name: str) -> jax.Array:
        w_DHC = axes.gathered(w[name], None, "heads", None).astype(x_BTD.dtype)
        return jnp.einsum("BTD,DHC->BTHC", x_BTD, w_DHC, out_sharding=out)

    q_BTHC, k_BTKC, v_BTKC = project("wq"), project("wk"), project("wv")
    if cfg.qk_norm:
        q_BTHC, k_BTKC = _norm(q_BTHC, w["q_norm"], None), _norm(k_BTKC, w["k_norm"], None)
    if cfg.positions == "rope":
        q_BTHC = rotate(q_BTHC, positions_BT, cfg.rope_base)
        k_BTKC = rotate(k_BTKC, positions_BT, cfg.rope_base)
    if cache is not None:
        at = (0, cache.length, 0, 0)
        k_BTKC = jax.lax.dynamic_update_slice(kv[0], k_BTKC, at)
        v_BTKC = jax.lax.dynamic_update_slice(kv[1], v_BTKC, at)
        kv = (k_BTKC, v_BTKC)
    out_BTHC = attend(q_BTHC, k_BTKC, v_BTKC, sight, axes)
    w_HCD = axes.gathered(w["wo"], "heads", None, None).astype(x_BTD.dtype)
    return jnp.einsum(
        "BTHC,HCD->BTD", out_BTHC, w_HCD, out_sharding=axes.spec("batch", None, None)
    ), kv


def _mlp(w: Params, cfg: ModelConfig, x_BTD: jax.Array, axes: Axes) -> jax.Array:
    out = axes.spec("batch", None, "ff")

    def project(name: str) -> jax.Array:
        w_DF = axes.gathered(w[name], None, "ff").astype(x_BTD.dtype)
        return jnp.einsum("BTD,DF->BTF", x_BTD, w_DF, out_sharding=out)

    h_BTF = project("w_in")
    if cfg.activation == "swiglu":
        h_BTF *= jax.nn.silu(project("w_gate"))
    elif cfg.activation == "relu2":
        h_BTF = jnp.square(jax.nn.relu(h_BTF))
    else:
        h_BTF = jax.nn.gelu(h_BTF, approximate=True)
    w_FD = axes.gathered(w["w_out"], "ff", None).astype(x_BTD.dtype)
    return jnp.einsum("BTF,FD->BTD", h_BTF, w_FD, out_sharding=axes.spec("batch", None, None))
