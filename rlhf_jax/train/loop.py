"""The one loop: dispatch step k, write the metrics of step k-1 while it runs, save, resume.

Batch t is a function of t, so a resumed cell goes on bit for bit where its checkpoint stood. Cells
that train together (`rlhf_jax.train.population`) go through it side by side, each with its own
folder.

At the end the last checkpoint is read back, and `checkpoint.json` records its step and
fingerprints. Cells that start from this one read that checkpoint or none.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from rlhf_jax.model import Axes
from rlhf_jax.study.config import ConfigError, OptimConfig
from rlhf_jax.study.files import Damaged, read_json, write_json, write_text
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.train.checkpoints import Checkpoints, Marks, Unreadable
from rlhf_jax.train.metrics import Sink
from rlhf_jax.train.population import Alone, Population
from rlhf_jax.train.state import TrainState, init_state
from rlhf_jax.train.step import Step

FINAL = "checkpoint.json"  # what the last checkpoint of a cell is that has trained


@dataclass
class Runtime:
    """How a cell runs. None of it changes results, except that another mesh rounds differently."""

    mesh: Mesh
    axes: Axes
    accumulate: int = 1  # micro-batches a step
    checkpoint_seconds: float = 20.0
    keep: int = 2
    wandb: str = "disabled"
    stop: threading.Event = field(default_factory=threading.Event)
    log: Callable[[str], None] = print


class Stopped(Exception):
    """Asked to stop; a checkpoint of the last step is saved."""


class Diverged(Exception):
    """A loss or gradient is not finite; no checkpoint of it exists."""


@dataclass
class Member:
    """One cell in the loop.

    Attributes:
      state: where it starts if it has no checkpoint; its arrays say how restored ones are laid out.
      batch_at: the batch of step t, a function of t alone.
      row: makes a line of metrics.jsonl of a step's host metrics (floats, and whatever arrays the
        step returned); it may add up `totals`, which are saved with the checkpoints.
      check: may raise at (step, metrics).
    """

    folder: CellFolder
    state: TrainState
    batch_at: Callable[[int], Any]
    row: Callable[[dict[str, Any], dict[str, float]], dict[str, float]]
    beat: Heartbeat
    check: Callable[[int, dict[str, Any]], None] | None = None


class _Running:
    """A member with what the loop keeps for it: checkpoints, totals, the file of its rows."""

    def __init__(self, member: Member, runtime: Runtime) -> None:
        self.member = member
        self.checkpoints = Checkpoints(member.folder.checkpoints, runtime.keep, runtime.log)
        self.error: Exception | None = None
        self.restore()

    def attempt(self, part: Callable[..., None], *args: Any) -> None:
        """Runs a part of the member's work, unless an earlier one failed. Keeps its exception, so
        that the other members go on."""
        try:
            if self.error is None:
                part(*args)
        except Exception as e:
            self.error = e

    def restore(self) -> None:
        """Continues from the newest undamaged checkpoint, or from the start."""
        restored = self.checkpoints.restore(self.member.state)
        self.state, meta = restored or (self.member.state, {"totals": {}})
        self.totals: dict[str, float] = meta["totals"]
        self.done = int(self.state.step)
        self.saved = self.done if restored else -1

    def go_back(self, step: int) -> bool:
        """Goes back to `step` if there is a checkpoint of it. Returns whether the member is at
        `step` now."""
        if step != self.done and step in self.checkpoints.steps():
            self.checkpoints.forget_after(step)
            self.restore()
        return step == self.done

    def start(self, runtime: Runtime, stack: ExitStack, steps: int) -> None:
        self.started = time.time()
        (self.member.folder.path / FINAL).unlink(missing_ok=True)
        _truncate_metrics(self.member.folder, self.done)
        self.sink = stack.enter_context(Sink(self.member.folder, runtime.wandb))
        self.member.beat.progress(step=self.done, steps=steps, phase="compiling")

    def take(self, k: int, steps: int, metrics: dict[str, Any]) -> None:
        """Writes the metrics of step k. Raises Diverged if one is not finite."""
        metrics = {n: float(v) if v.ndim == 0 else v for n, v in metrics.items()}
        bad = [n for n, v in metrics.items() if isinstance(v, float) and not math.isfinite(v)]
        if bad:
            raise Diverged(
                f"{', '.join(bad)} not finite at step {k} (batch {k - 1}); the last good "
                f"checkpoint is step {max(self.saved, 0)} in {self.member.folder.checkpoints}. "
                f"Lower the learning rate or change the seed."
            )
        if self.member.check is not None:
            self.member.check(k, metrics)
        line = self.member.row(metrics, self.totals)
        rate = (k - self.done) / max(time.time() - self.started, 1e-9)
        self.member.beat.progress(
            step=k,
            steps=steps,
            phase="training",
            eta_seconds=(steps - k) / max(rate, 1e-9),
            **{n: line[n] for n in ("loss", "tokens_per_second") if n in line},
        )
        if k % math.ceil(steps / 1000) == 0 or k == steps:
            self.sink.write({"step": k, **line})

    def save(self, k: int, state: TrainState) -> None:
        self.checkpoints.save(k, state, {"totals": dict(self.totals)})  # written later
        self.saved = k

    def finish(self, steps: int) -> None:
        """Reads the last checkpoint back and records its step and fingerprints."""
        self.member.beat.progress(phase="reading the checkpoint back")
        marks = self.checkpoints.verify(steps, self.member.state)
        write_json(self.member.folder.path / FINAL, {"step": steps, "marks": marks})


def train(
    folder: CellFolder,
    state: TrainState,
    step: Step,
    batch_at: Callable[[int], Any],
    steps: int,
    runtime: Runtime,
    row: Callable[[dict[str, Any], dict[str, float]], dict[str, float]],
    beat: Heartbeat,
    check: Callable[[int, dict[str, Any]], None] | None = None,
) -> TrainState:
    """Run `step` until `steps` are taken in all, from the newest whole checkpoint if there is one,
    else from `state`; see `Member` for the rest.

    Every step is logged up to a thousand of them, then every (steps/1000)th. Raises Stopped,
    Diverged, Unwritten and Unreadable (checkpoints).
    """
    member = Member(folder, state, batch_at, row, beat, check)
    (outcome,) = train_together([member], step, steps, runtime)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train_together(
    members: Sequence[Member],
    step: Step,
    steps: int,
    runtime: Runtime,
    population: Population | None = None,
) -> list[TrainState | Exception]:
    """`train` for the members of a population, with a step that takes all of them. The outcome of a
    member that fails is its exception; the others go on. Raises Stopped and Unreadable (a
    checkpoint), for all of them.

    They go on from the newest step that they have in common. Members that have none with the others
    (new ones, ones that failed earlier) are trained before them, among themselves.
    """
    running = [_Running(m, runtime) for m in members]
    outcomes: dict[int, TrainState | Exception] = {}
    left = list(running)
    try:
        while left:
            lowest = min(r.done for r in left)
            group = [r for r in left if r.go_back(lowest)]
            left = [r for r in left if r not in group]
            done = _loop(group, step, steps, runtime, population or Alone())
            outcomes |= {id(r): outcome for r, outcome in zip(group, done, strict=True)}
    finally:
        for r in running:
            r.checkpoints.close()
    return [outcomes[id(r)] for r in running]


def _loop(
    group: list[_Running], step: Step, steps: int, runtime: Runtime, layout: Population | Alone
) -> list[TrainState | Exception]:
    """Trains members that are all at the same step."""
    done, saved_at = group[0].done, time.time()
    state = layout.join([r.state for r in group])
    pending: tuple[int, dict[str, jax.Array]] | None = None

    def flush() -> None:
        """Writes the metrics of the last dispatched step."""
        nonlocal pending
        if pending is None:
            return
        k, metrics = pending[0], layout.split(jax.device_get(pending[1]))
        pending = None
        for r, measured in zip(group, metrics, strict=False):
            r.attempt(r.take, k, steps, measured)

    def states() -> list[TrainState]:
        """The members' states, with the sharding that they started with."""
        return [
            jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), tree, r.member.state)
            for r, tree in zip(group, layout.split(state), strict=False)
        ]

    def save(k: int) -> None:
        nonlocal saved_at
        flush()
        for r, tree in zip(group, states(), strict=True):
            r.attempt(r.save, k, tree)
        saved_at = time.time()

    with ExitStack() as stack:
        for r in group:
            r.start(runtime, stack, steps)
        for t in range(done, steps):
            state, metrics = step(state, layout.join([r.member.batch_at(t) for r in group]))
            flush()
            pending = (t + 1, metrics)
            stop = runtime.stop.is_set()
            if stop or time.time() - saved_at > runtime.checkpoint_seconds:
                save(t + 1)
            if stop:
                for r in group:
                    r.attempt(r.checkpoints.wait)
            if all(r.error for r in group):
                break
            if stop:
                raise Stopped(f"stopped at step {t + 1} of {steps}; a checkpoint is saved")
        flush()
        if any(r.saved < steps for r in group):
            save(steps)
        for r in group:
            r.attempt(r.finish, steps)
    return [r.error or tree for r, tree in zip(group, states(), strict=True)]


