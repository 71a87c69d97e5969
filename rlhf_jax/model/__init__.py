"""Models as pure functions over plain pytrees of arrays.

`rlhf_jax.model.parameters` is read without jax, so this package does not import jax: the functions
of `rlhf_jax.model.network` are here from their first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_jax.model.network import *  # noqa: F403


def __getattr__(name: str) -> Any:
    network = importlib.import_module("rlhf_jax.model.network")
    if name not in network.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(network, name)
