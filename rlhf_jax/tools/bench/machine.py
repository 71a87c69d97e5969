"""The machine of a benchmark: programs measured in turns, what other programs took meanwhile, and
what a command uses. No jax here."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.placement.machine import cores
from rlhf_jax.study.provenance import cpu_name

Answer = dict[str, Any]  # of a timed question, with `seconds` and `cpu_seconds`
IDLE_SECONDS = 0.2  # before a turn: idle thread pools stop spinning after some milliseconds
QUIET = 0.05  # others may take this share of the CPU before we warn


def machine() -> dict[str, Any]:
    """The CPU's name and the cores that this process may use."""
    return {"cpu": cpu_name(), "cores": cores()}


def busy_seconds() -> float:
    """CPU time that the whole machine has spent, what a hypervisor took from it included; only
    differences mean anything. 0 where there is no /proc/stat: there nobody is seen."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Use(NamedTuple):
    """What a command used: CPU seconds, user and system, and its peak resident memory; and what it
    printed."""

    cpu_seconds: float
    peak_mib: float
    printed: str


def command_use(argv: Sequence[str]) -> Use:
    """Runs a command.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(argv, stdout=out, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, said):
            file.seek(0)
        if process.returncode:
            reason = said.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(argv)} ended with {process.returncode}: {reason}")
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return Use(used.ru_utime + used.ru_stime, used.ru_maxrss / unit, out.read().decode())


def in_rounds(
    name: str,
    asks: Mapping[str, Callable[[], Answer]],
    rounds: int,
    said: Callable[[Mapping[str, Answer]], str],
    log: Callable[[str], None],
) -> tuple[dict[str, list[Answer]], float]:
    """Every side's answer in every round, and `others`, the share of the machine's CPU time that
    went elsewhere in the meantime. The order turns round each time, so that none always follows the
    same one.

    `said` puts the answers of a round in words, for the log.
    """
    answers: dict[str, list[Answer]] = {side: [] for side in asks}
    elsewhere = wall = 0.0
    for n in range(rounds):
        for side in list(asks)[:: 1 if n % 2 == 0 else -1]:
            time.sleep(IDLE_SECONDS)
            before = busy_seconds()
            answer = asks[side]()
            elsewhere += max(0.0, busy_seconds() - before - answer["cpu_seconds"])
            wall += answer["seconds"]
            answers[side].append(answer)
        latest = {side: a[-1] for side, a in answers.items()}
        log(f"{name}: round {n + 1} of {rounds}{said(latest)}")
    others = elsewhere / (wall * (os.cpu_count() or 1))
    if others > QUIET:
        log(
            f"{name}: other programs took {others:.0%} of the CPU. Measure again on a quiet "
            f"machine: threads that wait by spinning, as torch's do, lose most to that"
        )
    return answers, others
