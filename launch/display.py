"""The display of a launch: a live table of the graph on a terminal, plain lines elsewhere.

Both read the run folders (heartbeat.json, done.json, failed.json).
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.graph import Graph, Job
from rlhf_jax.report.headline import headline
from rlhf_jax.report.terminal import STYLES, duration, number
from rlhf_jax.study.files import Damaged
from rlhf_jax.study.heartbeat import STALE_SECONDS

LINE_SECONDS = 30.0  # between two lines about a running cell
REFRESH_SECONDS = 1.0
QUIET_SECONDS = 120.0  # after that without progress the display says so


@dataclass(frozen=True)
class Row:
    """One cell as shown. detail: its headline result, the reason of a failure, its phase, or what
    it waits for."""

    name: str
    kind: str
    state: str
    step: int | None = None
    steps: int | None = None
    training_loss: float | None = None  # of the last batch, while it runs
    tokens_per_second: float | None = None
    seconds: float | None = None  # left if running, spent if done
    detail: str = ""


def heartbeat(job: Job) -> dict[str, Any]:
    """The heartbeat of the process that runs the cell now; empty if an earlier one wrote it."""
    beat = job.folder.heartbeat()
    return beat if job.state == "elsewhere" or beat.get("time", 0) >= job.began else {}


def row(job: Job, graph: Graph) -> Row:
    """The row of a cell."""
    if job.state == "done":
        if job.shown is None:
            job.shown = _finished(job)
        return job.shown
    if job.state in ("running", "elsewhere"):
        beat = heartbeat(job)
        detail = beat.get("phase") or ("" if beat else "starting")
        if job.state == "elsewhere":
            detail = f"by another process {detail}"
        now = time.time()
        quiet = now - beat.get("progress_time", beat.get("started", now))
        if (silent := now - beat.get("time", now)) > STALE_SECONDS:
            detail += f" (no heartbeat for {duration(silent)})"
        elif quiet > QUIET_SECONDS:
            detail += f" (no progress for {duration(quiet)})"
        return Row(
            job.name,
            job.kind,
            job.state,
            beat.get("step"),
            beat.get("steps"),
            beat.get("loss"),
            beat.get("tokens_per_second"),
            beat.get("eta_seconds"),
            detail.strip(),
        )
    detail = job.reason or ""
    if job.state == "waiting":
        undone = [p for p in job.parents if p in graph.jobs and graph.jobs[p].state != "done"]
        detail = f"for {', '.join(undone)}" if undone else ""
    return Row(job.name, job.kind, job.state, detail=detail)


def _finished(job: Job) -> Row:
    try:
        done, found = job.folder.record() or {}, headline(job.kind, job.folder)
    except Damaged as e:
        return Row(job.name, job.kind, "damaged", detail=str(e))
    state, said = "kept" if "kept" in done else "done", found.text() if found else ""
    return Row(job.name, job.kind, state, seconds=done.get("seconds"), detail=said)


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Shows a message beside the graph."""

    def show(self, graph: Graph, workers: int, last: bool = False) -> None:
        """Shows the graph as it is now. Cheap to call often."""


