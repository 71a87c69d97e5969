"""The Transformer as pure functions over plain pytrees."""

from rlhf_jax.model.axes import Axes
from rlhf_jax.model.transformer import (
    Cache,
    forward,
    init,
    init_cache,
    logits,
    param_axes,
    scalars,
    with_scalar_head,
)

__all__ = [
    "Axes",
    "Cache",
    "forward",
    "init",
    "init_cache",
    "logits",
    "param_axes",
    "scalars",
    "with_scalar_head",
]
