"""Random inputs of every kind, seeded: what the product makes of them.

    python tests/fuzz.py [--cases 2500] [--seed 0]

Settings of studies, command lines, tables of runs, files of records, sources of text; most are
wrong. Prints how many of each ran, were refused in words, ended in a traceback, took longer than a
minute, or were accepted though they make no sense. Exit code 1 if there is one of the last three.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy, as the command line does

from fuzz_commands import TimeLimit, no_longer_than, outcome, random_commands
from fuzz_files import record_cases, source_cases
from fuzz_studies import BASE, ROUTES, WRONG, with_value
from fuzz_tables import cases as table_cases
from fuzz_tables import problem_of

from rlhf_jax.data.layouts import load
from rlhf_jax.data.sources import documents
from rlhf_jax.study.config import ConfigError

OUTCOMES = ("ran", "refused", "traceback", "hang", "nonsense")
Outcomes = Iterator[tuple[str, str]]  # (one of `OUTCOMES`, what was given and what came)


def tried(call: Callable[[], object], given: str, wrong: bool = False) -> tuple[str, str]:
    """The outcome of a call that refuses by ConfigError."""
    try:
        with no_longer_than(60):
            call()
    except ConfigError:
        return "refused", given
    except TimeLimit:
        return "hang", given
    except BaseException:
        return "traceback", f"{given}\n{traceback.format_exc()}"
    return ("nonsense" if wrong else "ran"), given


def settings(seed: int, n: int, folder: Path) -> Outcomes:
    random = Random(seed)
    for _ in range(n):
        head, dotted, _, _, value = random.choice(WRONG)
        route = random.choice(ROUTES)
        given = f"{head}.{dotted} = {value!r} by {route}"
        yield tried(lambda: with_value(BASE, head, dotted, value, route), given, wrong=True)  # noqa: B023


def commands(seed: int, n: int, folder: Path) -> Outcomes:
    for argv, wrong in random_commands(seed, n, folder):
        code, said = outcome(argv)
        yield judged(code, said, wrong), f"{argv}\n{said[-2000:]}"


def judged(code: int, said: str, wrong: bool) -> str:
    if code == -1:
        return "hang"
    if "Traceback" in said or code not in (0, 1, 2):
        return "traceback"
    if code == 2:
        return "refused"
    return "nonsense" if wrong else "ran"


def tables(seed: int, n: int, folder: Path) -> Outcomes:
    for i, (said, name, data, argv) in enumerate(table_cases(seed, n)):
        path = folder / str(i) / name
        path.parent.mkdir()
        path.write_bytes(data)
        code, printed = outcome(["fit", str(path), *argv])
        verdict = judged(code, printed, wrong=False)
        if verdict in ("ran", "refused") and problem_of(code, printed):
            verdict = "nonsense"
        yield verdict, f"{said}: {argv}\n{printed[-2000:]}"


def records(seed: int, n: int, folder: Path) -> Outcomes:
    for said, name, data in record_cases(seed, n):
        (folder / name).write_bytes(data)
        yield tried(lambda: load(folder / name), said)  # noqa: B023


def sources(seed: int, n: int, folder: Path) -> Outcomes:
    for said, name, data in source_cases(seed, n):
        path = folder / name
        path.write_bytes(data)
        yield tried(lambda: list(documents(str(path), folder, lambda text: None)), said)  # noqa: B023


KINDS = {
    "settings": settings,
    "commands": commands,
    "tables": tables,
    "records": records,
    "sources": sources,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2500, help="in all (default 2500)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    each, bad = math.ceil(args.cases / len(KINDS)), 0
    print(f"{'inputs':10}" + "".join(f"{name:>12}" for name in ("tried", *OUTCOMES)), flush=True)
    for kind, make in KINDS.items():
        counts: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            for verdict, what in make(args.seed, each, Path(folder)):
                counts[verdict] += 1
                if verdict not in ("ran", "refused"):
                    print(f"{kind}: {verdict}: {what}", file=sys.stderr, flush=True)
        numbers = (sum(counts.values()), *(counts[name] for name in OUTCOMES))
        print(f"{kind:10}" + "".join(f"{number:12,}" for number in numbers), flush=True)
        bad += sum(counts[name] for name in OUTCOMES[2:])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
