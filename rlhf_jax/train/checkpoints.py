"""Checkpoints: orbax writes them asynchronously; a fingerprint of every array, taken on the device
before the write, is compared after the read. A damaged newest checkpoint falls back to the one before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rlhf_jax.train.state import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)
ITEMS = ("params", "rest", "meta")


def fingerprint(tree: Any) -> Any:
    """A tree of uint32, one an array: its 32-bit words weighted by odd position numbers, summed modulo 2^32.
    Integer sums do not depend on their order, so every sharding gives the same number, and a single
    changed word always changes it."""

    def one(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize == 4 else x
        place = jnp.zeros(x.shape, jnp.uint32)
        stride = 1
        for axis in reversed(range(x.ndim)):
            place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
            stride *= x.shape[axis]
        return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)

    return jax.tree.map(one, tree)


@jax.jit
def _copied(tree: Any) -> tuple[Any, Any]:
    return jax.tree.map(jnp.copy, tree), fingerprint(tree)


_fingerprint = jax.jit(fingerprint)


def _marks(fingerprints: Any) -> list[int]:
    return [int(m) for m in jax.tree.leaves(jax.device_get(fingerprints))]


class Checkpoints:
    """The checkpoints of one cell: `save` returns while the write goes on."""

    def __init__(self, path: Path, keep: int = 2, log: Callable[[str], None] = print) -> None:
        self.path, self.log = path, log
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(path.absolute(), item_names=ITEMS, options=options)

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Write `state` and JSON `meta` under `step`. The arrays are copied first: on the CPU an
        asynchronous write would otherwise read buffers that the next step is donated."""
        parts, prints = _copied(_split(state))
        marks = {name: _marks(tree) for name, tree in prints.items()}
        self.manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(parts["params"]),
                rest=ocp.args.StandardSave(parts["rest"]),
                meta=ocp.args.JsonSave({**meta, "fingerprint": marks}),
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is whole, laid out like `like` (so on any mesh), and its meta;
        None where there is none. Damaged ones are named, deleted and passed over."""
        for step in reversed(self.steps()):
            try:
                parts, meta = self._read(step, _split(like))
            except Exception as e:
                reason = str(e).splitlines()[0] if str(e) else type(e).__name__
                self.log(f"checkpoint {step} in {self.path} is damaged ({reason}); falling back")
                self.manager.delete(step)
                continue
            return like.replace(params=parts["params"], **parts["rest"]), meta
        return None

    def restore_params(self, like: Callable[[Any], Any]) -> Any:
        """The parameters alone, of the newest whole checkpoint. `like` says how they are laid out, given
        their tree of shapes and dtypes."""
        for step in reversed(self.steps()):
            try:
                shapes = _shapes(self.path / str(step) / "params")
                return self._read(step, {"params": like(shapes)})[0]["params"]
            except Exception as e:
                self.log(f"checkpoint {step} in {self.path} is damaged ({e}); falling back")
        raise FileNotFoundError(f"no whole checkpoint in {self.path}")

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self.manager.delete(later)

    def _read(self, step: int, like: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        read = self.manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args)
        )
        meta = dict(read.meta)
        marks = meta.pop("fingerprint")
        for name in like:
            if _marks(_fingerprint(read[name])) != marks[name]:
                raise ValueError(
                    f"the fingerprint of its {name} differs from the one it was saved with"
                )
        return {name: read[name] for name in like}, meta

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.wait_until_finished()
        self.manager.close()


def _shapes(path: Path) -> Any:
    """Shapes and dtypes of what was saved there."""
    saved = ocp.StandardCheckpointHandler().metadata(path.absolute()).tree
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)


def _split(state: TrainState) -> dict[str, Any]:
    rest = {"step": state.step, "opt": state.opt, "hyper": state.hyper, "extra": state.extra}
    return {"params": state.params, "rest": rest}
