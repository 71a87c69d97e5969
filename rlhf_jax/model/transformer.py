"""A Transformer: `init` makes the parameters, `forward` is the one pass that training, scoring and
sampling share, `logits` and `scalars` are its heads.

Parameters are a plain dict of float32 arrays; those of the layers are stacked along a leading L and
scanned. Shapes are in the names: see `rlhf_jax.study.config.ModelConfig` for the letters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.model.attention import rotate
from rlhf_jax.model.axes import Axes, platform
from rlhf_jax.model.dense import PRODUCT, dense, in_memory, lookup, product
from rlhf_jax.model.dispatch import Sight, attend, look
from rlhf_jax.model.pointwise import gelu, norm, swiglu
from rlhf_jax.study.config import ModelConfig

Params = dict[str, Any]
# On a CPU the loop over layers costs a few percent of a step, and without it compiling takes longer
# the more layers there are: up to this many it is unrolled.
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


def init(cfg: ModelConfig, key: jax.Array, axes: Axes = Axes()) -> Params:  # noqa: B008
    """Parameters. Matrices are N(0, 1/fan_in); those that write to the residual stream are divided
    by sqrt(2 L) (GPT-2); embeddings are N(0, 1/D); gains 1, biases 0. Under `jit` each
    device draws its own part alone of what the mesh in use splits. The numbers are the same on
    every mesh."""
    tree, names = (
        jax.tree_util.tree_flatten_with_path(t, is_leaf=lambda x: isinstance(x, tuple))
        for t in shapes(cfg)
    )
    leaves = []
    for i, ((path, shape), (_, of)) in enumerate(zip(tree[0], names[0], strict=True)):
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
        its_key = jax.random.fold_in(key, i)
        if axes.splits(*of):
            layout = axes.param_spec(*of)
            drawn = jax.random.normal(its_key, shape, jnp.float32, out_sharding=layout)
        else:
            # flat: XLA's CPU compiler takes three times as long over the index arithmetic of 3-d
            # draws
            drawn = jax.random.normal(its_key, (math.prod(shape),), jnp.float32).reshape(shape)
        leaves.append(std * drawn)
    return jax.tree.unflatten(tree[1], leaves)


def with_scalar_head(params: Params, key: jax.Array | None) -> Params:
    """The same model with a head that reads one number off every position. With a key its weights
    are N(0, 1/(D+1)) (Stiennon et al. 2020, for rewards); without, 0 (Ziegler et al. 2019, for
    values)."""
    D = params["embed"].shape[1]
    w = jnp.zeros(D) if key is None else jax.random.normal(key, (D,)) / math.sqrt(D + 1)
    return {**params, "scalar": {"w": w, "b": jnp.zeros(())}}


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
    """Hidden states x_DBT after the final norm, with `last` of so many last positions alone. Tokens
    see their own segment's past; segment 0 is padding. With a cache the T tokens are written at
    `cache.length` and see what is in it, and the extended cache is returned: T = prompt length
    prefills, T = 1 decodes."""
    (B, T), dtype = tokens_BT.shape, jnp.dtype(cfg.compute)
    rows = axes.spec("batch", None, None)
    x_BTD = lookup(params["embed"], tokens_BT, rows, axes, ("vocab", "embed"), dtype)
    if cfg.positions == "learned":
        x_BTD += lookup(params["positions"], positions_BT, rows, axes, (None, "embed"), dtype)
    x_ND = in_memory(x_BTD.reshape(B * T, cfg.width, out_sharding=axes.spec("batch", None)))
    x_DN = in_memory(x_ND.T)
    if cache is None:
        keys = (segments_BT, positions_BT)
    else:
        at = (0, cache.length)
        cache = cache._replace(
            segments_BS=jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, at),
            positions_BS=jax.lax.dynamic_update_slice(cache.positions_BS, positions_BT, at),
        )
        keys = (cache.segments_BS, cache.positions_BS)

    def sight_of(n: int) -> Sight:
        """What the last n positions see."""
        asking = (segments_BT[:, T - n :], positions_BT[:, T - n :])
        return look(cfg.C, cfg.compute, asking, keys, cache is not None or n < T)

    last = T if last is None else min(last, T)
    # Where layers are not scanned the last one need not compute what is not asked for.
    trimmed = unrolled(cfg) and last < T
    sights = {n: sight_of(n) for n in ({T, last} if trimmed else {T})}

    def ending(x_XN: jax.Array) -> jax.Array:
        """The last positions of each row."""
        x_XBT = x_XN.reshape(-1, B, T, out_sharding=axes.spec(None, "batch", None))
        x_XBt = x_XBT[..., T - last :]
        return x_XBt.reshape(-1, B * last, out_sharding=axes.spec(None, "batch"))

    def block(x_DN: jax.Array, layer: tuple[Params, Any], n: int = T) -> tuple[jax.Array, Any]:
        """One layer, of whose result the last n positions of each row are wanted."""
        w, kv = layer
        x_DN = axes.constrain(x_DN, None, "batch")
        h_DN = norm(x_DN, w["norm1"], w.get("bias1"))
        asking = (h_DN if n == T else ending(h_DN), positions_BT[:, T - n :])
        attended_DN, kv = _attention(
            w, cfg, asking, (h_DN, positions_BT), sights[n], axes, kv, cache
        )
        x_DN = (x_DN if n == T else ending(x_DN)) + attended_DN
        x_DN += _mlp(w, cfg, norm(x_DN, w["norm2"], w.get("bias2")), axes)
        return axes.constrain(x_DN, "residual", "batch"), kv

    # Between layers, where it is kept for the backward pass, the residual stream lies over `tensor`
    # too; whole on each device it would be most of the memory.
    x_DN = axes.constrain(x_DN, "residual", "batch")
    body: Callable[..., Any] = block
    ending_body: Callable[..., Any] = functools.partial(block, n=last)
    if cfg.remat != "none":
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
        policy = policies.get(cfg.remat)
        body, ending_body = (jax.checkpoint(f, policy=policy) for f in (body, ending_body))
    layers: Any
    if unrolled(cfg):
        weights, layers = jax.tree.map(jnp.unstack, params["layers"]), []
        for i in range(cfg.layers):
            w = {name: of_layer[i] for name, of_layer in weights.items()}
            run = ending_body if trimmed and i == cfg.layers - 1 else body
            x_DN, kv = run(x_DN, (w, cache.layers[i] if cache is not None else None))
            layers.append(kv)
        layers = tuple(layers)
    else:
        before = None if cache is None else cache.layers
        x_DN, layers = jax.lax.scan(body, x_DN, (params["layers"], before))
    if cache is not None:
        cache = cache._replace(layers=layers, length=cache.length + T)
    x_DN = axes.constrain(x_DN, None, "batch")
    if last < T and not trimmed:
        x_DN = ending(x_DN)
    x_DN = norm(x_DN, params["final_norm"], params.get("final_bias"))
    return x_DN.reshape(-1, B, last, out_sharding=axes.spec(None, "batch", None)), cache


def logits(params: Params, cfg: ModelConfig, x_DBT: jax.Array, axes: Axes) -> jax.Array:
    """Next-token logits_VBT in float32."""
    D, B, T = x_DBT.shape
    x_DN = x_DBT.reshape(D, B * T, out_sharding=axes.spec(None, "batch"))
    w_DV, out = params["embed"].T if cfg.tied else params["unembed"], axes.spec("vocab", "batch")
    logits_VN = dense(w_DV, x_DN, out, axes, ("embed", "vocab"), dtype=jnp.float32)
    return logits_VN.reshape(-1, B, T, out_sharding=axes.spec("vocab", "batch", None))


def scalars(params: Params, x_DBT: jax.Array) -> jax.Array:
    """The scalar head at every position, BT in float32: rewards or values."""
    head = params["scalar"]
    return product("DBT,D->BT", x_DBT.astype(jnp.float32), head["w"]) + head["b"]


def _attention(
    w: Params,
    cfg: ModelConfig,
    asking: tuple[jax.Array, jax.Array],
    asked: tuple[jax.Array, jax.Array],
    sight: Sight,
    axes: Axes,
    kv: Any,
    cache: Cache | None,
) -> tuple[jax.Array, Any]:
    """`asking` and `asked`: (hidden states DN, positions BT) that queries, and keys and values, are
    of."""
    C = cfg.C

    def project(name: str, of: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_DN, (B, T) = of[0], of[1].shape
        out = axes.spec("heads", "batch")
        y_XN = dense(w[name], x_DN, out, axes, ("embed", "heads", None))
        heads = axes.spec("heads", None, "batch", None)
        return jnp.swapaxes(y_XN.reshape(-1, C, B, T, out_sharding=heads), 1, 2)

    q_HBCT = project("wq", asking)
    k_KBCT, v_KBCT = project("wk", asked), project("wv", asked)
    if cfg.qk_norm:
        q_HBCT, k_KBCT = norm(q_HBCT, w["q_norm"], None, 2), norm(k_KBCT, w["k_norm"], None, 2)
    if cfg.positions == "rope":
        q_HBCT = rotate(q_HBCT, asking[1], cfg.rope_base)
        k_KBCT = rotate(k_KBCT, asked[1], cfg.rope_base)
    if cache is not None:
        at = (0, 0, 0, cache.length)
        k_KBCT = jax.lax.dynamic_update_slice(kv[0], k_KBCT, at)
        v_KBCT = jax.lax.dynamic_update_slice(kv[1], v_KBCT, at)
        kv = (k_KBCT, v_KBCT)
    out_HCBT = jnp.swapaxes(attend(q_HBCT, k_KBCT, v_KBCT, sight, axes), 1, 2)
    out_XN = out_HCBT.reshape(-1, asking[0].shape[1], out_sharding=axes.spec("heads", "batch"))
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