def _truncate_metrics(folder: CellFolder, step: int) -> None:
    """Drop the rows after the checkpoint that we go on from: their steps are run again."""
    path = folder.path / "metrics.jsonl"
    rows = [r for r in folder.metrics() if r["step"] <= step]
    write_text(path, "".join(json.dumps(r) + "\n" for r in rows))


def keep_model(folder: CellFolder, params: Any, runtime: Runtime, beat: Heartbeat) -> None:
    """Saves placed parameters as those that a cell ends with after no step of training."""

    def never(*_: Any) -> Any:
        raise AssertionError("no step is taken")

    train(folder, init_state(params, OptimConfig(), 0), never, never, 0, runtime, never, beat)


T = TypeVar("T")


def final_checkpoint(folder: CellFolder, like: Callable[[Any], Any]) -> Any:
    """Parameters of a finished cell. `like` maps the tree of their shapes to shapes with shardings,
    or to `...` for arrays that are not read.

    Raises:
        ConfigError: the checkpoint that the cell ended with is missing, damaged or cannot be read.
    """
    return _final(folder, lambda opened, step, marks: opened.read_params(step, like, marks))


def final_state(folder: CellFolder, like: TrainState) -> TrainState:
    """The state that a finished cell ended with, laid out like `like`. Raises as `final_checkpoint`
    does."""
    return _final(folder, lambda opened, step, marks: opened.read(step, like, marks))


