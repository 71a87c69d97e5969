"""Which kernel computes attention: chosen here, by platform and shape, and nowhere else.

| kernel    | what it is                         | where                                   |
|-----------|------------------------------------|-----------------------------------------|
| reference | `attention.reference`              | tests                                   |
| cpu       | `attention.cpu_attention`          | CPU                                     |
| xla       | the reference, on each shard       | accelerators without a kernel below     |
| cudnn     | cuDNN's flash attention            | GPU, half precision, no cache           |
| splash    | Pallas block-sparse flash attention| TPU, T a multiple of 128, no cache      |

All of them compute scores and softmax in float32 and mask other segments of a packed row. The
result of a query of segment 0 (padding) differs between them; it is finite, forward and backward,
and never used.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.model.attention import cpu_attention, reference, visible
from rlhf_jax.model.axes import Axes, platform
from rlhf_jax.model.dense import in_float32

Kernel = Literal["reference", "cpu", "xla", "cudnn", "splash"]
logger = logging.getLogger("rlhf_jax")
LANES = 128  # of a TPU register: the granularity of splash attention's blocks


class Mask(NamedTuple):
    """Which keys each query attends to, in the form that the chosen kernel takes."""

    kernel: Kernel
    segments_BT: jax.Array
    mask_BTS: jax.Array | None  # None for splash, which computes it block by block


def choose(platform: str, T: int, C: int, dtype: str, cached: bool) -> tuple[Kernel, str]:
    """(kernel, why a faster one was passed over, or "") for T queries of head width C. `platform`
    is cpu, gpu (or its vendor's name) or tpu; `cached`: the keys are a cache of another length."""
    if platform == "cpu":
        return "cpu", ""
    if platform == "tpu":
        if cached:
            return "xla", "splash takes no cache"
        if T % LANES:
            return "xla", f"splash needs a sequence length divisible by {LANES}, got {T}"
        return "splash", ""
    if cached:
        return "xla", "cudnn takes no cache"
    if dtype not in ("bfloat16", "float16"):
        return "xla", f"cudnn needs bfloat16 or float16, got {dtype}; see model.compute"
    if C > 128 or C % 8:
        return "xla", f"cudnn needs a head width of at most 128 and divisible by 8, got {C}"
    if T % 2:
        return "xla", f"cudnn needs an even sequence length under a mask, got {T}"
    return "cudnn", ""


@functools.cache
def _say(platform: str, kernel: Kernel, passed_over: str) -> None:
    """Logs each choice once a process. A kernel that was passed over is a warning, which is shown
    by default, unless the user cannot change it: decoding with a cache."""
    level = logging.WARNING if passed_over and "cache" not in passed_over else logging.INFO
    logger.log(
        level, "attention on %s: %s%s", platform, kernel, passed_over and f" ({passed_over})"
    )


def attention_mask(
    C: int,
    dtype: str,
    queries: tuple[jax.Array, jax.Array],
    keys: tuple[jax.Array, jax.Array],
    cached: bool,
    kernel: Kernel | None = None,
) -> Mask:
    """Chooses the kernel (or takes the one given) and makes the mask that it takes, once for all
    layers. `queries` and `keys` are (segments, positions), BT and BS; they are the same unless
    `cached`.

    Splash masks the future by index, and so does `_cpu` for the half that it leaves out. That
    equals masking by position as long as positions rise along a segment, as in every packed row.
    """
    (q_segments_BT, q_positions_BT), (k_segments_BS, k_positions_BS) = queries, keys
    if kernel is None:
        kernel, passed_over = choose(platform(), q_segments_BT.shape[1], C, dtype, cached)
        _say(platform(), kernel, passed_over)
    if kernel == "splash":
        return Mask(kernel, q_segments_BT, None)
    mask_BTS = visible(q_segments_BT, k_segments_BS, q_positions_BT, k_positions_BS)
    if kernel == "cudnn":  # a query that sees nothing would be 0 / 0: padding sees padding
        mask_BTS |= (q_segments_BT[:, :, None] == 0) & (k_segments_BS[:, None, :] == 0)
    return Mask(kernel, q_segments_BT, mask_BTS)


def attend(
    q_HBCT: jax.Array, k_KBCS: jax.Array, v_KBCS: jax.Array, mask: Mask, axes: Axes
) -> jax.Array:
    """Softmax attention by the kernel of `mask`, HBCT. All kernels but the reference compute one
    shard: batch and heads are split over the mesh, without communication."""
    seen = mask.segments_BT if mask.mask_BTS is None else mask.mask_BTS
    if mask.kernel == "reference":
        return reference(q_HBCT, k_KBCS, v_KBCS, seen, axes)
    kernel = KERNELS[mask.kernel]
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(q_HBCT, k_KBCS, v_KBCS, seen)
    heads = axes.spec("heads", "batch", None, None)
    layouts = (heads, heads, heads, axes.spec("batch", *[None] * (seen.ndim - 1)))
    return jax.shard_map(
        kernel,
        in_specs=layouts,
        out_specs=heads,
        check_vma=False,  # Pallas calls do not say how their results vary over the mesh
    )(*jax.sharding.reshard((q_HBCT, k_KBCS, v_KBCS, seen), layouts))


def _cpu(q_HBCT: jax.Array, k_KBCS: jax.Array, v_KBCS: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """`cpu_attention`; without a cache the first half of the queries leaves out the second half of
    the keys, which are masked for it."""
    T, S, dtype = q_HBCT.shape[3], k_KBCS.shape[3], q_HBCT.dtype
    q_HBCT, k_KBCS, v_KBCS = (x.astype(jnp.float32) for x in (q_HBCT, k_KBCS, v_KBCS))
    if T != S or T % 2:
        return cpu_attention(q_HBCT, k_KBCS, v_KBCS, mask_BTS).astype(dtype)
    half = T // 2
    first = [x[..., :half] for x in (q_HBCT, k_KBCS, v_KBCS, mask_BTS[:, :half])]
    second = (q_HBCT[..., half:], k_KBCS, v_KBCS, mask_BTS[:, half:])
    out_HBCT = jnp.concatenate([cpu_attention(*first), cpu_attention(*second)], axis=-1)
    return out_HBCT.astype(dtype)


def _xla(q_HBCT: jax.Array, k_KBCS: jax.Array, v_KBCS: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    return reference(q_HBCT, k_KBCS, v_KBCS, mask_BTS, Axes())


def _cudnn(
    q_HBCT: jax.Array, k_KBCS: jax.Array, v_KBCS: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    q, k, v = (jnp.transpose(x, (1, 3, 0, 2)) for x in (q_HBCT, k_KBCS, v_KBCS))
    out_BTHC = jax.nn.dot_product_attention(q, k, v, mask=mask_BTS[:, None], implementation="cudnn")
    return jnp.transpose(out_BTHC, (2, 0, 3, 1))


def _splash(
    q_HBCT: jax.Array, k_KBCT: jax.Array, v_KBCT: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    """Causal splash attention of one shard; interpreted where there is no TPU (tests)."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    H, _, C, T = q_HBCT.shape
    # Large blocks keep the matrix unit busy; 512 x 512 scores in float32 still fit in VMEM.
    block = next(b for b in (512, 256, LANES) if T % b == 0)
    attention = splash.make_splash_mha_single_device(
        mask=splash.MultiHeadMask([splash.CausalMask((T, T))] * H),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        interpret=platform() != "tpu",
    )
    # Scaled before it is rounded: C**-0.5 in bfloat16 would be off by up to 0.2%.
    q_HBCT = (q_HBCT.astype(jnp.float32) * C**-0.5).astype(q_HBCT.dtype)
    q, k, v = (jnp.transpose(x, (1, 0, 3, 2)) for x in (q_HBCT, k_KBCT, v_KBCT))
    segments = splash.SegmentIds(segments_BT, segments_BT)
    rows = jax.vmap(attention)
    if q.dtype == jnp.float32:
        rows = in_float32(rows)
    return jnp.transpose(rows(q, k, v, segments), (1, 0, 3, 2))


# Of one shard: (q_HBCT, k_KBCS, v_KBCS, mask_BTS or segments_BT) -> HBCT.
KERNELS: dict[Kernel, Callable[..., jax.Array]] = {
    "cpu": _cpu,
    "xla": _xla,
    "cudnn": _cudnn,
    "splash": _splash,
}
