"""The machine that a benchmark ran on, and whether others used it meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rlhf_jax.cpu import cores
from rlhf_jax.runs import cpu_name


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
