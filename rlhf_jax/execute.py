"""A worker: runs cells, one after the other, as their names come in on standard input.

    python -m rlhf_jax.execute STUDY.py [--tiny] [--runs DIR] [--threads N] [key=value ...]

After each cell it prints one JSON line {"cell", "outcome", "reason"}; outcome is done, failed, stopped
or held (by another process). It leaves when its input closes; when that happens in the middle of a
cell its launcher is dead, and so is it, at once: the cell resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from rlhf_jax.cpu import worker_environment


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.execute")
    parser.add_argument("study")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--threads", type=int, help="CPU threads of this worker")
    parser.add_argument("--wandb", default="disabled", choices=("disabled", "offline", "online"))
    parser.add_argument("--mesh", default="", help="for instance fsdp=4,tensor=2")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--checkpoint-seconds", type=float, default=20.0)
    return parser.parse_intermixed_args(argv)


def run_cell(ctx: Any) -> None:
    """Run one cell in its folder: config and provenance first, results, then done.json."""
    from rlhf_jax.config import to_json
    from rlhf_jax.jobs.compare import compare
    from rlhf_jax.jobs.evaluate import evaluate
    from rlhf_jax.jobs.language import pretrain, sft
    from rlhf_jax.jobs.ppo import ppo
    from rlhf_jax.jobs.reward import reward
    from rlhf_jax.runs import provenance, read_json, write_json

    jobs: dict[str, Any] = {
        "pretrain": pretrain,
        "sft": sft,
        "compare": compare,
        "reward": reward,
        "ppo": ppo,
        "evaluate": evaluate,
    }
    path, cell, started = ctx.folder.path, ctx.cell, time.time()
    (path / "failed.json").unlink(missing_ok=True)
    config = {"kind": cell.KIND, **to_json(cell), "model": to_json(ctx.model)}
    write_json(path / "config.json", {**config, "corpus": ctx.corpus.content_hash})
    origin = read_json(path / "provenance.json") or {"sessions": []}
    if origin["sessions"]:
        origin["sessions"][-1]["seconds"] = ctx.beat.last_session_seconds
    origin["sessions"].append({**provenance(), "command": " ".join(sys.argv)})
    write_json(path / "provenance.json", origin)
    for name, result in jobs[cell.KIND](ctx, cell).items():
        write_json(path / "results" / f"{name}.json", result)
    spent = sum(s.get("seconds", 0.0) for s in origin["sessions"]) + time.time() - started
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(path / "done.json", {"finished": finished, "seconds": round(spent, 3)})


class Worker:
    """Loads the study and its corpus once, then runs cells."""

    def __init__(self, args: argparse.Namespace) -> None:
        from rlhf_jax.config import ConfigError
        from rlhf_jax.data.corpus import find
        from rlhf_jax.parallel import AXES, make_mesh, parse_mesh
        from rlhf_jax.runs import Runs
        from rlhf_jax.study import load_study

        self.study = load_study(args.study, args.tiny, args.overrides)
        self.runs = Runs(args.runs)
        corpus = find(self.study.corpus, self.runs.root)
        if corpus is None:
            raise ConfigError("the corpus is not prepared; start through `rlhf-jax run`")
        self.corpus = corpus
        import jax

        from rlhf_jax.cpu import keep_compiled
        from rlhf_jax.train import Runtime

        keep_compiled(self.runs.root / "compiled")
        mesh = make_mesh(parse_mesh(args.mesh))
        jax.set_mesh(mesh)
        self.runtime = Runtime(
            mesh, AXES, args.accumulate, args.checkpoint_seconds, wandb=args.wandb, log=log
        )

    def run(self, name: str) -> tuple[str, str | None]:
        from rlhf_jax.jobs.context import Context
        from rlhf_jax.runs import Heartbeat, write_json
        from rlhf_jax.train import Stopped

        folders = self.runs.folders(self.study, self.corpus.content_hash)
        folder = folders[name]
        with folder.held() as ours:
            if not ours:
                return "held", f"another process runs {name}"
            if folder.done():
                return "done", None
            with Heartbeat(folder) as beat:
                cell = self.study[name]
                ctx = Context(self.study, cell, folders, self.corpus, self.runtime, beat)
                try:
                    run_cell(ctx)
                except Stopped as e:
                    return "stopped", str(e)
                except Exception as e:
                    reason = f"{type(e).__name__}: {e}"
                    log(traceback.format_exc())
                    failure = {"reason": reason, "traceback": traceback.format_exc()}
                    write_json(folder.path / "failed.json", {**failure, "time": time.time()})
                    return "failed", reason
        return "done", None


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    args = parse()
    os.environ.update(worker_environment(args.threads))
    worker = Worker(args)
    names: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()

    def stop(*_: Any) -> None:
        worker.runtime.stop.set()
        names.put(None)

    def read() -> None:
        for line in sys.stdin:
            names.put(line.strip())
        if busy.is_set():
            os._exit(1)
        names.put(None)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=read, daemon=True).start()
    while (name := names.get()) is not None:
        busy.set()
        log(f"{name} starts")
        outcome, reason = worker.run(name)
        log(f"{name} {outcome} {reason or ''}")
        busy.clear()  # before the answer: whoever reads it may close our input
        print(json.dumps({"cell": name, "outcome": outcome, "reason": reason}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main()
