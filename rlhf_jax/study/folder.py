"""One cell's folder: what the cell wrote, who holds it, and what state it is in."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import Damaged, read_sealed, write_sealed
from rlhf_jax.study.heartbeat import STALE_SECONDS, alive

DONE, KEPT = "done.json", "kept.json"
WRITTEN = ("config.json", "provenance.json", "metrics.jsonl")  # by a cell, beside results/


@dataclass(frozen=True)
class CellFolder:
    """One cell's folder, which may not exist yet. name: of the cell, for messages."""

    path: Path
    name: str = field(default="", compare=False)
    # done.json as `snapshot` read it.
    _record: dict[str, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # --- what the cell wrote -----------------------------------------------------------------

    def record(self) -> dict[str, Any] | None:
        """done.json, or kept.json (which has a key `kept`); None where there is neither.

        Raises:
          Damaged: it is not what was written.
        """
        if self._record is not None:
            return self._record
        for name in (DONE, KEPT):
            path = self.path / name
            try:
                if (found := read_sealed(path)) is not None:
                    return found
            except Damaged as e:
                raise Damaged(
                    f"{e}; `rlhf-jax run STUDY` finishes {self.cell_name} again, and "
                    f"`rlhf-jax run STUDY --force {self.cell_name}` runs all of it"
                ) from None
        return None

    def snapshot(self) -> CellFolder:
        """This folder with done.json read once, for reading many files. Raises Damaged."""
        return replace(self, _record=self.record())

    def done(self) -> bool:
        """Whether the cell has run: its results and its checkpoints are here."""
        with contextlib.suppress(Damaged):
            record = self.record()
            return record is not None and "kept" not in record
        return False

    def kept(self) -> bool:
        """Whether its results alone are here (`rlhf_jax.study.kept`)."""
        with contextlib.suppress(Damaged):
            return "kept" in (self.record() or {})
        return False

    def finish(self, name: str = DONE, **facts: Any) -> None:
        """Writes done.json (or kept.json), with the digests of all that the cell wrote."""
        files = [self.path / n for n in WRITTEN] + sorted(self.results.rglob("*"))
        digests = {
            f.relative_to(self.path).as_posix(): _digest(f.read_bytes())
            for f in files
            if f.is_file() and not f.name.startswith(".")
        }
        record = {**facts, "digests": digests}
        write_sealed(self.path / name, record)

    def read(self, name: str) -> bytes | None:
        """The content of a file that the cell wrote, by its path in the folder; None if it wrote
        none.

        Raises:
          Damaged: the cell is done, and this is not what it wrote.
        """
        digests = (self.record() or {}).get("digests")
        if digests is not None and name not in digests:
            return None
        try:
            with open(f"{self.path}/{name}", "rb", buffering=0) as f:  # thousands are read
                data = f.readall()
        except FileNotFoundError:
            data = None
        if digests is not None and data is None:
            raise self.damaged(self.path / name, "it is gone")
        if digests is not None and data is not None and _digest(data) != digests[name]:
            raise self.damaged(self.path / name, "its content is not what the cell wrote")
        return data

    def json(self, name: str) -> Any:
        """The same of a JSON file, parsed."""
        if (data := self.read(name)) is None:
            return None
        try:
            return json.loads(data)
        except ValueError as e:
            raise self.damaged(self.path / name, f"it is not JSON ({e})") from None

    def result(self, name: str) -> Any:
        """`results/NAME.json`, or None. Raises Damaged."""
        return self.json(f"results/{name}.json")

    def result_file(self, name: str) -> Path:
        """`results/NAME`, for a reader that takes a path.

        Raises:
          ConfigError: the cell wrote no such file, or (Damaged) it is not what the cell wrote.
        """
        if self.read(f"results/{name}") is None:
            raise ConfigError(f"{self.cell_name} wrote no {self.results / name}")
        return self.results / name

    def result_names(self) -> list[str]:
        """NAME of every `results/NAME.json`."""
        digests = (self.record() or {}).get("digests")
        found = digests or [f"results/{p.name}" for p in self.results.glob("*.json")]
        names = [name.removeprefix("results/") for name in found if name.startswith("results/")]
        return sorted(
            n.removesuffix(".json") for n in names if n.endswith(".json") and "/" not in n
        )

    def last_metrics(self) -> dict[str, Any]:
        """The last row of metrics.jsonl; empty where there is none. Raises Damaged."""
        lines = (self.read("metrics.jsonl") or b"").rsplit(b"\n", 2)
        try:
            return json.loads(lines[-2]) if len(lines) > 1 and lines[-2] else {}
        except ValueError:
            raise self.damaged(self.path / "metrics.jsonl", "its last line is not JSON") from None

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line cut by a crash is left out. Raises Damaged."""
        rows = []
        for number, line in enumerate((self.read("metrics.jsonl") or b"").split(b"\n")[:-1], 1):
            try:
                if line:
                    rows.append(json.loads(line))
            except ValueError:
                path = self.path / "metrics.jsonl"
                raise self.damaged(path, f"line {number} is not JSON") from None
        return rows

    def damaged(self, path: Path, why: str) -> Damaged:
        return Damaged(
            f"{path} is damaged: {why}; run the cell again: rlhf-jax run STUDY --force "
            f"{self.cell_name}"
        )

    @property
    def cell_name(self) -> str:
        """The cell's name in this study, or else in the folder's name."""
        return self.name or self.path.name.rpartition("-")[0] or self.path.name

    # --- who holds it ------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Holds the cell for this process, until the process dies. Yields False where another
        process holds it, or a folder of the same run id under another name."""
        self.path.mkdir(parents=True, exist_ok=True)
        path, end = self.path / "lock", time.monotonic() + 5.0
        while True:
            with open(path, "ab") as f:
                try:
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:  # perhaps `in_use` has it for a moment
                    if self.in_use() or time.monotonic() > end:
                        yield False
                        return
                    time.sleep(0.01)
                    continue
                if _lies_at(f.fileno(), path):  # nobody has replaced the lock file
                    yield not self._has_twin()
                    return

    def in_use(self) -> bool:
        """Whether a live process of this machine holds the cell."""
        try:
            with open(self.path / "lock", "rb") as f:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no lock file, or not readable for this user
            return False
        return False

    def _has_twin(self) -> bool:
        """Whether the run id's work is done, or being done, in a folder of another name."""
        run_id = self.path.name.rpartition("-")[2]
        twins = map(CellFolder, self.path.parent.glob(f"*-{run_id}"))
        return any(t.path != self.path and (t.done() or t.in_use()) for t in twins)

    def heartbeat(self) -> dict[str, Any]:
        """heartbeat.json; empty where it is missing or unreadable."""
        with contextlib.suppress(Damaged, OSError):
            beat = read_sealed(self.path / "heartbeat.json") or {}
            return beat if isinstance(beat.get("time"), int | float) else {}
        return {}

    def state(self) -> dict[str, Any]:
        """`state` (done, kept, running, failed, waiting, or damaged where done.json is) and further
        facts. A cell is running while a process holds its lock; on other hosts, while its heartbeat
        is fresh. `silent_seconds`: the age of a running cell's heartbeat, if it is stale."""
        broken = ""
        try:
            if (record := self.record()) is not None:
                known = {k: v for k, v in record.items() if k != "digests"}
                return {"state": "kept" if "kept" in record else "done", **known}
        except Damaged as e:
            broken = str(e)
        beat = self.heartbeat()
        age = time.time() - beat["time"] if beat else 0.0
        if self.in_use():
            silent = {"silent_seconds": age} if age >= STALE_SECONDS else {}
            return {"state": "running", **({} if beat.get("ended") else beat | silent)}
        if beat and age < STALE_SECONDS and alive(beat):
            return {"state": "running", **beat}
        if broken:
            return {"state": "damaged", "reason": broken}
        try:
            failed = read_sealed(self.path / "failed.json")
        except Damaged as e:
            failed = {"reason": f"{e}; the next run tries the cell again"}
        if failed is not None:
            return {"state": "failed", **failed}
        stopped = {"stopped_at": beat.get("step")} if beat else {}
        return {"state": "waiting", **stopped}

    # --- forgetting --------------------------------------------------------------------------

    def clear(self) -> None:
        """Removes all but the lock file, which we hold (`--force`). done.json goes first, so that a
        process killed here leaves no done cell without its files."""
        self.unfinish()
        for path in list(self.path.iterdir()) if self.path.is_dir() else []:
            if path.name == "lock":
                continue
            if path.is_dir():  # renamed first: it is gone at once, not file by file
                hidden = path.with_name(f".cleared-{path.name.lstrip('.')}-{os.getpid()}")
                path.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def unfinish(self) -> None:
        """Removes done.json and kept.json."""
        for name in (DONE, KEPT):
            (self.path / name).unlink(missing_ok=True)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _lies_at(descriptor: int, path: Path) -> bool:
    """Whether the path still names this open file."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False
