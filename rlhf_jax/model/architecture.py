"""The protocol that an architecture fulfils, and how a model's configuration names one.

An architecture is a class of static methods, in one file; `ModelConfig.architecture` names it as
MODULE:CLASS. It reads the fields of `ModelConfig` that mean something to it. The package's own is
the module `rlhf_jax.model.transformer`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol, Self

from rlhf_jax.study.callables import check_call, load_callable
from rlhf_jax.study.config import ConfigError, ModelConfig

if TYPE_CHECKING:
    import jax

    from rlhf_jax.model.axes import Axes


class RowCache(Protocol):
    """What decoding keeps of the tokens before: a pytree over a batch of rows."""

    def repeated(self, rows_B: jax.Array, axes: Axes) -> Self:
        """The cache of a batch whose rows are these rows of this one."""


class Architecture(Protocol):
    """How a model computes. One `forward` serves training, scoring and sampling."""

    def describe(self, cfg: ModelConfig) -> dict[str, Any]:
        """A tree (nested dicts) of `rlhf_jax.model.parameters.Parameter`."""

    def attended(self, cfg: ModelConfig) -> int:
        """FLOPs beyond the parameters': multiply-adds of a token with each key that it attends to,
        over all layers, of the scores. 0 without attention."""

    def forward(
        self,
        params: Any,
        cfg: ModelConfig,
        tokens_BT: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        axes: Axes,
        cache: Any = None,
        last: int | None = None,
    ) -> tuple[jax.Array, Any]:
        """(x_DBT, cache): hidden states of the `last` positions (None: of all) in `cfg.compute`.

        A token sees the earlier tokens of its own segment; segment 0 is padding, which nobody sees.
        With a cache the T tokens are appended to it, see what is in it, and the extended cache is
        returned; without one, None is.
        """

    def logits(self, params: Any, cfg: ModelConfig, x_DBT: jax.Array, axes: Axes) -> jax.Array:
        """Next-token logits_VBT in float32."""

    def init_cache(self, cfg: ModelConfig, batch: int, length: int, axes: Axes) -> Any:
        """An empty `RowCache` of `batch` rows with room for `length` positions."""


METHODS = ("describe", "attended", "forward", "logits", "init_cache")


def architecture(cfg: ModelConfig) -> Architecture:
    """That of a model.

    Raises:
        ConfigError: it cannot be imported, or is no architecture.
    """
    if not cfg.architecture:
        from rlhf_jax.model import transformer

        return transformer
    found, where = load_callable(cfg.architecture), f"model.architecture = {cfg.architecture!r}"
    for name in METHODS:
        if not hasattr(found, name):
            raise ConfigError(
                f"{where} has no {name}; expected a class with the static methods "
                f"{', '.join(METHODS)} of rlhf_jax.model.architecture.Architecture"
            )
        _, *arguments = inspect.signature(getattr(Architecture, name)).parameters
        check_call(getattr(found, name), f"{where}: {name}", arguments)
    return found  # type: ignore[no-any-return]
