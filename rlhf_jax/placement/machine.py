"""What this machine offers, found out without starting jax."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """CPU cores that this process may use: its affinity, and its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, round(int(quota) / int(period))))


def tpu_here() -> bool:
    """Whether this machine has the device files of a TPU."""
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def accelerator() -> bool:
    """Whether jax will find a GPU or a TPU: its device files exist and no setting hides them."""
    platforms = os.environ.get("JAX_PLATFORMS", os.environ.get("JAX_PLATFORM_NAME", ""))
    if platforms:
        return not set(platforms.split(",")) <= {"cpu"}
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return tpu_here()
    return tpu_here() or any(Path("/dev").glob("nvidia[0-9]*"))


def devices() -> int | None:
    """How many GPUs or TPU chips jax will find; None: only a CPU, or no device files to count."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = sum(p.name.removeprefix("nvidia").isdigit() for p in Path("/dev").glob("nvidia*"))
    if gpus and hidden is not None:
        gpus = len([d for d in hidden.split(",") if d.strip() not in ("", "-1")])
    chips = len(list(Path("/dev").glob("accel[0-9]*"))) or len(
        list(Path("/dev/vfio").glob("[0-9]*"))
    )
    return (gpus or chips or None) if accelerator() else None


def default_workers(mesh_devices: int = 1) -> int:
    """One process a core, or one a mesh of cores; one in all where an accelerator is shared."""
    return 1 if accelerator() else max(1, cores() // mesh_devices)
