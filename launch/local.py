"""Runs a study's graph on this machine, in a few worker processes.

    rlhf-jax run STUDY          (the same as: python -m launch.local STUDY)

A worker is handed one cell after another, so that starting Python is paid once; what has been
trained is in run folders alone, so this process and any worker may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from launch import machine
from launch.display import Silent, choose
from launch.graph import Graph, Job, clear
from launch.worker import Worker
from rlhf_jax.placement.mesh import full_mesh
from rlhf_jax.study.graph import Study
from rlhf_jax.study.plan import make_plan
from rlhf_jax.study.runs import STALE_SECONDS, Runs, write_sealed

TICK_SECONDS = 0.25
# After Ctrl-C or SIGTERM a worker may save its cell for STOP_SECONDS, and for as long as its heart
# beats up to STOP_LIMIT: a large checkpoint takes minutes.
STOP_SECONDS, STOP_LIMIT = 20.0, 1800.0
ATTEMPTS = 3  # workers that may be killed in one cell before it has failed
EXECUTE = (sys.executable, "-m", "rlhf_jax.worker")


def run(
    study: Study,
    study_path: str | Path,
    *,
    runs: Runs,
    corpus_hash: str,
    tiny: bool = False,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    force: Sequence[str] = (),
    workers: int | None = None,
    threads: int | None = None,
    display: str = "auto",
    wandb: str = "disabled",
    mesh: str = "",
    accumulate: int = 1,
    again: str = "",
    worker_command: Sequence[str] = EXECUTE,
) -> int:
    """Runs the cells that are not done.

    Args:
      study_path, tiny, overrides: how a worker loads the same study.
      only: globs of cells; their unfinished ancestors run too. force: globs of cells to forget
        first, with all that start from them.
      workers: processes at once (default: one a core, one in all beside an accelerator).
      threads: of each (default: cores / workers).
      mesh, accumulate: of each worker, as `rlhf_jax.placement.mesh.check_placement` has approved them.
      display: `auto`, `table`, `lines` or `none`.
      again: the command that continues, to be shown when something is left.
      worker_command: what a worker process is started with.

    Returns:
      0 when all selected cells are done, 1 when some are not, 128 + N after signal N.

    Raises:
      ConfigError: a glob matches nothing, or a cell to clear is held by a live process.
    """
    devices = math.prod(full_mesh(mesh, machine.devices()).values())
    workers = workers or machine.default_workers(devices)
    threads = threads or max(1, machine.cores() // workers)
    folders = runs.folders(study, corpus_hash)
    if force:
        clear(study, folders, force)
    accelerator = machine.accelerator()
    plan = make_plan(study, runs, corpus_hash, workers, threads, accelerator, accumulate)
    graph = Graph.of(study, folders, {c.name: c.seconds for c in plan.cells}, only)
    command = [
        *worker_command,
        str(study_path),
        *(["--tiny"] if tiny else []),
        "--runs",
        str(runs.root),
        "--threads",
        str(threads),
        "--wandb",
        wandb,
        *(["--mesh", mesh] if mesh else []),
        "--accumulate",
        str(accumulate),
        *overrides,
    ]
    title = f"{study.name}: {len(graph.jobs)} cells, {workers} workers x {threads} threads"
    # The members of a population lie on the cores of a CPU; a mesh, and an accelerator, has devices
    # of its own.
    together = devices if mesh or accelerator else machine.cores()
    launch = _Launch(
        graph,
        workers,
        threads,
        command,
        runs,
        runs.study(study),
        choose(display, title),
        (devices, together),
    )
    with _signals(launch.events), launch.display:
        launch.loop()
        launch.display.show(graph, workers, last=True)
    return launch.verdict(again)


class _Launch:
    """The workers of one launch and the loop that feeds them. All events arrive in one queue:
    `(worker, answer)`, `(worker, None)` for its death, `(None, signal number)`."""

    def __init__(
        self,
        graph: Graph,
        count: int,
        threads: int,
        command: list[str],
        runs: Runs,
        folder: Path,
        display: Silent,
        devices: tuple[int, int],
    ) -> None:
        """devices: that a CPU is split into in a worker for one cell, and in one for a
        population."""
        self.graph, self.count, self.threads, self.runs = graph, count, threads, runs
        self.command, self.folder, self.display, self.devices = command, folder, display, devices
        self.events: SimpleQueue[tuple[Worker | None, Any]] = SimpleQueue()
        self.workers: list[Worker] = []
        self.signal = 0
        self.deadline = float("inf")

    def loop(self) -> None:
        """Until nothing is left that can still happen."""
        while self.graph.open() and not self.signal:
            self._hand_out()
            self.display.show(self.graph, self.count)
            self._handle(TICK_SECONDS)
            self.graph.settle()
        if self.signal:
            self._save_and_stop()
        self._dismiss()

    def _hand_out(self) -> None:
        while jobs := self.graph.next_ready():
            for job in jobs:
                job.folder = self.runs.current(job.folder)
            held = [j for j in jobs if j.folder.state()["state"] == "running"]
            if held:  # another launch has them
                for job in held:
                    self.graph.finish(job, "held", None)
                continue
            worker = self._idle(self.devices[len(jobs) > 1])
            if worker is None:
                return
            self.graph.begin(jobs)
            worker.give([j.name for j in jobs])

    def _idle(self, devices: int) -> Worker | None:
        """A worker with nothing to do. One with another number of devices makes room for it: that
        number is set when a process starts."""
        idle = [w for w in self.workers if not w.cells]
        for worker in idle:
            if worker.devices == devices:
                return worker
        if len(self.workers) >= self.count:
            if not idle:
                return None
            idle[0].dismiss()
            self.workers.remove(idle[0])
        slot = min(set(range(self.count)) - {w.slot for w in self.workers})
        log = self.folder / f"worker-{slot}.log"
        worker = Worker(self.command, self.threads, log, self.events, slot, devices)
        self.workers.append(worker)
        return worker

    def _handle(self, timeout: float) -> None:
        """The events that have arrived, or the first one to arrive in `timeout` seconds."""
        with contextlib.suppress(Empty):
            event = self.events.get(timeout=timeout)
            while True:
                self._take(*event)
                event = self.events.get_nowait()

    def _take(self, worker: Worker | None, what: Any) -> None:
        if worker is None:
            if self.signal:  # the second one: at once
                self.deadline = 0.0
            self.signal = self.signal or what
        elif what is None:
            if worker in self.workers:
                self.workers.remove(worker)
            for cell in worker.cells:
                self._died(worker, self.graph.jobs[cell])
        elif what.get("cell") in worker.cells:
            job = self.graph.jobs[what["cell"]]
            worker.cells.remove(job.name)
            outcome, reason = what["outcome"], what.get("reason")
            if outcome == "stopped" and not self.signal:
                outcome, reason = "failed", reason or "its worker was told to stop"
            self.graph.finish(job, outcome, reason)

    def _died(self, worker: Worker, job: Job) -> None:
        """A worker that died in a cell: what it wrote last counts. One that was killed is replaced,
        up to a number of times; then, and if it ended by itself, the cell gets its reason."""
        if job.folder.done():
            return self.graph.finish(job, "done", None)
        if self.signal:
            return self.graph.finish(job, "stopped", None)
        reason = worker.death()
        job.deaths += 1
        if worker.killed() and job.deaths < ATTEMPTS:
            self.display.say(f"{job.name}: {reason}; trying again ({job.deaths + 1} of {ATTEMPTS})")
            return self.graph.again(job)
        if worker.killed():
            reason = f"{ATTEMPTS} workers in turn: {reason}"
        with contextlib.suppress(OSError), job.folder.held() as ours:  # a full disk: it is said
            if ours:
                failure = {
                    "reason": reason,
                    "traceback": worker.last_lines(40),
                    "time": time.time(),
                }
                write_sealed(job.folder.path / "failed.json", failure)
        self.graph.finish(job, "failed", reason)

    def _save_and_stop(self) -> None:
        name = signal.Signals(self.signal).name
        busy = [cell for w in self.workers for cell in w.cells]
        saving = f": saving {', '.join(busy)} (again to stop at once)" if busy else ""
        self.display.say(f"{name}{saving}")
        for worker in self.workers:
            worker.stop()
        patience = time.time() + STOP_SECONDS
        self.deadline = min(self.deadline, time.time() + STOP_LIMIT)
        while self.workers and time.time() < self.deadline:
            self.display.show(self.graph, self.count)
            self._handle(TICK_SECONDS)
            if time.time() > patience:
                for worker in [w for w in self.workers if not self._beats(w)]:
                    worker.kill()
        for worker in self.workers:
            worker.kill()

    def _beats(self, worker: Worker) -> bool:
        """Whether a worker shows a sign of life from a cell."""
        beats = [self.graph.jobs[cell].folder.heartbeat() for cell in worker.cells]
        return any(time.time() - beat.get("time", 0.0) < STALE_SECONDS for beat in beats)

    def _dismiss(self) -> None:
        for worker in self.workers:
            worker.dismiss()
        end = time.time() + (0.0 if self.signal else 10.0)
        while self.workers and time.time() < end:
            self._handle(TICK_SECONDS)
        for worker in self.workers:
            worker.kill()
        end = time.time() + 5.0
        while self.workers and time.time() < end:
            self._handle(TICK_SECONDS)

    def verdict(self, again: str) -> int:
        """Says what is left, and how to go on."""
        undone = self.graph.undone()
        if undone:
            total = len(self.graph.jobs)
            print(f"{total - len(undone)} of {total} cells done; left: {', '.join(undone)}")
            for name in undone:
                job = self.graph.jobs[name]
                if job.state in ("failed", "blocked"):
                    word = "FAILED" if job.state == "failed" else "waiting"
                    print(f"  {name}: {word}: {job.reason}")
            if again:
                print(f"Continue with: {again}")
        if self.signal:
            return 128 + self.signal
        return 0 if self.graph.complete() else 1


@contextlib.contextmanager
def _signals(events: SimpleQueue[Any]) -> Iterator[None]:
    """SIGINT and SIGTERM become events while the loop runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, lambda number, _: events.put((None, number))) for n in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    from rlhf_jax.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
