"""Checkpoints: orbax writes them asynchronously; a fingerprint of every array, taken on the device
before the write, is compared after the read.

Reading may fail for reasons that pass (memory, permissions, a file system that is away). So a
checkpoint is deleted only when it is known to be damaged (`damage`), and only by the unfinished
cell that wrote it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import Damaged, json_digest
from rlhf_jax.train.state import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)
ITEMS = ("params", "rest", "meta")
# The fingerprints of the arrays of each item, in the order of its leaves.
Marks = dict[str, list[int]]


class Unreadable(ConfigError):
    """A checkpoint that could not be read. Whether it is whole is not known; nothing was
    deleted."""


class Unwritten(Exception):
    """A checkpoint that could not be written."""


def fingerprint(tree: Any, mixed: bool = True) -> Any:
    """A tree of uint32, one an array: the sum modulo 2^32 of its words (elements, as unsigned
    integers of at most 32 bits), each of them first mixed with its position by a bijection (the
    finaliser of MurmurHash3). Integer sums do not depend on their order, so every sharding gives
    the same number, and a single changed word always changes it.

    Args:
        mixed: False is what older versions saved: words times odd position numbers, to which an
            array and its negative can be equal.
    """

    def one(x: jax.Array) -> jax.Array:
        words = _words(x)
        place = jnp.zeros(words.shape, jnp.uint32)
        stride = 1
        for axis in reversed(range(words.ndim)):
            place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
            stride *= words.shape[axis]
        if not mixed:
            return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
        words ^= place * jnp.uint32(0x9E3779B9)
        words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
        words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
        return jnp.sum(words ^ (words >> 16), dtype=jnp.uint32)

    return jax.tree.map(one, tree)


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array as uint32; elements of 8 bytes are two words along a last axis."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool:
        return x.astype(jnp.uint32)
    width = min(x.dtype.itemsize, 4)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)


@jax.jit
def _copied(tree: Any) -> tuple[Any, Any]:
    return jax.tree.map(jnp.copy, tree), fingerprint(tree)


_fingerprint = jax.jit(fingerprint, static_argnums=1)


def _marks(fingerprints: Any) -> list[int]:
    return [int(m) for m in jax.tree.leaves(jax.device_get(fingerprints))]


class Checkpoints:
    """The checkpoints of one cell: `save` returns while the write goes on. Opened `read_only`, as a
    finished cell's are, nothing in the folder is written or deleted."""

    def __init__(
        self,
        path: Path,
        keep: int = 2,
        log: Callable[[str], None] = print,
        read_only: bool = False,
    ) -> None:
        self.path, self.log = path, log
        options = (
            ocp.CheckpointManagerOptions(read_only=True)
            if read_only
            else ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
            )  # temporary directories are left behind by processes that were killed
        )
        self.manager = ocp.CheckpointManager(path.absolute(), item_names=ITEMS, options=options)

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Write `state` and JSON `meta` under `step`. On a CPU the arrays are copied first: an
        asynchronous write would otherwise read buffers that the next step is donated. Elsewhere
        orbax copies them to the host before `save` returns.

        Raises:
            Unwritten: this or the last checkpoint cannot be written.
        """
        self.wait()
        parts = _split(state)
        if _on_cpu(state):
            parts, prints = _copied(parts)
        else:
            prints = _fingerprint(parts)
        meta = {**meta, "marks": {name: _marks(tree) for name, tree in prints.items()}}
        args = ocp.args.Composite(
            params=ocp.args.PyTreeSave(parts["params"]),
            rest=ocp.args.PyTreeSave(parts["rest"]),
            meta=ocp.args.JsonSave({**meta, "digest": json_digest(meta)}),
        )
        try:
            written = self.manager.save(step, args=args)
        except Exception as e:
            raise self._unwritten(e) from e
        if not written:
            raise self._unwritten(f"step {step} does not come after those there: {self.steps()}")

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is whole, laid out like `like` (so on any mesh), and its meta;
        None where there is none. Damaged ones are named, deleted and passed over.

        Raises:
            Unreadable: a checkpoint could not be read, but is not known to be damaged.
        """
        for step in reversed(self.steps()):
            try:
                parts, meta, _ = self._read(step, _split(like))
            except Damaged as e:
                before = [s for s in self.steps() if s < step]
                then = f"step {before[-1]}" if before else "the beginning"
                self.log(
                    f"checkpoint {step} in {self.path} is damaged and deleted ({e}); falling back "
                    f"to {then}"
                )
                self.manager.delete(step)
                continue
            except Unreadable as e:
                raise Unreadable(
                    f"{e}; if it stays, delete {self.path / str(step)} to go on without it"
                ) from e
            return like.replace(params=parts["params"], **parts["rest"]), meta
        return None

    def read(self, step: int, like: TrainState, marks: Marks | None = None) -> TrainState:
        """The state of one step, laid out like `like`; its fingerprints are to be `marks`.

        Raises:
            Damaged, Unreadable.
        """
        parts = self._read(step, _split(like), marks)[0]
        return like.replace(params=parts["params"], **parts["rest"])

    def read_params(self, step: int, like: Callable[[Any], Any], marks: Marks | None = None) -> Any:
        """The parameters alone. `like` says how they are laid out, given their tree of shapes and
        dtypes; those that it makes `...` of are not read."""
        return self._read(step, {"params": like}, marks)[0]["params"]

    def verify(self, step: int, like: TrainState) -> Marks:
        """Read a checkpoint back, once it is written; its fingerprints.

        Raises:
            Unwritten: it does not hold what was saved.
        """
        self.wait()
        try:
            for name, tree in _split(like).items():  # one after the other: it takes less memory
                marks = self._read(step, {name: tree})[2]
        except Damaged as e:
            raise self._unwritten(f"step {step}, read back, is damaged: {e}") from e
        return marks

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self.manager.delete(later)

    def _read(
        self, step: int, like: dict[str, Any], expected: Marks | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], Marks]:
        """Some items of a checkpoint, its meta and its fingerprints."""
        path = self.path / str(step)
        try:
            return self._restored(step, like, expected)
        except Exception as e:
            if reason := damage(path, list(like), e):
                raise Damaged(reason) from e
            raise Unreadable(
                f"checkpoint {step} in {self.path} could not be read ({_line(e)}); it is not known "
                f"to be damaged, and nothing was deleted. Run the command again when the cause is "
                "gone"
            ) from e

    def _restored(
        self, step: int, like: dict[str, Any], expected: Marks | None
    ) -> tuple[dict[str, Any], dict[str, Any], Marks]:
        args = {}
        for name, tree in like.items():
            tree = tree(_shapes(self.path / str(step) / name)) if callable(tree) else tree
            tree = jax.tree.map(
                lambda x: (
                    x if x is ... else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                ),
                tree,
            )
            layout = ocp.checkpoint_utils.construct_restore_args(tree)
            args[name] = ocp.args.PyTreeRestore(tree, restore_args=layout)
        read = self.manager.restore(
            step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **args)
        )
        meta, marks, mixed = _checked_meta(dict(read.meta))
        for name in like:
            leaves = jax.tree.leaves(read[name])
            wanted = [i for i, x in enumerate(leaves) if x is not ...]
            found = _marks(_fingerprint([leaves[i] for i in wanted], mixed))
            if found != [marks[name][i] for i in wanted]:
                raise Damaged(
                    f"the fingerprint of its {name} differs from the one it was saved with"
                )
            if expected is not None and expected[name] != marks[name]:
                raise Damaged(f"its {name} are not those that training ended with")
        return {name: read[name] for name in like}, meta, marks

    def wait(self) -> None:
        """Waits until all that was saved is written.

        Raises:
            Unwritten: it cannot be.
        """
        try:
            self.manager.wait_until_finished()
        except Exception as e:
            raise self._unwritten(e) from e

    def _unwritten(self, reason: Exception | str) -> Unwritten:
        said = reason if isinstance(reason, str) else _line(reason)
        return Unwritten(
            f"a checkpoint could not be written to {self.path} ({said}); is the disk full, or the "
            f"folder not writable? Then run the command again: it goes on from the checkpoint "
            "before"
        )

    def close(self) -> None:
        """Logs a write that fails now, and does not raise it: whoever needs the checkpoint verifies
        it."""
        try:
            self.wait()
        except Unwritten as e:
            self.log(str(e))
        self.manager.close()


