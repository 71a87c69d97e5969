"""The loop of a launch, for every launcher: hands out tasks, follows events, retries killed
workers, stops on signals, and says what is left."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from launch.display import choose
from launch.graph import Graph, Job
from launch.task import Event, Task
from rlhf_jax.placement.launchers import Launch
from rlhf_jax.study.files import write_sealed
from rlhf_jax.study.heartbeat import STALE_SECONDS
from rlhf_jax.study.plan import make_plan
from rlhf_jax.study.selection import clear

if TYPE_CHECKING:
    from launch.launcher import Launcher

TICK_SECONDS = 0.25
# After Ctrl-C or SIGTERM a worker may save its cell for STOP_SECONDS, and up to STOP_LIMIT while
# its heartbeat is fresh: a large checkpoint takes minutes.
STOP_SECONDS, STOP_LIMIT = 20.0, 1800.0
ATTEMPTS = 3  # a cell has failed when so many of its workers were killed


def run(launch: Launch, launcher: Launcher) -> int:
    """Runs the cells of a launch that are not done (see `Launcher.run`)."""
    study, runs, workers = launch.study, launch.runs, launcher.workers
    folders = runs.folders(study, launch.corpus_hash)
    if launch.force:
        clear(study, folders, launch.force)
    plan = make_plan(
        study,
        runs,
        launch.corpus_hash,
        workers,
        launcher.threads,
        launcher.accelerator,
        launch.accumulate,
    )
    seconds = {c.name: c.seconds for c in plan.cells}
    graph = Graph.of(study, folders, seconds, launch.only)
    title = f"{study.name}: {len(graph.jobs)} cells, {workers} workers x {launcher.threads} threads"
    loop = Loop(launch, launcher, graph, title)
    with _signals(loop.interrupt), loop.display:
        loop.run()
        loop.display.show(graph, workers, last=True)
    return loop.verdict()


def tasks(launch: Launch) -> list[Task]:
    """The tasks of a launch, in the order in which a launcher that queues is handed them."""
    study = launch.study
    folders = launch.runs.folders(study, launch.corpus_hash)
    graph, found = Graph.of(study, folders, {}, launch.only, launch.force), []
    while jobs := graph.next_ready(ahead=True):
        found.append(Task(tuple(j.name for j in jobs), graph.undone_parents(jobs)))
        graph.begin(jobs, "queued")
    return found


class Loop:
    """One launch: its graph, its launcher and its display."""

    def __init__(self, launch: Launch, launcher: Launcher, graph: Graph, title: str) -> None:
        self.launch, self.launcher, self.graph = launch, launcher, graph
        self.display = choose(launch.display, title)
        self.signal = 0
        self.deadline = float("inf")

    def interrupt(self, number: int) -> None:
        """A signal: the first one asks workers to save, the second one ends them."""
        if self.signal:
            self.deadline = 0.0
        self.signal = self.signal or number

    def run(self) -> None:
        """Until nothing is left that can still happen. Workers end with it, whatever fails."""
        try:
            while self.graph.open() and not self.signal:
                self._hand_out()
                self._follow()
                queued = self.graph.named("queued")
                self.graph.settle()
                if blocked := [n for n in queued if self.graph.jobs[n].state == "blocked"]:
                    self.launcher.stop(blocked)
            if self.signal:
                self._save_and_stop()
        finally:
            self.launcher.close()

    def _hand_out(self) -> None:
        while jobs := self.graph.next_ready(self.launcher.QUEUES):
            for job in jobs:
                job.folder = self.launch.runs.current(job.folder)
            held = [j for j in jobs if j.folder.state()["state"] == "running"]
            if held:  # another launch runs them
                for job in held:
                    self.graph.finish(job, "held", None)
                continue
            task = Task(tuple(j.name for j in jobs), self.graph.undone_parents(jobs))
            if not self.launcher.room(task):
                return
            self.graph.begin(jobs, "queued" if self.launcher.QUEUES else "running")
            self.launcher.start(task)

    def _follow(self) -> None:
        """Shows the graph, and takes the events that have arrived."""
        self.display.show(self.graph, self.launcher.workers)
        for event in self.launcher.poll(TICK_SECONDS):
            job = self.graph.jobs.get(event.cell)
            if job and job.state in ("running", "queued"):
                self._take(job, event)

    def _take(self, job: Job, event: Event) -> None:
        outcome, reason = event.outcome, event.reason
        if outcome == "started":
            self.graph.begin([job], members=job.members)
        elif outcome in ("killed", "died"):
            self._died(job, event)
        elif outcome == "stopped" and not self.signal:
            self.graph.finish(job, "failed", reason or "its worker was told to stop")
        else:
            self.graph.finish(job, outcome, reason)

    def _died(self, job: Job, event: Event) -> None:
        """Decides by the cell's folder what became of it. A cell whose worker was killed runs
        again, up to ATTEMPTS times; then, and if the worker ended by itself, it has failed."""
        if job.folder.done():
            return self.graph.finish(job, "done", None)
        if self.signal:
            return self.graph.finish(job, "stopped", None)
        reason, killed = event.reason or "its worker died", event.outcome == "killed"
        job.deaths += 1
        if killed and job.deaths < ATTEMPTS:
            self.display.say(f"{job.name}: {reason}; trying again ({job.deaths + 1} of {ATTEMPTS})")
            return self.graph.again(job)
        if killed:
            reason = f"{ATTEMPTS} workers in turn: {reason}"
        # Where the disk is full the reason is shown all the same.
        with contextlib.suppress(OSError), job.folder.held() as ours:
            if ours:
                failure = {"reason": reason, "traceback": event.log, "time": time.time()}
                write_sealed(job.folder.path / "failed.json", failure)
        self.graph.finish(job, "failed", reason)

    def _save_and_stop(self) -> None:
        name, busy = signal.Signals(self.signal).name, self.graph.named("running")
        saving = f": saving {', '.join(busy)} (again to stop at once)" if busy else ""
        self.display.say(f"{name}{saving}")
        self.launcher.stop([*busy, *self.graph.named("queued")])
        patience = time.time() + STOP_SECONDS
        limit = time.time() + STOP_LIMIT
        while (left := self._left()) and time.time() < min(limit, self.deadline):
            self._follow()
            if time.time() > patience and (silent := [n for n in left if not self._beats(n)]):
                self.launcher.stop(silent, now=True)
        if left:
            self.launcher.stop(left, now=True)

    def _left(self) -> list[str]:
        return [*self.graph.named("running"), *self.graph.named("queued")]

    def _beats(self, cell: str) -> bool:
        """Whether the cell, or one that trains with it, has a fresh heartbeat."""
        names = self.graph.together.get(cell, (cell,))
        beats = [self.graph.jobs[n].folder.heartbeat() for n in names if n in self.graph.jobs]
        return any(time.time() - beat.get("time", 0.0) < STALE_SECONDS for beat in beats)

    def verdict(self) -> int:
        """Says what is left, and how to go on."""
        if undone := self.graph.undone():
            total = len(self.graph.jobs)
            print(f"{total - len(undone)} of {total} cells done; left: {', '.join(undone)}")
            for name in undone:
                job = self.graph.jobs[name]
                if job.state in ("failed", "blocked"):
                    word = "FAILED" if job.state == "failed" else "waiting"
                    print(f"  {name}: {word}: {job.reason}")
            if self.launch.again:
                print(f"Continue with: {self.launch.again}")
        if self.signal:
            return 128 + self.signal
        return 0 if self.graph.complete() else 1


@contextlib.contextmanager
def _signals(interrupt: Callable[[int], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `interrupt` while the loop runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, lambda number, _: interrupt(number)) for n in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
