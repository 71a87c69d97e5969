"""Mutation testing: puts single faults into a copy of the product, one at a time, and reports which
of them the tests notice.

    python tests/mutants.py [--sample N --seed S] [--only SUBSTRING] [--jobs J]

The faults are in `tests/faults/AREA.json`, lists of {"file", "old", "new", "tests"}: a file of the
product, a text that occurs exactly once in it, what stands there instead, and the tests that should
notice, as pytest names them (the smallest ones, so that a full run stays short). Exit code 0: at
least 95% are noticed.

Outcomes: `noticed`, a named test failed; `survived`, they all passed; `broken`, the fault is no
fair one (tests cannot be collected, or a name is undefined); `timeout`. Only the first counts as
noticed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "tests" / "faults"
AREAS = ("jobs", "rl", "evals", "objectives", "train", "data", "laws", "launch", "report")
COPIED = ("rlhf_jax", "launch", "tests", "experiments", "pyproject.toml", "README.md", "Makefile")
LEAST = 120  # faults in the table
SHARE = 0.95  # of them to be noticed
SECONDS = 240  # of the tests that a fault names
BROKEN = re.compile(
    r"^E +(?:NameError|UnboundLocalError|ImportError|ModuleNotFoundError|SyntaxError)\b", re.M
)


@dataclass(frozen=True)
class Fault:
    """One fault. `area`: the stem of the file of faults that it is listed in."""

    area: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old} -> {new}"

    def applied(self, text: str) -> str:
        """The text of the file with the fault in it.

        Raises:
          ValueError: `old` does not occur exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self}: the old text occurs {count} times, not once")
        return text.replace(self.old, self.new)


def listed(folder: Path = FAULTS) -> list[Fault]:
    """All faults of the table."""
    return [
        Fault(path.stem, row["file"], row["old"], row["new"], tuple(row["tests"]))
        for path in sorted(folder.glob("*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def problems(faults: Sequence[Fault], root: Path = ROOT) -> list[str]:
    """What is wrong with a table: old texts that are not found once, faults that change nothing,
    files that do not compile with the fault in them, tests that do not exist."""
    found = []
    for fault in faults:
        try:
            text = (root / fault.file).read_text(encoding="utf-8")
            changed, python = fault.applied(text), fault.file.endswith(".py")
            if changed == text or (python and ast.dump(ast.parse(changed)) == _meaning(text)):
                found.append(f"{fault}: changes nothing")
        except (OSError, ValueError, SyntaxError) as e:  # SyntaxError: of the changed file
            found.append(str(e) if str(fault) in str(e) else f"{fault}: {e}")
        if not fault.tests:
            found.append(f"{fault}: names no test")
        found += [
            f"{fault}: {test} does not exist" for test in fault.tests if not _exists(root, test)
        ]
    twice = Counter((fault.file, fault.old, fault.new) for fault in faults)
    return found + [f"listed {n} times: {key}" for key, n in twice.items() if n > 1]


@cache
def _meaning(text: str) -> str:
    return ast.dump(ast.parse(text))


@cache
def _functions(path: Path) -> set[str]:
    """Names of the functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {item.name for item in ast.walk(tree) if isinstance(item, ast.FunctionDef)}


def _exists(root: Path, test: str) -> bool:
    path, _, node = test.partition("::")
    if not (root / path).is_file():
        return False
    return not node or node.split("::")[-1].partition("[")[0] in _functions(root / path)


def copy(to: Path) -> Path:
    """A copy of the product and its tests."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "runs", "*.egg-info")
            shutil.copytree(ROOT / name, to / name, ignore=skipped)
        else:
            shutil.copy(ROOT / name, to / name)
    return to


def pytest(
    tree: Path, tests: Sequence[str], seconds: float, *options: str
) -> tuple[int | None, str]:
    """(exit code, output) of tests in a copy; None when they took longer than `seconds`. No
    bytecode is written, so that none of an earlier fault is read."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--timeout={seconds}",
        *options,
        *tests,
    ]
    with subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds + 30)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:  # workers that a test has left behind too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def outcome(code: int | None, output: str) -> str:
    """What an exit code of pytest says of the fault, see the module."""
    if code is None or re.search(r"^E +Failed: Timeout", output, re.M):
        return "timeout"
    if code == 0:
        return "survived"
    return "noticed" if code == 1 and not BROKEN.search(output) else "broken"


def tried(fault: Fault, tree: Path) -> tuple[str, str]:
    """(outcome, the tests' output) of one fault; the copy is as before afterwards."""
    path = tree / fault.file
    text = path.read_text(encoding="utf-8")
    path.write_text(fault.applied(text), encoding="utf-8")
    try:
        code, output = pytest(tree, fault.tests, SECONDS)
    finally:
        path.write_text(text, encoding="utf-8")
    return outcome(code, output), output


def run(faults: Sequence[Fault], jobs: int = 1) -> Counter[str]:
    """Tries every fault and prints what came of it; counts by outcome.

    Raises:
      SystemExit: a named test fails without any fault.
    """
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for _ in range(jobs):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mutants-"))
            trees.put(copy(Path(folder)))
        tests = sorted({test for fault in faults for test in fault.tests})
        tree = trees.get()
        code, output = pytest(tree, tests, max(SECONDS, 20 * len(tests)))
        trees.put(tree)
        if code != 0:
            sys.exit(f"Without any fault the named tests do not pass:\n{output[-4000:]}")

        def one(fault: Fault) -> tuple[Fault, str, str, float]:
            tree, start = trees.get(), time.perf_counter()
            try:
                return fault, *tried(fault, tree), time.perf_counter() - start
            finally:
                trees.put(tree)

        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        stack.callback(pool.shutdown, cancel_futures=True)  # what is left, after Ctrl-C
        for fault, came, output, seconds in pool.map(one, faults):
            counts[came] += 1
            print(f"{came:9}{fault.area:11}{seconds:5.0f} s  {fault}", flush=True)
            if came != "noticed":
                print("".join(f"    | {line}\n" for line in output.splitlines()[-6:]), end="")
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sample", type=int, metavar="N", help="try N faults drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="try faults whose area, file or texts hold this")
    parser.add_argument(
        "--jobs", type=int, default=1, help="faults tried at once, each in its copy"
    )
    given = parser.parse_args(arguments)
    everything = listed()
    faults = [f for f in everything if given.only in f"{f.area}\n{f.file}\n{f.old}\n{f.new}"]
    if given.sample is not None:
        faults = random.Random(given.seed).sample(faults, min(given.sample, len(faults)))
    if not faults:
        parser.error(f"none of {len(everything)} faults holds {given.only!r}")
    if wrong := problems(faults):
        parser.error("\n".join(["the table does not fit the product:", *wrong]))
    counts = run(faults, max(1, given.jobs))
    noticed = counts["noticed"] / len(faults)
    said = ", ".join(f"{n} {name}" for name, n in counts.most_common())
    print(f"{len(faults)} faults: {said}; {noticed:.1%} noticed, {SHARE:.0%} are needed")
    return 0 if noticed >= SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
