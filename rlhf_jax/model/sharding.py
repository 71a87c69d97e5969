"""Meshes and the one sharding table.

Replicate until it does not fit (`data`); then spread parameters and optimizer over `fsdp`; then
split heads, feed-forward and vocabulary over `tensor`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rlhf_jax.model.axes import Axes
from rlhf_jax.placement.mesh import MESH_AXES, PARAMETERS
from rlhf_jax.study.config import ConfigError

AXES = Axes(
    params=PARAMETERS,
    activations={
        "batch": ("data", "fsdp"),
        "heads": "tensor",
        "ff": "tensor",
        "vocab": "tensor",
        "residual": "tensor",
    },
)


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
            f"a mesh of {dict(zip(MESH_AXES, sizes, strict=True))} needs {math.prod(sizes)} "
            f"devices; there are {count}"
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


def whole_rows(rows: int, mesh: Mesh, axes: Axes = AXES) -> int:
    """The fewest rows, at least `rows`, that the batch axes of the mesh divide."""
    names = axes.activations.get("batch") or ()
    parts = math.prod(mesh.shape[a] for a in ((names,) if isinstance(names, str) else names))
    return -(-rows // parts) * parts


def map_rows(
    of: Callable[[dict[str, jax.Array]], Any],
    arrays: Mapping[str, np.ndarray],
    rows: int,
    mesh: Mesh,
    axes: Axes = AXES,
) -> Iterator[Any]:
    """`of(batch)` of all rows of host arrays, about `rows` at a time, as numpy arrays.

    Every batch has the same number of rows, `whole_rows(rows)`; the last one is filled up with
    copies of its last row, whose outputs are dropped. The leading dimension of each output of `of`
    is the batch's.
    """
    size = whole_rows(rows, mesh, axes)
    for i in range(0, len(next(iter(arrays.values()))), size):
        part = {k: v[i : i + size] for k, v in arrays.items()}
        n = len(next(iter(part.values())))
        batch = {
            k: np.pad(v, [(0, size - n)] + [(0, 0)] * (v.ndim - 1), mode="edge")
            for k, v in part.items()
        }
        found = jax.device_get(of(place_batch(batch, mesh, axes)))
        yield jax.tree.map(lambda x, n=n: np.asarray(x)[:n], found)


def joined(parts: Iterable[Any]) -> Any:
    """Trees of arrays, one after the other along the leading dimension."""
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)
