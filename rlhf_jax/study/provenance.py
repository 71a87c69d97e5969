"""Where results come from."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any


def git(*words: str) -> str | None:
    """What git says of the checkout of this code; None if it is none."""
    here = Path(__file__).parent
    run = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else None


def provenance() -> dict[str, Any]:
    """Where a result came from: commit, dependency versions, hardware, time."""
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    usable = len(affinity(0))
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {p: metadata.version(p) for p in packages},
        "host": socket.gethostname(),
        "hardware": f"{cpu_name()}, {usable} of {os.cpu_count()} cores",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
