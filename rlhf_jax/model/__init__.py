"""Models as pure functions over plain pytrees of arrays.

`parameters` describes them without jax, so importing this package does not import jax; the names
below come from `network`, at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_jax.model.axes import Axes
    from rlhf_jax.model.network import (
        decays,
        forward,
        has_scalar_head,
        init,
        init_cache,
        initialised,
        logits,
        param_axes,
        scalars,
        with_scalar_head,
        without_scalar_head,
    )

__all__ = [
    "Axes",
    "decays",
    "forward",
    "has_scalar_head",
    "init",
    "init_cache",
    "initialised",
    "logits",
    "param_axes",
    "scalars",
    "with_scalar_head",
    "without_scalar_head",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlhf_jax.model import network

    return getattr(network, name)
