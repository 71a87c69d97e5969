"""Meshes and the one sharding table.

Replicate until it does not fit (`data`); then spread parameters and optimizer over `fsdp`; then split
heads, feed-forward and vocabulary over `tensor`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from rlhf_jax.config import ConfigError
from rlhf_jax.model.axes import Axes

MESH_AXES = ("data", "fsdp", "tensor")

AXES = Axes(
    params={"embed": "fsdp", "heads": "tensor", "ff": "tensor", "vocab": "tensor"},
    activations={
        "batch": ("data", "fsdp"), "heads": "tensor", "ff": "tensor", "vocab": "tensor",
        "residual": "tensor",
    },
)  # fmt: skip


def make_mesh(
    shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over all devices (or those given); axes left out are 1, and `data` takes what is left
    over. A single CPU is a mesh of one."""
    shape = dict(shape or {})
    if unknown := set(shape) - set(MESH_AXES):
        raise ConfigError(f"unknown mesh axes {sorted(unknown)}; known: {', '.join(MESH_AXES)}")
    count = jax.device_count() if devices is None else len(devices)
    rest = math.prod(shape.get(a, 1) for a in MESH_AXES if a != "data")
    shape.setdefault("data", max(1, count // rest))
    sizes = tuple(shape.get(a, 1) for a in MESH_AXES)
    if math.prod(sizes) != count:
        raise ConfigError(
            f"a mesh of {dict(zip(MESH_AXES, sizes, strict=True))} needs {math.prod(sizes)} devices; "
            f"there are {count}"
        )
    return jax.make_mesh(sizes, MESH_AXES, devices=devices)


def shardings(mesh: Mesh, names: Any, axes: Axes = AXES) -> Any:
    """NamedShardings for a tree of logical axis names, as parameters are stored."""
    return jax.tree.map(
        lambda n: NamedSharding(mesh, axes.param_spec(*n)),
        names,
        is_leaf=lambda n: isinstance(n, tuple),
    )


def place(tree: Any, names: Any, mesh: Mesh, axes: Axes = AXES) -> Any:
    """Arrays laid out as the table says."""
    return jax.tree.map(jax.device_put, tree, shardings(mesh, names, axes))


def place_batch(batch: Mapping[str, Any], mesh: Mesh, axes: Axes = AXES) -> dict[str, jax.Array]:
    """A host batch on the mesh: the leading dimension is split over the batch axes."""
    return {
        k: jax.device_put(v, NamedSharding(mesh, axes.spec("batch", *[None] * (v.ndim - 1))))
        for k, v in batch.items()
    }


def parse_mesh(text: str) -> dict[str, int]:
    """`fsdp=4,tensor=2` as a mesh shape; the empty text is every device on `data`."""
    shape = {}
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if not size.isdigit():
            raise ConfigError(f"mesh {text!r}: expected for instance fsdp=4,tensor=2")
        shape[name] = int(size)
    return shape
