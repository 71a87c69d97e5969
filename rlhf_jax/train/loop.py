"""The one loop: dispatch step k, write the metrics of step k-1 while it runs, save, resume.

Batch t is a function of t, so a resumed cell goes on bit for bit where its checkpoint stood.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from rlhf_jax.model import Axes
from rlhf_jax.runs import CellFolder, Heartbeat
from rlhf_jax.train.checkpoints import Checkpoints
from rlhf_jax.train.metrics import Sink
from rlhf_jax.train.state import TrainState
from rlhf_jax.train.step import Step


@dataclass
class Runtime:
    """How a cell runs; none of it changes what is computed, beyond the rounding of another mesh."""

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


def train(
    folder: CellFolder,
    state: TrainState,
    step: Step,
    batch_at: Callable[[int], dict[str, jax.Array]],
    steps: int,
    runtime: Runtime,
    row: Callable[[dict[str, Any], dict[str, float]], dict[str, float]],
    beat: Heartbeat,
    check: Callable[[int, dict[str, Any]], None] | None = None,
) -> TrainState:
    """Run `step` until `steps` are taken in all, from the newest whole checkpoint if there is one,
    else from `state`. `row(metrics, totals)` makes a line of metrics.jsonl of a step's host metrics
    (floats, and whatever arrays the step returned); it may add up `totals`, which are saved with the checkpoints. `check(step, metrics)` may raise.

    Every step is logged up to a thousand of them, then every (steps/1000)th. Raises Stopped, Diverged.
    """
    checkpoints = Checkpoints(folder.checkpoints, runtime.keep, runtime.log)
    totals: dict[str, float] = {}
    restored = checkpoints.restore(state)
    if restored is not None:
        state, meta = restored
        totals = meta["totals"]
    done = int(state.step)
    _truncate_metrics(folder, done)
    log_every = math.ceil(steps / 1000)
    pending: tuple[int, dict[str, jax.Array]] | None = None
    saved, saved_at, started, first = done, time.time(), time.time(), done
    beat.progress(step=done, steps=steps, phase="compiling")

    with Sink(folder, runtime.wandb) as sink:

        def flush() -> None:
            """Write what the last dispatched step measured; refuse to go on from a NaN."""
            nonlocal pending
            if pending is None:
                return
            k, metrics = pending[0], jax.device_get(pending[1])
            pending = None
            metrics = {n: float(v) if v.ndim == 0 else v for n, v in metrics.items()}
            bad = [n for n, v in metrics.items() if isinstance(v, float) and not math.isfinite(v)]
            if bad:
                raise Diverged(
                    f"{', '.join(bad)} not finite at step {k} (batch {k - 1}); the last good checkpoint "
                    f"is step {saved} in {folder.checkpoints}. Lower the learning rate or change the seed."
                )
            if check is not None:
                check(k, metrics)
            line = row(metrics, totals)
            rate = (k - first) / max(time.time() - started, 1e-9)
            beat.progress(
                step=k,
                steps=steps,
                phase="training",
                eta_seconds=(steps - k) / max(rate, 1e-9),
                **{n: line[n] for n in ("loss", "tokens_per_second") if n in line},
            )
            if k % log_every == 0 or k == steps:
                sink.write({"step": k, **line})

        def save(k: int) -> None:
            nonlocal saved, saved_at
            flush()
            checkpoints.save(k, state, {"totals": dict(totals)})  # written later
            saved, saved_at = k, time.time()

        try:
            for t in range(done, steps):
                state, metrics = step(state, batch_at(t))
                flush()
                pending = (t + 1, metrics)
                if runtime.stop.is_set():
                    save(t + 1)
                    raise Stopped(f"stopped at step {t + 1} of {steps}; a checkpoint is saved")
                if time.time() - saved_at > runtime.checkpoint_seconds:
                    save(t + 1)
            flush()
            if saved < steps or restored is None:
                save(steps)
        finally:
            checkpoints.close()
    return state


def _truncate_metrics(folder: CellFolder, step: int) -> None:
    """Drop the rows after the checkpoint that we go on from: their steps are run again."""
    path = folder.path / "metrics.jsonl"
    rows = [r for r in folder.metrics() if r["step"] <= step]
    tmp = path.with_name(".metrics.tmp")
    tmp.write_text("".join(json.dumps(r) + "\n" for r in rows))
    os.replace(tmp, path)


def final_checkpoint(folder: CellFolder, like: Any) -> Any:
    """Parameters of a finished cell, laid out like `like`."""
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        return checkpoints.restore_params(like)
    finally:
        checkpoints.close()
