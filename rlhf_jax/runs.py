"""Run folders: where a cell's work lives, who holds it, and what state it is in.

RUNS/data/...                                   corpora and tokenizers, by content hash
RUNS/cells/<name>-<run_id>/config.json          the cell
                           provenance.json      commit, versions, hardware, when
                           metrics.jsonl        the source of truth
                           checkpoints/ results/
                           checkpoint.json      its last checkpoint, once it has trained
                           heartbeat.json       who runs it, how far it is
                           failed.json          why it stopped, if it did
                           done.json            written last: the cell is done
RUNS/studies/<name>/                            study.json, fits, figures, report.html
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf_jax.config import ConfigError, suggest, to_json
from rlhf_jax.study import Study

STALE_SECONDS = 20.0  # a heartbeat older than this is a dead process's


def write_json(path: Path, data: Any) -> None:
    """Atomic: readers see the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with open(tmp, "w") as f:
        json.dump(to_json(data), f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


def read_json(path: Path) -> Any:
    """The file's JSON, or None where there is no file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class CellFolder:
    """One cell's folder. It may not exist yet."""

    path: Path

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def done(self) -> bool:
        return (self.path / "done.json").exists()

    def result(self, name: str) -> Any:
        """`results/NAME.json`, or None."""
        return read_json(self.results / f"{name}.json")

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line cut by a crash is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_text().split("\n")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines[:-1] if line]

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the cell for this process; yields False where another process holds it already.
        The kernel lets go when the process dies, however it dies."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "lock", "w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def state(self) -> dict[str, Any]:
        """`state` is done, running, failed or waiting, with what is known beside it."""
        if (done := read_json(self.path / "done.json")) is not None:
            return {"state": "done", **done}
        beat = read_json(self.path / "heartbeat.json")
        failed = read_json(self.path / "failed.json")
        if beat is not None and time.time() - beat["time"] < STALE_SECONDS and _alive(beat):
            return {"state": "running", **beat}
        if failed is not None:
            return {"state": "failed", **failed}
        stopped = {"stopped_at": beat.get("step")} if beat else {}
        return {"state": "waiting", **stopped}

    def clear(self) -> None:
        """Forget the cell's work (`--force`)."""
        shutil.rmtree(self.path, ignore_errors=True)


