"""Runs cells on this machine, in a few worker processes.

A worker is handed one task after another, so that starting Python is paid once. All results are in
run folders, so the launching process and any worker may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from launch.launcher import Event, Launch, Launcher, Task
from rlhf_jax.placement import machine
from rlhf_jax.placement.cpu import worker_environment
from rlhf_jax.placement.mesh import full_mesh
from rlhf_jax.study.config import Checked
from rlhf_jax.study.ranges import Count

CLOSE_SECONDS, KILL_SECONDS = 10.0, 5.0  # that workers without a task get to end


@dataclass(frozen=True)
class LocalOptions(Checked):
    """Of `--launch`.

    Attributes:
      workers: processes at once (None: one a core, one in all beside an accelerator).
      threads: CPU threads of each (None: cores / workers).
    """

    workers: Count | None = None
    threads: Count | None = None


class Local(Launcher):
    """Up to `workers` processes of this machine."""

    Options = LocalOptions

    def __init__(self, launch: Launch, options: LocalOptions) -> None:
        super().__init__(launch, options)
        devices = math.prod(full_mesh(launch.mesh, machine.devices()).values())
        self.workers = options.workers or machine.default_workers(devices)
        self.threads = options.threads or max(1, machine.cores() // self.workers)
        self.accelerator = machine.accelerator()
        # The devices that a CPU is split into for one cell, and for a population: one a core for
        # its members, unless they lie on a mesh or an accelerator.
        split = launch.mesh or self.accelerator
        self.devices = (devices, devices if split else machine.cores())
        self.command = launch.worker(self.threads)
        self.logs = launch.runs.study(launch.study)
        self.events: SimpleQueue[tuple[Worker, Any]] = SimpleQueue()
        self.processes: list[Worker] = []

    def room(self, task: Task) -> bool:
        return len(self.processes) < self.workers or any(not w.cells for w in self.processes)

    def start(self, task: Task) -> None:
        self._idle(self.devices[len(task.cells) > 1]).give(task.cells)

    def _idle(self, devices: int) -> Worker:
        """A worker without a task. The number of devices is set when a process starts, so a worker
        with another number is replaced."""
        idle = [w for w in self.processes if not w.cells]
        for worker in idle:
            if worker.devices == devices:
                return worker
        if len(self.processes) >= self.workers:
            idle[0].dismiss()
            self.processes.remove(idle[0])
        slot = min(set(range(self.workers)) - {w.slot for w in self.processes})
        log = self.logs / f"worker-{slot}.log"
        worker = Worker(self.command, self.threads, log, self.events, slot, devices)
        self.processes.append(worker)
        return worker

    def poll(self, seconds: float) -> list[Event]:
        found: list[Event] = []
        with contextlib.suppress(Empty):
            answer = self.events.get(timeout=seconds)
            while True:
                found += self._read(*answer)
                answer = self.events.get_nowait()
        return found

    def _read(self, worker: Worker, answer: Any) -> list[Event]:
        if answer is None:
            if worker in self.processes:
                self.processes.remove(worker)
            how, log = "killed" if worker.killed() else "died", worker.last_lines(40)
            return [Event(cell, how, worker.death(), log) for cell in worker.cells]  # type: ignore[arg-type]
        if (cell := answer.get("cell")) not in worker.cells:
            return []
        worker.cells.remove(cell)
        return [Event(cell, answer["outcome"], answer.get("reason"))]

    def stop(self, cells: Sequence[str], now: bool = False) -> None:
        for worker in self.processes:
            if set(worker.cells) & set(cells):
                worker.signal(signal.SIGKILL if now else signal.SIGTERM)

    def close(self) -> None:
        for worker in self.processes:
            worker.dismiss()
        self._wait(CLOSE_SECONDS)
        for worker in self.processes:
            worker.signal(signal.SIGKILL)
        self._wait(KILL_SECONDS)

    def _wait(self, seconds: float) -> None:
        """For all processes to end."""
        end = time.time() + seconds
        while self.processes and time.time() < end:
            self.poll(0.25)


class Worker:
    """One process and the thread that listens to it.

    Puts `(self, answer)` into `events` for every answer, and `(self, None)` when it has died.

    Attributes:
      cells: the names it works on. log: where its other output goes.
      slot: its number among the workers that run at once. devices: that a CPU is split into.
    """

    def __init__(
        self,
        command: Sequence[str],
        threads: int,
        log: Path,
        events: SimpleQueue[Any],
        slot: int,
        devices: int = 1,
    ) -> None:
        self.cells: list[str] = []
        self.log, self.slot, self.devices = log, slot, devices
        self._events = events
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                errors="replace",
                # Only the number of threads may depend on how a study is launched: a CPU matrix
                # product that is split differently is rounded differently.
                env=worker_environment(threads, devices),
                # A terminal's Ctrl-C reaches the launcher alone, which then asks its workers once.
                process_group=0,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            answer = None
            with contextlib.suppress(json.JSONDecodeError):
                answer = json.loads(line)
            if isinstance(answer, dict) and "outcome" in answer:
                self._events.put((self, answer))
            else:
                with open(self.log, "a") as log:
                    log.write(line)
        self.process.wait()
        self._events.put((self, None))

    def give(self, cells: Sequence[str]) -> None:
        """Hands over cells to train together. A worker that has just died reports that through
        `events`."""
        self.cells = list(cells)
        with contextlib.suppress(OSError):
            assert self.process.stdin
            self.process.stdin.write(" ".join(cells) + "\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """No more cells: the worker ends by itself."""
        with contextlib.suppress(OSError):
            assert self.process.stdin
            self.process.stdin.close()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def killed(self) -> bool:
        """Whether a signal ended it, from outside or for what it did."""
        return self.process.returncode is not None and self.process.returncode < 0

    def death(self) -> str:
        """How it died, in words, with the last line of its log."""
        code = self.process.returncode
        if code is not None and code < 0:
            how = f"signal {-code}"
            if -code == signal.SIGKILL:
                how += ": killed from outside, often for lack of memory"
        else:
            how = f"exit code {code}"
        last = self.last_lines(1)
        return f"worker died ({how}); log {self.log}" + (f": {last[:300]}" if last else "")

    def last_lines(self, count: int) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError), open(self.log, "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 20_000))
            lines = f.read().decode(errors="replace").strip().splitlines()
            return "\n".join(lines[-count:]).strip()
        return ""
