"""Populations: cells that differ in numbers alone, trained as one compiled program.

Every tree of theirs is stacked along a leading axis P, which lies over the devices. On a CPU a
device takes its members one after the other, elsewhere all at once under `vmap`: wider arrays fill
an accelerator that a tiny model leaves idle, but push each other out of a CPU core's caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.model.axes import platform
from rlhf_jax.train.step import Step

AXIS = PartitionSpec("population")


class Population:
    """At most `members` members over `devices`. Where the devices do not divide them, the last one
    is computed more than once."""

    def __init__(self, members: int, devices: Sequence[jax.Device]) -> None:
        self.devices = min(members, len(devices))
        self.mesh = jax.make_mesh((self.devices,), ("population",), devices=devices[: self.devices])

    def join(self, trees: Sequence[Any]) -> Any:
        """One tree of stacked arrays, on the devices."""
        trees = [jax.device_get(tree) for tree in trees]
        trees += [trees[-1]] * (-len(trees) % self.devices)
        over = NamedSharding(self.mesh, AXIS)
        return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves), over), *trees)

    def split(self, tree: Any) -> list[Any]:
        """The members' trees on the host, then those that were computed more than once."""
        tree = jax.device_get(tree)
        size = len(jax.tree.leaves(tree)[0])
        return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(size)]

    def compiled(self, step: Step) -> Step:
        """The step of all members from that of one, which must know of no mesh (an empty `Axes()`).
        The state's buffers are donated."""

        def steps(state: Any, batch: Any) -> Any:
            if platform() == "cpu":
                return jax.lax.map(lambda one: step(*one), (state, batch))
            return jax.vmap(step)(state, batch)

        sharded = jax.shard_map(
            steps, mesh=self.mesh, in_specs=AXIS, out_specs=AXIS, check_vma=False
        )
        compiled = jax.jit(sharded, donate_argnums=0)

        def run(state: Any, batch: Any) -> Any:
            with jax.set_mesh(self.mesh):
                return compiled(state, batch)

        return run


class Alone:
    """The population of a cell that trains alone: nothing is stacked."""

    def join(self, trees: Sequence[Any]) -> Any:
        (tree,) = trees
        return tree

    def split(self, tree: Any) -> list[Any]:
        return [tree]
