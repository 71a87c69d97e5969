"""The graph of a study while it runs: which cells are ready, which wait for what, what is left."""

from __future__ import annotations

import resource
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.graph import Study
from rlhf_jax.study.plan import remaining_paths, wall_seconds
from rlhf_jax.study.populations import populations
from rlhf_jax.study.runs import CellFolder

RETRY_SECONDS = 2.0  # between two looks at a cell that another process holds


@dataclass
class Job:
    """A cell in this launch. States: done, ready, running (by a worker of ours), elsewhere (held by
    another process), failed, blocked (by an ancestor's failure), waiting, stopped."""

    name: str
    kind: str
    folder: CellFolder
    parents: tuple[str, ...]
    seconds: float  # planned
    state: str = "waiting"
    reason: str | None = None
    began: float = 0.0
    members: int = 1  # that it runs with, itself included
    deaths: int = 0  # workers that were killed in it
    retry_at: float = 0.0
    shown: Any = None  # how it is shown once it is done


@dataclass
class Graph:
    """The cells to do, parents first, and those that are done already."""

    jobs: dict[str, Job]
    selected: set[str]
    together: dict[str, tuple[str, ...]] = field(default_factory=dict)  # populations
    finished_here: list[tuple[float, float]] = field(default_factory=list)  # planned, measured

    @classmethod
    def of(
        cls,
        study: Study,
        folders: dict[str, CellFolder],
        seconds: dict[str, float],
        only: Sequence[str] = (),
    ) -> Graph:
        """The cells that `only` (globs; none: all) selects, with their unfinished ancestors."""
        selected = {c.name for c in study.select(only or ["*"])}
        done = {n for n, f in folders.items() if f.done()}
        kept = {n for n, f in folders.items() if f.kept()}
        todo = needed(study, done, only, kept)
        jobs = {}
        for cell in study.order():
            if cell.name in todo or cell.name in selected:
                job = Job(
                    cell.name,
                    cell.KIND,
                    folders[cell.name],
                    cell.parents(),
                    seconds.get(cell.name, 1.0),
                )
                job.state = "waiting" if cell.name in todo else "done"
                jobs[cell.name] = job
        graph = cls(jobs, selected, populations(study))
        graph.settle()
        return graph

    def settle(self) -> None:
        """Follows what has happened: looks at cells held elsewhere, frees and blocks children."""
        now = time.time()
        for job in self.jobs.values():  # parents first, so one pass is enough
            if job.state == "elsewhere" and now >= job.retry_at:
                seen = job.folder.state()
                job.retry_at = now + RETRY_SECONDS
                if seen["state"] == "done":
                    job.state = "done"
                elif seen["state"] == "failed":
                    job.state, job.reason = "failed", seen.get("reason")
                elif seen["state"] != "running":
                    job.state = "waiting"  # its holder is gone: ours again
            if job.state not in ("waiting", "ready"):
                continue
            states = [self.jobs[p] for p in job.parents if p in self.jobs]
            bad = [p for p in states if p.state in ("failed", "blocked")]
            if bad:
                job.state = "blocked"
                root = (
                    bad[0].reason if bad[0].state == "blocked" else f"parent {bad[0].name} failed"
                )
                job.reason = root
            elif all(p.state == "done" for p in states):
                job.state = "ready"

    def next_ready(self) -> list[Job]:
        """The ready cell with the longest chain of work after it, with the others of its
        population; none if nothing is ready. A population is not begun while one of it waits for
        its parents."""
        left = {j.name: j.seconds for j in self.jobs.values() if j.state != "done"}
        paths = remaining_paths(left, {j.name: j.parents for j in self.jobs.values()})
        ready = [
            j
            for j in self.jobs.values()
            if j.state == "ready" and all(k.state != "waiting" for k in self._population(j))
        ]
        first = max(ready, key=lambda j: (paths[j.name], j.name), default=None)
        return [j for j in self._population(first) if j.state == "ready"] if first else []

    def _population(self, job: Job) -> list[Job]:
        names = self.together.get(job.name, (job.name,))
        return [self.jobs[n] for n in names if n in self.jobs]

    def open(self) -> bool:
        """Whether something is left that can still happen."""
        return any(j.state in ("ready", "running", "elsewhere") for j in self.jobs.values())

    def begin(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.state, job.began, job.reason = "running", time.time(), None
            job.members = len(jobs)

    def again(self, job: Job) -> None:
        """Its worker was killed: it waits for another one."""
        job.state, job.reason = "waiting", None

    def finish(self, job: Job, outcome: str, reason: str | None) -> None:
        """A worker's answer. `held` and `stopped` leave the cell undone."""
        if outcome == "done":
            self.finished_here.append((job.seconds, (time.time() - job.began) / job.members))
        if outcome == "held":
            job.retry_at = time.time() + RETRY_SECONDS
        job.state = {"done": "done", "held": "elsewhere", "stopped": "stopped"}.get(
            outcome, "failed"
        )
        job.reason = reason

    def undone(self) -> list[str]:
        """Cells of the selection (and the ancestors they need) that are not done."""
        return [j.name for j in self.jobs.values() if j.state != "done"]

    def complete(self) -> bool:
        return all(self.jobs[n].state == "done" for n in self.selected)

    def seconds_left(self, workers: int, beats: dict[str, dict[str, Any]]) -> float:
        """Time until all is done: what running cells say of themselves, and the plan of the others
        in proportion to how it has held so far."""
        planned = sum(p for p, _ in self.finished_here)
        pace = sum(m for _, m in self.finished_here) / planned if planned > 0 else 1.0
        left, longest = {}, 0.0
        for job in self.jobs.values():
            if job.state in ("done", "failed", "blocked"):
                continue
            seconds = job.seconds * pace
            if job.state == "running":  # of a population, its share
                eta = beats.get(job.name, {}).get("eta_seconds")
                spent = (time.time() - job.began) / job.members
                seconds = max(1.0, seconds - spent) if eta is None else eta / job.members
                longest = max(longest, eta or 0.0)
            left[job.name] = seconds
        parents = {n: j.parents for n, j in self.jobs.items()}
        return max(longest, wall_seconds(left, parents, workers))


def needed(
    study: Study, done: set[str], only: Sequence[str] = (), kept: Collection[str] = ()
) -> set[str]:
    """The cells that `only` (globs; none: all) selects and are neither `done` nor `kept`, with the
    ancestors that they need: of a kept cell there are results and no checkpoints to start from."""
    todo: set[str] = set()
    queue = [cell.name for cell in study.select(only or ["*"]) if cell.name not in kept]
    while queue:
        if (name := queue.pop()) not in todo and name not in done:
            todo.add(name)
            queue += study[name].parents()
    return todo


def forgotten(study: Study, force: Sequence[str]) -> set[str]:
    """The cells that `force` (globs) selects and all that start from them."""
    doomed = {c.name for c in study.select(force)}
    for cell in study.order():
        if doomed & set(cell.parents()):
            doomed.add(cell.name)
    return doomed


def clear(study: Study, folders: dict[str, CellFolder], force: Sequence[str]) -> list[str]:
    """Forgets the cells that `force` (globs) selects and all that start from them.

    Raises:
      ConfigError: a live process holds one of them; then nothing has been cleared.
    """
    doomed = forgotten(study, force)
    _allow_open_files(len(doomed) + 64)
    with ExitStack() as locks:
        # Equal cells share a folder.
        one_each = {folders[name].path: name for name in sorted(doomed)}
        for name in one_each.values():
            folder = folders[name]
            if folder.path.is_dir() and not locks.enter_context(folder.held()):
                raise ConfigError(
                    f"cell {name!r} is being run by another process; nothing was cleared. "
                    "Stop that process first, then use --force again"
                )
        names = [c.name for c in study.order() if c.name in doomed]
        for name in names:  # whoever is killed here leaves none done without its files
            folders[name].unfinish()
        for name in names:
            folders[name].clear()
    return names


def _allow_open_files(count: int) -> None:
    """Raises ConfigError where this process may not have so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    if hard != resource.RLIM_INFINITY and count > hard:
        raise ConfigError(
            f"--force would clear {count - 64:,} cells at once, but a process may open {hard:,} "
            f"files here (ulimit -n); name fewer cells at a time"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
