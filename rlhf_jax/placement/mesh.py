"""Meshes as text, and whether a study's shapes lie on one. Without jax: launchers ask before they
start anything. `rlhf_jax.model.sharding` has the whole sharding table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from rlhf_jax.model.parameters import describe, leaves
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.graph import Study
from rlhf_jax.study.messages import suggest

MESH_AXES = ("data", "fsdp", "tensor")
# The sharding table of parameters: logical axis -> mesh axis.
PARAMETERS = {"embed": "fsdp", "heads": "tensor", "ff": "tensor", "vocab": "tensor"}


def parse_mesh(text: str) -> dict[str, int]:
    """`fsdp=4,tensor=2` as a mesh shape; the empty text has no axes.

    Raises:
      ConfigError: an unknown axis, one given twice, or a size that is not a whole number of at
          least 1.
    """
    shape: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, size = part.partition("=")
        if name not in MESH_AXES:
            raise ConfigError(f"mesh {text!r}: unknown axis {name!r}.{suggest(name, MESH_AXES)}")
        if name in shape:
            raise ConfigError(f"mesh {text!r}: {name} is given twice; give each axis once")
        if not (size.isascii() and size.isdigit()) or int(size) < 1:
            raise ConfigError(
                f"mesh {text!r}: {name} = {size!r} is not a number of devices of at least 1; "
                f"expected for instance fsdp=4,tensor=2"
            )
        shape[name] = int(size)
    return shape


def full_mesh(text: str, devices: int | None) -> dict[str, int]:
    """The size of every axis. What is left over of `devices` lies on `data`, if that is not given;
    None: of a CPU, which has as many devices as are asked for.

    Raises:
      ConfigError: it needs more devices than there are, or they cannot be divided so.
    """
    given = parse_mesh(text)
    shape = {axis: given.get(axis, 1) for axis in MESH_AXES}
    needs = math.prod(shape.values())
    if devices is None:
        return shape
    if needs > devices:
        raise ConfigError(
            f"mesh {text!r} needs {needs} devices; there are {devices}. Choose smaller axes"
        )
    if "data" not in given:
        if devices % needs:
            raise ConfigError(
                f"mesh {text!r}: {needs} does not divide the {devices} devices; give data too, or "
                f"axes whose product does"
            )
        shape["data"] = devices // needs
    return shape


def check_placement(
    study: Study, cells: Iterable[str], mesh: Mapping[str, int], accumulate: int = 1
) -> None:
    """Refuses a mesh, or a number of micro-batches, that does not divide what lies on it.

    Args:
      cells: names of those that would run. mesh: the size of every axis.

    Raises:
      ConfigError: names the cell, its field and value, and the mesh axis.
    """
    chosen = set(cells)
    for cell in (c for c in study.order() if c.name in chosen):
        behind = [name for parent in cell.parents() for name in study[parent].member_cells()]
        for owner in dict.fromkeys((cell.name, *cell.parents(), *behind)):
            if (origin := study.origin(study[owner])) is not None:
                check_model(f"{origin.name}.model", study.model_of(origin), mesh)
        for field, rows, micro in cell.batches(study):
            check_rows(field, rows, mesh, accumulate if micro else 1)


def check_model(where: str, model: ModelConfig, mesh: Mapping[str, int]) -> None:
    """Refuses a mesh (the size of every axis) that does not divide a dimension of a model. `where`:
    the model, in messages."""
    for axis, field, size in _sharded(model):
        if size % mesh[axis]:
            fits = [n for n in range(1, mesh[axis]) if size % n == 0]
            raise ConfigError(
                f"{where}.{field} = {size} does not divide over {axis} = "
                f"{mesh[axis]}; choose --mesh {axis}={fits[-1]}, or a model whose {field} is a "
                f"multiple of {mesh[axis]}"
            )


def _sharded(model: ModelConfig) -> Iterator[tuple[str, str, int]]:
    """(mesh axis, name, size) of the dimensions that the sharding table lays on a mesh axis: names
    of the model's fields, or logical axes of an architecture of the user's."""
    if model.architecture:
        for parameter in leaves(describe(model)):
            for name, size in zip(parameter.axes, parameter.shape, strict=True):
                if name in PARAMETERS:
                    yield PARAMETERS[name], name, size
        return
    yield "fsdp", "width", model.width
    yield "tensor", "heads", model.heads
    yield "tensor", "kv_heads", model.K
    yield "tensor", "ff", model.F
    yield "tensor", "vocab", model.vocab
    yield "tensor", "width", model.width  # the residual stream between layers


def check_rows(field: str, rows: int, mesh: Mapping[str, int], accumulate: int) -> None:
    """Refuses rows, of `field` in messages, that mesh and micro-batches do not divide."""
    parts = {"data": mesh["data"], "fsdp": mesh["fsdp"], "--accumulate": accumulate}
    over = math.prod(parts.values())
    if rows % over == 0:
        return
    said = " x ".join(f"{name} {n}" for name, n in parts.items() if n > 1)
    near = sorted({max(1, rows // over) * over, (rows // over + 1) * over})
    raise ConfigError(
        f"{field} = {rows} rows do not divide into {said} = {over} parts; choose a product that "
        f"divides {rows}, or rows of {' or '.join(map(str, near))} (another run id)"
    )
