"""Kills a study with SIGKILL at seeded moments, lets it go on each time, and compares the end with an
uninterrupted run, bit for bit.

    python tests/kill_demo.py                                 the demo, ten kills, about 40 minutes
    python tests/kill_demo.py experiments/demo.py --tiny --kills 4

At least one kill falls inside a checkpoint write (seen to be unfinished afterwards), one into PPO and
one into the building of the report; the others fall at random. Compared are every row of
metrics.jsonl and every file in results/, without the fields that measure time. Exit code 0: equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_jax.data.corpus import find
from rlhf_jax.runs import CellFolder, Runs
from rlhf_jax.study import Study, load_study

TIMING = {"tokens_per_second", "mfu", "time", "seconds", "eta_seconds", "finished", "started"}
REPORTING = "Building the report"
MARKER = ".kill-demo"


@dataclass
class Kill:
    moment: str
    after: float  # seconds since this start
    done: int
    running: list[str] = field(default_factory=list)


class Victim:
    """The command in a session of its own, so that all its processes can be found and killed."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log, self.offset, self.began = (
            log,
            log.stat().st_size if log.exists() else 0,
            time.time(),
        )
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def said(self, text: str) -> bool:
        with open(self.log, "rb") as f:
            f.seek(self.offset)
            return text.encode() in f.read()

    def kill(self) -> None:
        """SIGKILL to every process of the session, in one sweep and another for late children."""
        for _ in range(2):
            for pid in self._members():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        while self._members():
            time.sleep(0.01)

    def _members(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
                if int(session) == self.process.pid and state not in "ZX":
                    found.append(int(path.parent.name))
        return found


class Killer:
    """Decides when: `pending` are the moments that must still be hit, `thresholds` the counts of
    finished cells after which the random ones come."""

    def __init__(self, study: Study, folders: dict[str, CellFolder], kills: int, seed: int) -> None:
        self.study, self.folders = study, folders
        self.random = random.Random(seed)
        self.pending = ["checkpoint", "ppo", "report"]
        if not any(c.KIND == "ppo" for c in study.cells):
            self.pending.remove("ppo")
        count = max(0, kills - len(self.pending))
        self.thresholds = sorted(self.random.randrange(len(study.cells) - 1) for _ in range(count))
        self.checkpoint_from = self.random.randrange(len(study.cells) // 2)

    def left(self) -> bool:
        return bool(self.pending or self.thresholds)

    def done(self) -> int:
        return sum(f.done() for f in self.folders.values())

    def running(self) -> dict[str, dict[str, Any]]:
        states = {n: f.state() for n, f in self.folders.items() if not f.done()}
        return {n: s for n, s in states.items() if s["state"] == "running"}

    def unfinished(self) -> list[Path]:
        """Checkpoints that are being written, or whose writer was killed."""
        found = []
        for folder in self.folders.values():
            if folder.done():
                continue
            with contextlib.suppress(OSError):
                for step in os.scandir(folder.checkpoints):
                    whole = os.path.exists(os.path.join(step.path, "_CHECKPOINT_METADATA"))
                    if step.is_dir() and ("tmp" in step.name or not whole):
                        found.append(Path(step.path))
        return found

    def strike(self, victim: Victim) -> Kill | None:
        """Waits for the next moment and kills there. None: the command ended by itself."""
        old = set(self.unfinished())
        delay = self.random.uniform(5.0, 30.0)  # of this start's random or PPO moment
        due = None
        while victim.process.poll() is None:
            now, done = time.time(), self.done()
            watching = "checkpoint" in self.pending and done >= self.checkpoint_from
            if watching and (new := set(self.unfinished()) - old):
                running = self.running()
                victim.kill()
                if any(p.exists() and p in self.unfinished() for p in new):
                    self.pending.remove("checkpoint")
                    name = next(iter(new))
                    return self._kill(f"writing checkpoint {name.parent.parent.name}/{name.name}",
                                      victim, running)  # fmt: skip
                return self._kill("just after a checkpoint", victim, running)
            if "report" in self.pending and victim.said(REPORTING):
                time.sleep(self.random.uniform(0.1, 1.5))
                if victim.process.poll() is None:
                    self.pending.remove("report")
                    return self._kill("building the report", victim, {})
                continue
            if due is None:
                ppo = [n for n in self.running() if self.study[n].KIND == "ppo"]
                if "ppo" in self.pending and ppo:
                    due = ("ppo", now + delay)
                elif self.thresholds and done >= self.thresholds[0]:
                    due = ("random", now + delay)
            elif now >= due[1]:
                running = self.running()
                if due[0] == "ppo" and not any(self.study[n].KIND == "ppo" for n in running):
                    due = None  # over already
                    delay /= 2
                    continue
                self.pending = [p for p in self.pending if p != due[0]]
                if due[0] == "random":
                    self.thresholds.pop(0)
                return self._kill(due[0], victim, running)
            time.sleep(0.002 if watching else 0.2)
        return None

    def _kill(self, moment: str, victim: Victim, running: dict[str, dict[str, Any]]) -> Kill:
        after = time.time() - victim.began
        victim.kill()
        where = [f"{n} {s.get('step', '')}/{s.get('steps', '')}" for n, s in running.items()]
        return Kill(moment, after, self.done(), where)


# --- comparison ------------------------------------------------------------------------------


def science(value: Any) -> Any:
    """JSON without the fields that measure time."""
    if isinstance(value, dict):
        keep = {k: v for k, v in value.items() if k not in TIMING and not k.endswith("_seconds")}
        return {k: science(v) for k, v in keep.items()}
    return [science(v) for v in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """What a file says; floats are compared by all their digits."""
    if path.suffix == ".jsonl":
        return [json.dumps(science(json.loads(x)), sort_keys=True) for x in path.open()]
    if path.suffix == ".json":
        return json.dumps(science(json.loads(path.read_text())), sort_keys=True)
    return path.read_bytes()


def compare(one: CellFolder, other: CellFolder) -> list[str]:
    """How two folders of a cell differ; empty when they do not."""
    if not (one.done() and other.done()):
        return ["not done"]

    def files(folder: CellFolder) -> dict[str, Path]:
        found = [p for p in folder.results.rglob("*") if p.is_file()]
        found += [p for p in [folder.path / "metrics.jsonl"] if p.exists()]
        return {str(p.relative_to(folder.path)): p for p in found}

    ours, theirs = files(one), files(other)
    faults = [f"{name} is in one only" for name in sorted(set(ours) ^ set(theirs))]
    for name in sorted(set(ours) & set(theirs)):
        a, b = content(ours[name]), content(theirs[name])
        if a != b and isinstance(a, list):
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), "the end")
            faults.append(f"{name}: {len(a)} and {len(b)} rows, the first difference at {at}")
        elif a != b:
            faults.append(f"{name} differs")
    return faults


# --- the whole -------------------------------------------------------------------------------


def prepare_roots(reference: Path, killed: Path) -> None:
    """An empty second root that shares the reference's corpus."""
    if killed.exists() and any(killed.iterdir()) and not (killed / MARKER).exists():
        sys.exit(f"{killed} holds something that this script did not make; give another --runs")
    shutil.rmtree(killed, ignore_errors=True)
    killed.mkdir(parents=True)
    (killed / MARKER).touch()
    (killed / "data").symlink_to((reference / "data").resolve())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("study", nargs="?", default="experiments/demo.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/killed"))
    parser.add_argument("--reference", type=Path, default=Path("runs/uninterrupted"),
                        help="a runs root; what is finished there is used as it is")  # fmt: skip
    args = parser.parse_intermixed_args()

    def command(root: Path) -> list[str]:
        return [sys.executable, "-m", "rlhf_jax.cli", "run", args.study, "--runs", str(root),
                "--display", "lines", *(["--tiny"] if args.tiny else []), *args.overrides]  # fmt: skip

    began = time.time()
    print(f"Uninterrupted run in {args.reference} ...", flush=True)
    if (code := subprocess.call(command(args.reference), stdin=subprocess.DEVNULL)) != 0:
        print(f"the uninterrupted run ended with exit code {code}")
        return 1
    print(f"took {time.time() - began:.0f} s", flush=True)
    prepare_roots(args.reference, args.runs)
    study = load_study(args.study, args.tiny, args.overrides)
    corpus = find(study.corpus, args.runs)
    assert corpus is not None
    folders = Runs(args.runs).folders(study, corpus.content_hash)
    killer = Killer(study, folders, args.kills, args.seed)
    kills: list[Kill] = []
    finished: dict[str, str] = {}
    again: set[str] = set()
    log = args.runs / "output.log"

    def note_finished() -> None:
        for name, folder in folders.items():
            if folder.done():
                stamp = (folder.path / "done.json").read_text()
                if finished.setdefault(name, stamp) != stamp:
                    again.add(name)

    code, empty = None, 0
    while killer.left() and empty < 3:
        victim = Victim(command(args.runs), log)
        try:
            kill = killer.strike(victim)
        except BaseException:
            victim.kill()
            raise
        note_finished()
        if kill is None:
            code, empty = victim.process.returncode, empty + 1
            print(f"it ended with exit code {code} before: {', '.join(killer.pending)}", flush=True)
            continue
        kills.append(kill)
        print(f"kill {len(kills)}: {kill.moment}, {kill.after:.1f} s after its start, {kill.done} "
              f"cells done, running: {', '.join(kill.running) or '-'}", flush=True)  # fmt: skip
    print("The last run, to the end ...", flush=True)
    last = Victim(command(args.runs), log)
    try:
        code = last.process.wait()
    except BaseException:
        last.kill()
        raise
    note_finished()
    return verdict(args, study, folders, corpus.content_hash, kills, killer, again, code)


