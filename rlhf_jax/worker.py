"""A worker: runs cells, one after the other, as their names come in on standard input. Names that
come on one line are a population's, and are trained together.

    python -m rlhf_jax.worker STUDY.py [--tiny] [--runs DIR] [--threads N] [key=value ...]

For each cell it prints one JSON line {"cell", "outcome", "reason"}; outcome is done, failed,
stopped or held (by another process). It leaves when its input closes; when that happens in the
middle of a cell its launcher is dead, and so is it, at once: the cell resumes from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rlhf_jax.kinds.task import task_of
from rlhf_jax.placement.cpu import without_tpu, worker_environment
from rlhf_jax.placement.mesh import parse_mesh
from rlhf_jax.study import load_study
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import ConfigError, argument, to_json
from rlhf_jax.study.files import Damaged, disk_words, read_json, sweep, write_json, write_sealed
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.messages import shown
from rlhf_jax.study.provenance import provenance
from rlhf_jax.study.ranges import Count
from rlhf_jax.study.results import LEFT_OUT, Mismatch, Untyped, as_json, from_json
from rlhf_jax.study.runs import Runs

if TYPE_CHECKING:
    from rlhf_jax.kinds.context import Context


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.worker")
    parser.add_argument("study")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--threads", type=argument(Count), help="CPU threads of this worker")
    parser.add_argument("--wandb", default="disabled", choices=("disabled", "offline", "online"))
    parser.add_argument("--mesh", default="", help="for instance fsdp=4,tensor=2")
    parser.add_argument(
        "--accumulate", type=argument(Count), default=1, help="micro-batches a step"
    )
    parser.add_argument("--checkpoint-seconds", type=float, default=20.0)
    return parser.parse_intermixed_args(argv)


def run_cell(ctx: Context) -> None:
    """Run one cell in its folder: config and provenance first, results, then done.json."""
    _begin(ctx, 1)
    _finish(ctx, ctx.cell.job_function()(ctx, ctx.cell))


def run_cells(ctxs: list[Context]) -> list[Exception | None]:
    """The same for cells that train together: of each, the reason why it failed, or None. One
    cell's exceptions are raised."""
    if len(ctxs) < 2:
        for ctx in ctxs:
            run_cell(ctx)
        return [None] * len(ctxs)
    for ctx in ctxs:
        _begin(ctx, len(ctxs))
    outcomes = ctxs[0].cell.job_function("run_together")(ctxs)
    for ctx, outcome in zip(ctxs, outcomes, strict=True):
        if not isinstance(outcome, Exception):
            _finish(ctx, outcome)
    return [o if isinstance(o, Exception) else None for o in outcomes]


def _begin(ctx: Context, members: int) -> None:
    path, cell = ctx.folder.path, ctx.cell
    (path / "failed.json").unlink(missing_ok=True)
    config = {"kind": cell.KIND, **to_json(cell)}
    if ctx.study.origin(cell) is not None:
        config["model"] = to_json(ctx.model)
    config |= {"corpus": ctx.corpus.content_hash, "learned_task": to_json(task_of(ctx.study, cell))}
    write_json(path / "config.json", config)
    origin: dict[str, Any] = {"sessions": []}
    try:
        origin = read_json(path / "provenance.json") or origin
    except Damaged as e:
        log(f"{e}; earlier sessions are no longer known, nor the time that they took")
    if origin["sessions"]:
        last = origin["sessions"][-1]
        last["seconds"] = ctx.beat.last_session_seconds / last.get("members", 1)
    session = {**provenance(), "command": " ".join(sys.argv), "members": members}
    write_json(path / "provenance.json", {"sessions": [*origin["sessions"], session]})


def _finish(ctx: Context, result: Any) -> None:
    """Writes the results and done.json. `seconds` of a member of a population is its share."""
    path, files = ctx.folder.path, written(ctx.cell, result)
    if ctx.left_out:
        files = files | {LEFT_OUT: ctx.left_out}
    for name, content in files.items():
        write_json(path / "results" / f"{name}.json", content)
    sessions = read_json(path / "provenance.json")["sessions"]
    spent = sum(s.get("seconds", 0.0) for s in sessions)
    spent += (time.time() - ctx.beat.beat["started"]) / sessions[-1]["members"]
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ctx.folder.finish(finished=finished, seconds=round(spent, 3))


def written(cell: Cell, result: Any) -> dict[str, Any]:
    """What becomes results/NAME.json, by name: the fields of a result that have no default.

    Raises:
        ConfigError: the job has returned something else than its kind's RESULT, or values of other
            types than its fields have.
    """
    expected, job = cell.RESULT or Untyped, f"{cell.name}: its job {cell.job_path()}"
    if not isinstance(result, expected):
        raise ConfigError(f"{job} returned {shown(result)}; expected {expected.__name__}")
    files: dict[str, Any] = as_json(result)
    try:
        from_json(expected, files)
    except Mismatch as e:
        raise ConfigError(f"{job} returned {expected.__name__} with another value: {e}") from None
    return files