def _on_cpu(state: TrainState) -> bool:
    return all(device.platform == "cpu" for device in state.step.devices())


def _checked_meta(meta: dict[str, Any]) -> tuple[dict[str, Any], Marks, bool]:
    """(meta as `save` was given it, fingerprints, whether they are of the present kind)."""
    if "fingerprint" in meta:  # an older version's
        marks = meta.pop("fingerprint")
        return meta, marks, False
    digest = meta.pop("digest", None)
    if digest != json_digest(meta):
        raise Damaged("its meta/metadata differs from what was saved")
    marks = meta.pop("marks")
    return meta, marks, True


# Messages of TensorStore that say that files are missing, short, or do not decode.
BROKEN = re.compile(
    r"(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE): |FAILED_PRECONDITION: Error reading |.*Error decoding ",
    re.DOTALL,
)


def damage(path: Path, items: list[str], error: Exception) -> str | None:
    """What is known to be wrong with the checkpoint at `path`, given the error that reading `items`
    of it raised: files that are missing, short or do not decode, numbers that are not those saved.
    None where it may be undamaged: reading also fails for lack of memory or permissions, while a
    file system is away, or because the code has changed."""
    causes = list(_causes(error))
    for e in causes:
        if isinstance(e, Damaged):
            return str(e)
    try:
        for file in _json_files(path, items):
            try:
                json.loads(file.read_bytes())
            except FileNotFoundError:
                return f"{file} is missing"
            except ValueError:
                return f"{file} does not decode"
    except OSError:
        return None
    for e in causes:
        system = re.search(r"os_error_code='(\d+)'", str(e))
        absent = system is None or system[1] == "2"  # ENOENT
        if isinstance(e, ValueError) and BROKEN.match(str(e)) and absent:
            return _line(e)
    return None


def _json_files(path: Path, items: list[str]) -> Iterator[Path]:
    """The files that reading `items` needs, and others that it may read, where they exist."""
    yield path / "meta" / "metadata"
    for name in items:
        yield path / name / "_METADATA"
        others = [path / name / "_sharding", *(path / name / "array_metadatas").glob("*")]
        yield from (file for file in others if file.exists())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    """An error's first cause, on one line."""
    cause = list(_causes(error))[-1]
    text = " ".join(str(cause).partition("[tensorstore_spec=")[0].split())
    return f"{type(cause).__name__}: {text}"[:1500]


def _shapes(path: Path) -> Any:
    """Shapes and dtypes of what was saved there."""
    saved = ocp.StandardCheckpointHandler().metadata(path.absolute()).tree
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)


def _split(state: TrainState) -> dict[str, Any]:
    rest = {"step": state.step, "opt": state.opt, "hyper": state.hyper, "extra": state.extra}
    return {"params": state.params, "rest": rest}
