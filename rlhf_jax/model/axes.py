"""The axis table: which mesh axis each logical axis of an array lies on.

`forward` takes one as an argument; the tables themselves are in `rlhf_jax.model.sharding`. Sharding
is explicit (part of an array's type), so every product whose result could be laid out in two ways
says which, through `Axes.spec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
from jax.sharding import PartitionSpec

MeshAxes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Axes:
    """Logical axis -> mesh axis (or axes), for parameters and for activations. Axes that are not in
    the table are replicated."""

    params: Mapping[str, MeshAxes] = field(default_factory=dict)
    activations: Mapping[str, MeshAxes] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((frozenset(self.params.items()), frozenset(self.activations.items())))

    def spec(self, *names: str | None) -> PartitionSpec:
        """Layout of an activation whose dimensions have these logical names."""
        return PartitionSpec(*(self.activations.get(n) if n else None for n in names))

    def param_spec(self, *names: str | None) -> PartitionSpec:
        """Layout of a parameter as it is stored."""
        return PartitionSpec(*(self.params.get(n) if n else None for n in names))

    def splits(self, *names: str | None) -> bool:
        """Whether a parameter is stored in parts on the mesh in use."""
        sizes = jax.sharding.get_abstract_mesh().shape
        parts = (p if isinstance(p, tuple) else (p,) for p in self.param_spec(*names) if p)
        return any(sizes.get(axis, 1) > 1 for part in parts for axis in part)

    def gathered(self, w: jax.Array, *names: str | None) -> jax.Array:
        """A parameter as it is used: gathered over the data axes it is stored on (FSDP)."""
        return self.constrain(w, *names)

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        return jax.sharding.reshard(x, self.spec(*names))


def platform() -> str:
    """cpu, gpu or tpu: that of the mesh in use, which in ahead-of-time compilation is not that of
    this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    kind: str = device.device_kind
    return getattr(device, "platform", "tpu" if kind.startswith("TPU") else kind.lower())
