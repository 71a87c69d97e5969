"""What this machine offers, found out without starting jax."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf_jax.placement.cpu import cores, tpu_here

__all__ = ["accelerator", "cores", "default_workers", "devices"]


def accelerator() -> bool:
    """Whether jax will find a GPU or a TPU here: its device files exist and nothing hides them."""
    platforms = os.environ.get("JAX_PLATFORMS", os.environ.get("JAX_PLATFORM_NAME", ""))
    if platforms:
        return not set(platforms.split(",")) <= {"cpu"}
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return tpu_here()
    return tpu_here() or any(Path("/dev").glob("nvidia[0-9]*"))


def devices() -> int | None:
    """How many GPUs or TPU chips jax will find here; None: a CPU alone, or no device files to
    count."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = sum(p.name.removeprefix("nvidia").isdigit() for p in Path("/dev").glob("nvidia*"))
    if gpus and hidden is not None:
        gpus = len([d for d in hidden.split(",") if d.strip() not in ("", "-1")])
    chips = len(list(Path("/dev").glob("accel[0-9]*"))) or len(
        list(Path("/dev/vfio").glob("[0-9]*"))
    )
    return (gpus or chips or None) if accelerator() else None


def default_workers(mesh_devices: int = 1) -> int:
    """One process a core, or a mesh of them; one in all where an accelerator is shared."""
    return 1 if accelerator() else max(1, cores() // mesh_devices)
