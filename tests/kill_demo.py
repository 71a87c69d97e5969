"""Kills a study with SIGKILL at seeded moments, lets it go on each time, and compares the end with
an uninterrupted run, bit for bit.

    python tests/kill_demo.py                                 the demo, ten kills, about 40 minutes
    python tests/kill_demo.py experiments/demo.py --tiny --kills 4

At least one kill falls inside a checkpoint write (seen to be unfinished afterwards), one into PPO
and one into the building of the report; the others fall at random. Compared are every row of
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
from rlhf_jax.study import Study, load_study
from rlhf_jax.study.files import read_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.runs import Runs

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
        self.known: list[int] = []
        self.looked = 0.0
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def said(self, text: str) -> bool:
        with open(self.log, "rb") as f:
            f.seek(self.offset)
            return text.encode() in f.read()

    def look(self) -> None:
        """Remembers its processes, so that a kill loses no time in finding them."""
        if time.time() - self.looked > 0.5:
            self.known, self.looked = self._members(), time.time()

    def kill(self) -> None:
        """SIGKILL to every process of the session: those known at once, then any other."""
        members = self.known or self._members()
        while members:
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            members = self._members()
        self.process.wait()

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
        """Heartbeats of the cells that are being run, or were until a moment ago."""
        beats = {}
        for name, folder in self.folders.items():
            beat = read_json(folder.path / "heartbeat.json") or {"ended": True}
            if not (folder.done() or beat.get("ended") or time.time() - beat["time"] > 5):
                beats[name] = beat
        return beats

    def unfinished(self) -> set[str]:
        """Checkpoints that are being written, or whose writer was killed."""
        found = set()
        for folder in self.folders.values():
            with contextlib.suppress(OSError):
                found |= {e.path for e in os.scandir(folder.checkpoints) if "tmp" in e.name}
        return found

    def strike(self, victim: Victim) -> Kill | None:
        """Waits for the next moment and kills there. None: the command ended by itself."""
        old = self.unfinished()
        delay = self.random.uniform(5.0, 30.0)  # of this start's random or PPO moment
        inside = self.random.uniform(0.0, 0.03)  # of a checkpoint's write, which takes about 0.1 s
        due = None
        while victim.process.poll() is None:
            victim.look()
            done = self.done()
            watching = "checkpoint" in self.pending and done >= self.checkpoint_from
            if watching and (new := self.unfinished() - old):
                time.sleep(inside)
                victim.kill()
                if still := new & self.unfinished():
                    self.pending.remove("checkpoint")
                    path = Path(min(still))
                    return self._kill(
                        f"inside the write of {path.parent.parent.name}/{path.name}", victim
                    )
                return self._kill("just after the write of a checkpoint", victim)
            if "report" in self.pending and victim.said(REPORTING):
                time.sleep(self.random.uniform(0.1, 1.5))
                if victim.process.poll() is not None:
                    break
                self.pending.remove("report")
                return self._kill("building the report", victim)
            if due is None:
                ppo = self._ppo_runs()
                if "ppo" in self.pending and ppo:
                    due = ("ppo", time.time() + delay / 6)
                elif self.thresholds and done >= self.thresholds[0]:
                    due = ("random", time.time() + delay)
            elif time.time() >= due[1]:
                if due[0] == "ppo" and not self._ppo_runs():
                    due, delay = None, delay / 2  # over already
                    continue
                if due[0] == "ppo":
                    self.pending.remove("ppo")
                else:
                    self.thresholds.pop(0)
                return self._kill(due[0], victim)
            time.sleep(0.002 if watching else 0.2)
        return None

    def _ppo_runs(self) -> bool:
        """Whether a PPO cell is at its iterations: one at least has been recorded."""
        running = [n for n in self.running() if self.study[n].KIND == "ppo"]
        return any(self.folders[n].metrics() for n in running)

    def _kill(self, moment: str, victim: Victim) -> Kill:
        after = time.time() - victim.began
        victim.kill()
        where = []
        for name, beat in self.running().items():
            rows = self.folders[name].metrics()
            step = beat.get("step", rows[-1].get("step", "-") if rows else "-")
            where.append(f"{name} at step {step}")
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
    parser.add_argument(
        "--reference",
        type=Path,
        default=Path("runs/uninterrupted"),
        help="a runs root; what is finished there is used as it is",
    )
    args = parser.parse_intermixed_args()

    def command(root: Path) -> list[str]:
        return [
            sys.executable,
            "-m",
            "rlhf_jax.cli",
            "run",
            args.study,
            "--runs",
            str(root),
            "--display",
            "lines",
            *(["--tiny"] if args.tiny else []),
            *args.overrides,
        ]

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

    code, empty = 0, 0
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
        print(
            f"kill {len(kills)}: {kill.moment}, {kill.after:.1f} s after its start, {kill.done} "
            f"cells done, running: {', '.join(kill.running) or '-'}",
            flush=True,
        )
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
    print(
        f"\n{'PASS' if ok else 'FAIL'}: {len(kills)} kills, {len(folders) - bad} of {len(folders)} "
        "cells equal to the uninterrupted run, bit for bit"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