class Lines(Silent):
    """One line when a cell changes its state, and one every LINE_SECONDS for a running cell."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[str, str | None]] = {}
        self.spoke: dict[str, float] = {}

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def show(self, graph: Graph, workers: int, last: bool = False) -> None:
        first, now = not self.told, time.time()
        for job in graph.jobs.values():
            news = (job.state, job.reason)
            if self.told.get(job.name) == news:
                running = job.state == "running"
                if running and now - self.spoke.get(job.name, now) >= LINE_SECONDS:
                    self.spoke[job.name] = now
                    self.say(f"{job.name}: {self._progress(row(job, graph))}")
                continue
            self.told[job.name] = news
            self.spoke[job.name] = now
            if text := self._news(job, row(job, graph), first):
                self.say(f"{job.name}: {text}")
        if last:
            done = sum(j.state == "done" for j in graph.jobs.values())
            self.say(f"{done} of {len(graph.jobs)} cells done")

    def _progress(self, r: Row) -> str:
        facts = [
            f"step {r.step}/{r.steps}" if r.step is not None else "",
            f"training loss {r.training_loss:.4f}" if r.training_loss is not None else "",
            f"{r.tokens_per_second:,.0f} tokens/s" if r.tokens_per_second else "",
            f"{duration(r.seconds)} left" if r.seconds is not None else "",
            r.detail,
        ]
        return ", ".join(f for f in facts if f) or "running"

    def _news(self, job: Job, r: Row, first: bool) -> str:
        match job.state:
            case "done":
                took = f" in {duration(r.seconds)}" if r.seconds is not None else ""
                said = f", {r.detail}" if r.detail else ""
                if r.state == "damaged":
                    return r.detail
                if first:
                    return "done already" if r.state == "done" else "its results are kept"
                return f"done{took}{said}"
            case "running":
                return "started"
            case "elsewhere":
                return "held by another process; waiting for it"
            case "failed":
                return f"FAILED: {job.reason}"
            case "blocked":
                return f"waiting: {job.reason}"
            case "stopped":
                return "stopped; the next run continues it"
        return ""


class LiveTable(Silent):
    """The graph as a table that is redrawn in place."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title, self.drawn, self.message = title, 0.0, ""
        self.live = Live(console=console, auto_refresh=False, redirect_stdout=False)

    def __enter__(self) -> LiveTable:
        self.live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.live.__exit__(None, None, None)

    def say(self, text: str) -> None:
        self.message, self.drawn = text, 0.0

    def show(self, graph: Graph, workers: int, last: bool = False) -> None:
        if not last and time.time() - self.drawn < REFRESH_SECONDS:
            return
        self.drawn = time.time()
        self.live.update(self._render(graph, workers, last), refresh=True)

    def _render(self, graph: Graph, workers: int, last: bool) -> Group:
        rows = [row(job, graph) for job in graph.jobs.values()]
        room = max(6, self.live.console.height - 7)
        folded: list[str] = []
        for state in ("done", "waiting", "queued", "ready", "blocked"):  # hidden first
            if not last and len(rows) > room:
                if count := sum(r.state == state for r in rows):
                    folded.append(f"{count} {state}")
                rows = [r for r in rows if r.state != state]
        table = Table(title=self.title, title_justify="left", box=None, pad_edge=False)
        for name in ("cell", "kind", "state"):
            table.add_column(name)
        for name in ("step", "training loss", "tokens/s", "time"):
            table.add_column(name, justify="right")
        table.add_column("result", overflow="fold")
        for r in rows:
            step = f"{r.step}/{r.steps}" if r.step is not None and r.steps else number(r.step, "d")
            time_ = duration(r.seconds)
            if time_ and r.state not in ("done", "kept"):
                time_ += " left"
            table.add_row(
                r.name,
                r.kind,
                Text(r.state, style=STYLES[r.state]),
                step,
                number(r.training_loss, ".4f"),
                number(r.tokens_per_second, ",.0f"),
                time_,
                Text(r.detail, style="dim"),
            )
        done = sum(j.state == "done" for j in graph.jobs.values())
        foot = f"{done} of {len(graph.jobs)} cells done"
        if graph.open() and not last:
            beats = {n: heartbeat(j) for n, j in graph.jobs.items() if j.state == "running"}
            foot += f", about {duration(graph.seconds_left(workers, beats))} left"
        if folded:
            foot += f" (not shown: {', '.join(folded)})"
        parts: list[RenderableType] = [table, Text(foot, style="bold")]
        return Group(*parts, Text(self.message, style="yellow")) if self.message else Group(*parts)


def choose(how: str, title: str) -> Silent:
    """`auto` (a table on a terminal, lines elsewhere), `table`, `lines` or `none`."""
    if how == "auto":
        how = "table" if sys.stdout.isatty() else "lines"
    return {"table": lambda: LiveTable(title), "lines": Lines, "none": Silent}[how]()
