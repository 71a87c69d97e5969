"""Models as pure functions over plain pytrees of arrays.

`rlhf_jax.model.parameters` is read without jax, so this package does not import jax: the functions
of `rlhf_jax.model.network` are here from their first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_jax.model.axes import Axes as Axes
    from rlhf_jax.model.network import (
        decays as decays,
    )
    from rlhf_jax.model.network import (
        forward as forward,
    )
    from rlhf_jax.model.network import (
        has_scalar_head as has_scalar_head,
    )
    from rlhf_jax.model.network import (
        init as init,
    )
    from rlhf_jax.model.network import (
        init_cache as init_cache,
    )
    from rlhf_jax.model.network import (
        initialised as initialised,
    )
    from rlhf_jax.model.network import (
        logits as logits,
    )
    from rlhf_jax.model.network import (
        param_axes as param_axes,
    )
    from rlhf_jax.model.network import (
        scalars as scalars,
    )
    from rlhf_jax.model.network import (
        with_scalar_head as with_scalar_head,
    )
    from rlhf_jax.model.network import (
        without_scalar_head as without_scalar_head,
    )


def __getattr__(name: str) -> Any:
    network = importlib.import_module("rlhf_jax.model.network")
    if name not in network.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(network, name)
