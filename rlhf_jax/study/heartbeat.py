"""Signs of life of a running cell."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_jax.study.files import write_sealed

if TYPE_CHECKING:
    from rlhf_jax.study.folder import CellFolder

STALE_SECONDS = 20.0  # a heartbeat older than this is a dead process's


def alive(beat: dict[str, Any]) -> bool:
    """Whether the process that wrote a heartbeat may be alive."""
    if beat.get("ended"):
        return False
    if beat.get("host") != socket.gethostname():
        return True  # on another machine its heartbeat is all that is known
    pid = beat.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with contextlib.suppress(OSError):  # a zombie: killed, and not yet waited for
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return True


class Heartbeat:
    """Writes heartbeat.json every two seconds from a thread, so that `status` can tell a running
    cell from a dead one, and a stuck one (`progress_time` stands still) from a slow one."""

    def __init__(self, folder: CellFolder, every: float = 2.0) -> None:
        self.folder, self.every = folder, every
        last = folder.heartbeat()
        self.last_session_seconds = last.get("time", 0.0) - last.get("started", 0.0)
        self.beat: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname()}
        self.beat["started"] = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def progress(self, **facts: Any) -> None:
        self.beat = {**self.beat, **facts, "progress_time": time.time()}

    def _run(self) -> None:
        while True:
            self._write()
            if self._stop.wait(self.every):
                return

    def _write(self, **facts: Any) -> None:
        """On a full disk a heartbeat is left out, and the cell goes on."""
        with contextlib.suppress(OSError):
            beat = {**self.beat, "time": time.time(), **facts}
            write_sealed(self.folder.path / "heartbeat.json", beat)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        self._thread.join()
        if self.folder.done():
            (self.folder.path / "heartbeat.json").unlink(missing_ok=True)
        else:  # the process may go on with another cell
            self._write(ended=True)
