"""A worker process: reads names of cells on stdin (those of a population on one line), answers one
JSON line for each on stdout.

`{"cell": NAME, "outcome": "done" | "failed" | "stopped" | "held", "reason": str | null}`
Everything else that it prints goes to its log. It ends when its stdin closes, so a launcher that is
killed leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rlhf_jax.placement.cpu import worker_environment


class Worker:
    """One process and the thread that listens to it.

    Puts `(self, answer)` into `events` for every answer, and `(self, None)` when it has died.
    Attributes: `cells`, the names it works on; `log`, where its other output goes;
    `slot`, its number among the workers that run at once; `devices` that a CPU is split into.
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

    def stop(self) -> None:
        """Asks it to save its cells and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
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
