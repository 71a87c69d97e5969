"""Where metrics go: metrics.jsonl, the source of truth, and Weights & Biases as a sink."""

from __future__ import annotations

import json
import time
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.cost.hardware import peak_of
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import read_json
from rlhf_jax.study.folder import CellFolder


@cache
def peak_flops() -> float:
    """FLOP/s that this process's devices could reach together: the data sheet's for known chips, a
    measured float32 matmul for the rest (CPUs)."""
    peak = peak_of(jax.devices()[0].device_kind)
    return peak * jax.device_count() if peak else matmul_peak(n=768, tries=5)


def matmul_peak(n: int = 2048, tries: int = 8) -> float:
    """FLOP/s of the best of several float32 products of two n x n matrices. Large, so that starting
    the threads and packing the operands do not count; the best, because this is the machine's
    limit."""
    x = jax.random.normal(jax.random.key(0), (n, n), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


class Throughput:
    """tokens/s and MFU, smoothed over about ten calls. The first call tells what its step took,
    compilation included; that is left out of the smoothing."""

    def __init__(self, flops_per_token: float) -> None:
        self.flops_per_token = flops_per_token
        self.last = time.perf_counter()
        self.calls = 0
        self.smooth = 0.0  # seconds a token

    def __call__(self, tokens: float) -> dict[str, float]:
        now = time.perf_counter()
        new = (now - self.last) / tokens
        self.last, self.calls = now, self.calls + 1
        self.smooth = new if self.calls <= 2 else 0.9 * self.smooth + 0.1 * new
        rate = 1 / self.smooth
        return {"tokens_per_second": rate, "mfu": rate * self.flops_per_token / peak_flops()}


class Sink:
    """Appends rows to metrics.jsonl; mirrors them to wandb when asked to."""

    def __init__(self, folder: CellFolder, wandb_mode: str = "disabled") -> None:
        self.folder, self.mode, self.run = folder, wandb_mode, None

    def __enter__(self) -> Sink:
        self.file = open(self.folder.path / "metrics.jsonl", "a")
        if self.mode != "disabled":
            self.run = _start_wandb(self.folder, self.mode)
        return self

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.run is not None:
            self.run.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def __exit__(self, *exc: Any) -> None:
        self.file.close()
        if self.run is not None:
            self.run.finish()


def _start_wandb(folder: CellFolder, mode: Any) -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "--wandb needs the wandb package: pip install 'rlhf-jax[wandb]'"
        ) from None
    name, _, run_id = folder.path.name.rpartition("-")
    return wandb.init(
        project="rlhf-jax",
        id=run_id,
        name=name,
        dir=str(folder.path),
        config=read_json(folder.path / "config.json"),
        mode=mode,
        resume="allow",
        settings=wandb.Settings(silent=True),
    )