def _alive(beat: dict[str, Any]) -> bool:
    if beat.get("ended"):
        return False
    if beat.get("host") != socket.gethostname():
        return True  # on another machine: a fresh heartbeat is all we can see
    try:
        os.kill(beat["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with contextlib.suppress(OSError):  # a killed process that nobody has waited for yet
        state = Path(f"/proc/{beat['pid']}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return True


class Runs:
    """The root of all run folders.

    Raises:
      ConfigError: checkpoints cannot be written below the root; orbax takes its path for a pattern.
    """

    def __init__(self, root: str | Path = "runs") -> None:
        self.root = Path(root)
        path = str(self.root.absolute())
        if set(path) & set("*?[\\") or path.encode(errors="replace").decode() != path:
            raise ConfigError(
                f"runs folder {path!r}: checkpoints cannot be written below a path that holds one of "
                "* ? [ \\ or what is not UTF-8; name another folder with --runs"
            )

    def cell(self, name: str, run_id: str) -> CellFolder:
        """The folder of a run id; another study may have made it under another name."""
        for path in sorted((self.root / "cells").glob(f"*-{run_id}")):
            return CellFolder(path)
        return CellFolder(self.root / "cells" / f"{name}-{run_id}")

    def study(self, study: Study) -> Path:
        return self.root / "studies" / study.name

    def folders(self, study: Study, corpus_hash: str) -> dict[str, CellFolder]:
        """Cell name -> folder. Cells of equal science share one, named after the first of them."""
        ids = study.run_ids(corpus_hash)
        first: dict[str, str] = {}
        return {
            c.name: self.cell(first.setdefault(ids[c.name], c.name), ids[c.name])
            for c in study.cells
        }


class Heartbeat:
    """Writes heartbeat.json every two seconds from a thread, so that `status` can tell a running
    cell from a dead one, and a stuck one (`progress_time` stands still) from a slow one."""

    def __init__(self, folder: CellFolder, every: float = 2.0) -> None:
        self.folder, self.every = folder, every
        last = read_json(folder.path / "heartbeat.json") or {}
        self.last_session_seconds = last.get("time", 0.0) - last.get("started", 0.0)
        self.beat: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname()}
        self.beat["started"] = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def progress(self, **facts: Any) -> None:
        self.beat = {**self.beat, **facts, "progress_time": time.time()}

    def _run(self) -> None:
        while True:
            write_json(self.folder.path / "heartbeat.json", {**self.beat, "time": time.time()})
            if self._stop.wait(self.every):
                return

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        self._thread.join()
        path = self.folder.path / "heartbeat.json"
        if self.folder.done():
            path.unlink(missing_ok=True)
        else:  # the process may live on, with another cell
            write_json(path, {**self.beat, "time": time.time(), "ended": True})


def provenance() -> dict[str, Any]:
    """Where a result came from: commit, dependency versions, hardware, time."""

    def git(*args: str) -> str | None:
        here = Path(__file__).parent
        run = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=False)
        return run.stdout.strip() if run.returncode == 0 else None

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {p: metadata.version(p) for p in packages},
        "host": socket.gethostname(),
        "hardware": f"{cpu_name()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} of {os.cpu_count()} cores",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_study(study: Study, runs: Runs, corpus_hash: str, command: str) -> Path:
    """`studies/<name>/study.json`: the cells by id, and what to conclude from them."""
    folder, folders = runs.study(study), runs.folders(study, corpus_hash)
    ids = study.run_ids(corpus_hash)
    cells = [
        {
            "name": c.name,
            "kind": c.KIND,
            "run_id": ids[c.name],
            "parents": list(c.parents()),
            "folder": str(folders[c.name].path.relative_to(runs.root)),
        }
        for c in study.cells
    ]
    analyses = [
        to_json(a) | {"cells": [c.name for c in study.select(a.cells)]} for a in study.analyses
    ]
    write_json(
        folder / "study.json",
        {
            "name": study.name,
            "title": study.title or study.name,
            "command": command,
            "corpus": {"hash": corpus_hash, **to_json(study.corpus)},
            "cells": cells,
            "analyses": analyses,
        },
    )
    return folder


def status(study: Study, runs: Runs, corpus_hash: str | None) -> dict[str, Any]:
    """What `rlhf-jax status --json` prints. Before the corpus is prepared no run id is known."""
    if corpus_hash is None:
        rows = [
            {"name": c.name, "kind": c.KIND, "run_id": None, "state": "waiting"}
            for c in study.order()
        ]
        return {"study": study.name, "cells": rows}
    ids, folders = study.run_ids(corpus_hash), runs.folders(study, corpus_hash)
    states: dict[str, str] = {}
    rows = []
    for cell in study.order():
        folder = folders[cell.name]
        row: dict[str, Any] = {
            "name": cell.name,
            "kind": cell.KIND,
            "run_id": ids[cell.name],
            "folder": str(folder.path),
        }
        row |= folder.state()
        if row["state"] == "waiting":
            row["waiting_for"] = [p for p in cell.parents() if states[p] != "done"]
        states[cell.name] = row["state"]
        rows.append(row)
    return {"study": study.name, "cells": rows}


def find_cell(text: str, runs: Runs) -> Path:
    """The folder that RUN names: a path, STUDY/CELL of a study that has been run, or a cell's name.

    Raises:
      ConfigError: none is found, or several cells have the name.
    """
    if (Path(text) / "config.json").is_file():
        return Path(text)
    study, slash, name = text.rpartition("/")
    if slash:
        index = read_json(runs.root / "studies" / study / "study.json")
        for cell in (index or {}).get("cells", []):
            if cell["name"] == name:
                return runs.root / cell["folder"]
    known = {p.parent for p in (runs.root / "cells").glob("*/config.json")}
    matches = sorted(p for p in known if text in (p.name, p.name.rpartition("-")[0]))
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"several cells are named {text!r}: {', '.join(map(str, matches))}")
    names = sorted({p.name.rpartition("-")[0] for p in known})
    raise ConfigError(f"no cell {text!r} in {runs.root}." + (suggest(text, names) if names else
                      " Nothing has been run there; see --runs"))  # fmt: skip
