"""What this machine offers, found out without starting jax."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf_jax.cpu import cores

__all__ = ["accelerator", "cores", "default_workers"]


def accelerator() -> bool:
    """Whether jax will find a GPU or a TPU here: its device files exist and nothing hides them."""
    platforms = os.environ.get("JAX_PLATFORMS", os.environ.get("JAX_PLATFORM_NAME", ""))
    if platforms:
        return not set(platforms.split(",")) <= {"cpu"}
    tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return tpu
    return tpu or any(Path("/dev").glob("nvidia[0-9]*"))


def default_workers() -> int:
    """One process a core; one in all where an accelerator is shared."""
    return 1 if accelerator() else cores()