def verdict(
    args: argparse.Namespace,
    study: Study,
    folders: dict[str, CellFolder],
    corpus_hash: str,
    kills: list[Kill],
    killer: Killer,
    again: set[str],
    code: int,
) -> int:
    """Prints the kills and the cells; 0 when all is well."""
    print(f"\n{'kill':>4}  {'after':>7}  {'done':>4}  moment; running")
    for i, k in enumerate(kills, 1):
        print(f"{i:>4}  {k.after:>5.1f} s  {k.done:>4}  {k.moment}; {', '.join(k.running) or '-'}")
    print()
    bad = 0
    uninterrupted = Runs(args.reference).folders(study, corpus_hash)
    for name, folder in folders.items():
        faults = compare(uninterrupted[name], folder)
        if name in again:
            faults.append("was run again after it was done")
        bad += bool(faults)
        print(f"{'FAIL' if faults else 'PASS'}  {name}  {'; '.join(faults)}")
    if not (Runs(args.runs).study(study) / "report.html").exists():
        print("FAIL  no report.html")
        bad += 1
    if killer.pending:
        print(f"FAIL  no kill fell into: {', '.join(killer.pending)}")
    if code != 0:
        print(f"FAIL  the last run ended with exit code {code}; see {args.runs / 'output.log'}")
    ok = not bad and not killer.pending and code == 0
    print(f"\n{'PASS' if ok else 'FAIL'}: {len(kills)} kills, {len(folders) - bad} of {len(folders)} "
          "cells equal to the uninterrupted run, bit for bit")  # fmt: skip
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
