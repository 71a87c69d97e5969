"""The graph of a study while it runs: which cells are ready, which wait for what, what is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.graph import Study
from rlhf_jax.study.plan import remaining_paths, wall_seconds
from rlhf_jax.study.populations import populations
from rlhf_jax.study.selection import forgotten, needed

RETRY_SECONDS = 2.0  # between two looks at a cell that another process holds


@dataclass
class Job:
    """A cell in this launch. States: done, ready, queued (at a launcher that waits for the parents
    itself), running (by a worker of ours), elsewhere (held by another process), failed, blocked (by
    an ancestor's failure), waiting, stopped."""

    name: str
    kind: str
    folder: CellFolder
    parents: tuple[str, ...]
    seconds: float  # planned
    state: str = "waiting"
    reason: str | None = None
    began: float = 0.0
    members: int = 1  # cells that run in the same task, itself included
    deaths: int = 0  # workers that were killed in it
    retry_at: float = 0.0  # when to look again at a cell that is held elsewhere
    shown: Any = None  # the row of a done cell, whose results are read once


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
        force: Sequence[str] = (),
    ) -> Graph:
        """The cells that `only` (globs; none: all) selects, with their unfinished ancestors; those
        that `force` would clear are unfinished."""
        selected = {c.name for c in study.select(only or ["*"])}
        there = {n: folders[n] for n in folders.keys() - forgotten(study, force)}
        done = {n for n, f in there.items() if f.done()}
        kept = {n for n, f in there.items() if f.kept()}
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
            if job.state not in ("waiting", "ready", "queued"):
                continue
            states = [self.jobs[p] for p in job.parents if p in self.jobs]
            bad = [p for p in states if p.state in ("failed", "blocked")]
            if bad:
                job.state = "blocked"
                first = bad[0]
                failed = f"parent {first.name} failed"
                job.reason = first.reason if first.state == "blocked" else failed
            elif job.state != "queued" and all(p.state == "done" for p in states):
                job.state = "ready"

    def next_ready(self, ahead: bool = False) -> list[Job]:
        """The ready cell with the longest chain of work after it, with the others of its
        population; none if nothing is ready. A population is not begun while one of it waits for
        its parents. `ahead`: cells whose parents are queued or running are ready too."""
        left = {j.name: j.seconds for j in self.jobs.values() if j.state != "done"}
        paths = remaining_paths(left, {j.name: j.parents for j in self.jobs.values()})
        begun = ("done", "queued", "running") if ahead else ("done",)

        def could(job: Job) -> bool:
            parents = (self.jobs[p].state in begun for p in job.parents if p in self.jobs)
            return job.state == "ready" or (ahead and job.state == "waiting" and all(parents))

        ready = [
            j
            for j in self.jobs.values()
            if could(j) and all(could(k) or k.state != "waiting" for k in self._population(j))
        ]
        first = max(ready, key=lambda j: (paths[j.name], j.name), default=None)
        return [j for j in self._population(first) if could(j)] if first else []

    def _population(self, job: Job) -> list[Job]:
        names = self.together.get(job.name, (job.name,))
        return [self.jobs[n] for n in names if n in self.jobs]

    def undone_parents(self, jobs: Sequence[Job]) -> tuple[str, ...]:
        """Parents of these cells, in this launch, that are not done."""
        names = dict.fromkeys(p for j in jobs for p in j.parents if p in self.jobs)
        return tuple(n for n in names if self.jobs[n].state != "done")

    def named(self, state: str) -> list[str]:
        """The cells in a state."""
        return [j.name for j in self.jobs.values() if j.state == state]

    def open(self) -> bool:
        """Whether something is left that can still happen."""
        return any(
            j.state in ("ready", "queued", "running", "elsewhere") for j in self.jobs.values()
        )

    def begin(self, jobs: Sequence[Job], state: str = "running", members: int = 0) -> None:
        """They run now, or are queued. members: cells of their task (default: these)."""
        for job in jobs:
            job.state, job.began, job.reason = state, time.time(), None
            job.members = members or len(jobs)

    def again(self, job: Job) -> None:
        """Its worker was killed: the cell waits for another one."""
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
