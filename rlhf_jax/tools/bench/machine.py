"""The machine that a benchmark ran on, and whether others used it meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.placement.machine import cores
from rlhf_jax.study.runs import cpu_name


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