def _final(folder: CellFolder, read: Callable[[Checkpoints, int, Marks | None], T]) -> T:
    """What is read of a finished cell's last checkpoint. Nothing is written or deleted there."""
    name = folder.path.name.rpartition("-")[0] or folder.path.name
    again = f"`rlhf-jax run STUDY --force {name}` trains {name} again"
    checkpoints = None
    try:
        step, marks = _recorded(folder, again)
        checkpoints = Checkpoints(folder.checkpoints, read_only=True)
        there = checkpoints.steps()
        step = max([step, *there[-1:]]) if marks is None else step
        if step not in there:
            raise ConfigError(
                f"{name} has no checkpoint of its last step, {step}, in {folder.checkpoints} "
                f"(steps there: {there or 'none'}); results that --kept brought back have none. "
                f"{again}"
            )
        return read(checkpoints, step, marks)
    except Damaged as e:
        raise ConfigError(
            f"the last checkpoint of {name}, step {step} in {folder.checkpoints}, is damaged: {e}. "
            f"Nothing was deleted; {again}"
        ) from e
    except (OSError, Unreadable) as e:
        raise Unreadable(
            f"the checkpoints of {name} could not be read: {e}; nothing was deleted. If it stays, "
            f"{again}"
        ) from e
    finally:
        if checkpoints is not None:
            checkpoints.close()


def _recorded(folder: CellFolder, again: str) -> tuple[int, Marks | None]:
    """The step that a cell ended at, and its fingerprints. Older versions recorded neither: then it
    is the last step in the metrics, unless there is a later checkpoint. Of a cell that is not done:
    the latest."""
    path = folder.path / FINAL
    try:
        record = read_json(path)
        if record is not None:
            return int(record["step"]), {n: list(record["marks"][n]) for n in ("params", "rest")}
        if not folder.done():
            return 0, None
        path = folder.path / "metrics.jsonl"
        return max((row["step"] for row in folder.metrics()[-1:]), default=0), None
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{path} does not decode ({e}); {again}") from e
