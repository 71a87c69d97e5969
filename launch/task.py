"""What a launch and its launcher say to each other: tasks one way, events the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["started", "done", "failed", "stopped", "held", "killed", "died"]


@dataclass(frozen=True)
class Task:
    """What one worker is handed at once: a cell, or the members of a population.

    Attributes:
      after: cells that have to be done before; empty unless the launcher `QUEUES`.
    """

    cells: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """News of a cell.

    Attributes:
      outcome: `started` (of a cell that was queued); a worker's answer; `killed`, its worker was
        ended from outside, and the cell is tried again a few times; `died`, its worker ended by
        itself without an answer.
      log: the last lines of the worker's log, where it was killed or died.
    """

    cell: str
    outcome: Outcome
    reason: str | None = None
    log: str = ""
