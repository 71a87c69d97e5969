"""Estimates of the memory that a cell takes, in bytes."""

from __future__ import annotations

from pathlib import Path

from rlhf_jax.cost.flops import param_counts
from rlhf_jax.model.parameters import attended
from rlhf_jax.study.config import ModelConfig

BASELINE_BYTES = 0.6 * 2**30  # interpreter, runtime and compiled programs of one worker


def training_bytes(model: ModelConfig, batch: int, s: int, trained: int) -> float:
    """Weights, gradients, two Adam moments and one copy in float32; activations kept for the
    backward pass; logits, their softmax and their gradient."""
    params = param_counts(model)["total"]
    rows = batch * s
    heads, kv_heads = _heads(model)
    layer = rows * (8 * model.width + 2 * heads * model.C + 2 * kv_heads * model.C + 3 * model.F)
    scores = 2 * batch * heads * s * s
    kept = {"none": model.layers, "dots": model.layers, "offload": 1, "full": 1}[model.remat]
    carried = model.layers * rows * model.width
    word = 2 if model.compute == "bfloat16" else 4
    activations = word * (kept * (layer + scores) + carried)
    return 4.0 * 5 * params * trained + activations + 3.0 * 4 * rows * model.vocab


def sampling_bytes(
    model: ModelConfig, batch: int, s: int, models: int, accumulate: int = 1
) -> float:
    """Weights, the key-value cache, and one scoring pass over whole rows, in `accumulate` parts."""
    cache = 2 * model.layers * batch * s * _heads(model)[1] * model.C
    scored = batch / accumulate * s * (model.vocab * 2 + 4 * model.width + 2 * model.F)
    return 4.0 * (models * param_counts(model)["total"] + cache + scored)


def _heads(model: ModelConfig) -> tuple[int, int]:
    """Query and key-value heads; none of an architecture without attention."""
    return (model.heads, model.K) if attended(model) else (0, 0)


def available_bytes() -> float | None:
    """Memory that a process can still get: of the first device, or on a CPU of the host. None:
    unknown."""
    import jax

    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable:")), None)


def written(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