class Worker:
    """Loads the study and its corpus once, then runs cells."""

    def __init__(self, args: argparse.Namespace) -> None:
        from rlhf_jax.data.corpus import find
        from rlhf_jax.model.sharding import AXES, make_mesh

        self.study = load_study(args.study, args.tiny, args.overrides, args.runs)
        self.runs = Runs(args.runs)
        corpus = find(self.study.corpus, self.runs.root)
        if corpus is None:
            raise ConfigError("the corpus is not prepared; start through `rlhf-jax run`")
        self.corpus = corpus
        import jax

        from rlhf_jax.placement.cpu import keep_compiled
        from rlhf_jax.train import Runtime

        keep_compiled(self.runs.root / "compiled")
        # A CPU has as many devices as were asked for: one a core for the members of a population,
        # of which other cells use those of the mesh.
        shape = parse_mesh(args.mesh)
        some = jax.default_backend() == "cpu" or "data" in shape
        mesh = make_mesh(shape, jax.devices()[: math.prod(shape.values())] if some else None)
        jax.set_mesh(mesh)
        self.runtime = Runtime(
            mesh, AXES, args.accumulate, args.checkpoint_seconds, wandb=args.wandb, log=log
        )

    def together(self, names: list[str]) -> list[list[str]]:
        """A population trains one after the other where the mesh splits models."""
        shape = self.runtime.mesh.shape
        return [names] if shape["fsdp"] == shape["tensor"] == 1 else [[n] for n in names]

    def run(self, names: Sequence[str]) -> Iterator[tuple[str, str, str | None]]:
        """(cell, outcome, reason) of every cell, as soon as it is known."""
        from rlhf_jax.kinds.context import Context
        from rlhf_jax.train import Stopped

        folders = self.runs.folders(self.study, self.corpus.content_hash)
        with ExitStack() as stack:
            ours = []
            for name in names:
                if not stack.enter_context(folders[name].held()):
                    yield name, "held", f"another process runs {name}"
                elif folders[name].done():
                    yield name, "done", None
                else:
                    _make_ready(folders[name])
                    beat = stack.enter_context(Heartbeat(folders[name]))
                    cell = self.study[name]
                    ctx = Context(self.study, cell, folders, self.corpus, self.runtime, beat)
                    if undone := [p for p in cell.parents() if not folders[p].done()]:
                        yield name, *_failed(ctx, _unready(name, undone, folders))
                    else:
                        ours.append(ctx)
            outcomes: list[tuple[str, str | None]]
            try:
                errors = run_cells(ours)
                outcomes = [
                    _failed(ctx, e) if e else ("done", None)
                    for ctx, e in zip(ours, errors, strict=True)
                ]
            except Stopped as e:
                outcomes = [("stopped", str(e))] * len(ours)
            except Exception as e:
                outcomes = [_failed(ctx, e) for ctx in ours]
        for ctx, (outcome, reason) in zip(ours, outcomes, strict=True):
            yield ctx.cell.name, outcome, reason


def _make_ready(folder: CellFolder) -> None:
    """A cell that is held and has to run: results without checkpoints give way to its own, and what
    killed processes left half written goes."""
    if folder.kept():
        folder.clear()
    folder.unfinish()
    sweep(folder.path)
    sweep(folder.results)


def _unready(name: str, parents: list[str], folders: Mapping[str, CellFolder]) -> Exception:
    kept = [p for p in parents if folders[p].kept()]
    why = f" (of {', '.join(kept)} only results are kept)" if kept else ""
    return ConfigError(
        f"{name} starts from {', '.join(parents)}, not done here{why}; run those first"
    )


def _failed(ctx: Context, error: Exception) -> tuple[str, str]:
    """On a full disk the launcher is told all the same."""
    from rlhf_jax.rl.scores import cause

    error = cause(error)
    reason, trace = f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
    if said := disk_words(error):
        reason = f"{said}. What was saved stays; the same command then goes on from it"
    log(trace)
    failure = {"reason": reason, "traceback": trace, "time": time.time()}
    with contextlib.suppress(OSError):
        write_sealed(ctx.folder.path / "failed.json", failure)
    return "failed", reason


def log(text: str) -> None:
    with contextlib.suppress(OSError):  # a log that has no room stops no cell
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    args = parse()
    try:
        devices = math.prod(parse_mesh(args.mesh).values())
        os.environ.update(worker_environment(args.threads, devices) | without_tpu())
        worker = Worker(args)
    except ConfigError as e:
        sys.exit(f"rlhf-jax: {e}")
    lines: SimpleQueue[str | None] = SimpleQueue()  # whose put a signal handler may call
    busy = threading.Event()

    def stop(*_: Any) -> None:
        worker.runtime.stop.set()
        lines.put(None)

    def read() -> None:
        for line in sys.stdin:
            lines.put(line.strip())
        if busy.is_set():
            os._exit(1)
        lines.put(None)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=read, daemon=True).start()
    while (line := lines.get()) is not None:
        busy.set()
        log(f"{line} starts")
        answers = []
        for names in worker.together(line.split()):
            for name, outcome, reason in worker.run(names):
                log(f"{name} {outcome} {reason or ''}")
                answers.append({"cell": name, "outcome": outcome, "reason": reason})
        busy.clear()  # before the answer: whoever reads it may close our input
        print("\n".join(map(json.dumps, answers)), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main()
