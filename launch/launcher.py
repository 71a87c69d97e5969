"""The interface of a launcher. A launcher is one file with one class and one entry point:

    [project.entry-points."rlhf_jax.launchers"]
    NAME = "MODULE:CLASS"

in the pyproject.toml of any installed package. `rlhf-jax run STUDY --launcher NAME --launch
key=value ...` finds it; nothing else has to be edited. The class derives from `Launcher`, sets
`Options` (a frozen dataclass of what `--launch` accepts, each field with a default) and implements
`start`, `poll`, `stop` and `close`; `describe` too, if there is more to show than names of cells.
Its constructor starts nothing. What does not depend on where cells run is written once, in
`launch.loop`: which cells are ready (`launch.graph`), the display, retries, signals, the verdict.

A worker is the same whoever starts it: `Launch.worker(threads)` is its command line. It reads tasks
on stdin, one a line (`Task.cells` separated by spaces), and prints for each cell

    {"cell": NAME, "outcome": "done" | "failed" | "stopped" | "held", "reason": TEXT or null}

On SIGTERM it saves a checkpoint and ends. When its stdin closes it ends after the current task, and
at once in the middle of one. Run folders hold all results, so a launcher may also find out from
them what became of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from launch import loop
from launch.task import Event, Task
from rlhf_jax.placement.launchers import Launch
from rlhf_jax.study.config import Checked

__all__ = ["Event", "Launch", "Launcher", "NoOptions", "Task"]


@dataclass(frozen=True)
class NoOptions(Checked):
    """`Options` of a launcher that has none."""


class Launcher:
    """Starts cells somewhere, reports events, stops.

    Attributes:
      Options: the fields that `--launch key=value` may set; `options` is an instance.
      QUEUES: the place holds a task back until the cells in `Task.after` are done, as a batch
        scheduler does. Then all tasks are started at once, parents first; otherwise a task is
        started when its parents are done.
      workers, threads, accelerator: tasks that run at once, CPU threads of each, and whether they
        run on GPUs or TPUs; for estimates of time.
    """

    Options: ClassVar[type[Checked]] = NoOptions
    QUEUES: ClassVar[bool] = False
    workers = 1
    threads = 1
    accelerator = False

    def __init__(self, launch: Launch, options: Checked) -> None:
        self.launch, self.options = launch, options

    def run(self) -> int:
        """Runs what is not done. Returns 0 when all selected cells are done, 1 when some are not,
        128 + N after signal N. Raises ConfigError before anything is started."""
        return loop.run(self.launch, self)

    def preview(self) -> str:
        """What `run --dry-run` prints below the plan. Starts nothing."""
        return self.describe(loop.tasks(self.launch))

    def describe(self, tasks: Sequence[Task]) -> str:
        """What this launcher would start or submit for these tasks, parents first. `Task.after` is
        filled in whether the launcher `QUEUES` or not."""
        cells = {name for task in tasks for name in task.cells}
        names = [c.name for c in self.launch.study.order() if c.name in cells]
        return f"Would run: {', '.join(names) or 'nothing; all is done'}"

    def room(self, task: Task) -> bool:
        """Whether the task can be started now."""
        return True

    def start(self, task: Task) -> None:
        """Hands the task to a worker, or submits it."""
        raise TypeError(f"{type(self).__name__} defines no start")

    def poll(self, seconds: float) -> list[Event]:
        """The events since the last call; waits up to so many seconds for the first one."""
        raise TypeError(f"{type(self).__name__} defines no poll")

    def stop(self, cells: Sequence[str], now: bool = False) -> None:
        """Asks the workers of these cells to save and end (removes what is queued), or with `now`
        ends them. Their events follow."""
        raise TypeError(f"{type(self).__name__} defines no stop")

    def close(self) -> None:
        """Ends what still runs. No cell is at work any more, or it is to be ended at once."""
