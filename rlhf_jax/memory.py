"""Estimates of the memory that a cell takes, in bytes."""

from __future__ import annotations

from rlhf_jax.config import ModelConfig
from rlhf_jax.scaling.flops import param_counts

BASELINE_BYTES = 0.6 * 2**30  # interpreter, runtime and compiled programs of one worker


def training_bytes(model: ModelConfig, batch: int, s: int, trained: int) -> float:
    """Weights, gradients, two Adam moments and one copy in float32; activations kept for the
    backward pass; logits, their softmax and their gradient."""
    params = param_counts(model)["total"]
    rows = batch * s
    layer = rows * (
        8 * model.width + 2 * model.heads * model.C + 2 * model.K * model.C + 3 * model.F
    )
    scores = 2 * batch * model.heads * s * s
    kept = {"none": model.layers, "dots": model.layers, "offload": 1, "full": 1}[model.remat]
    carried = model.layers * rows * model.width
    word = 2 if model.compute == "bfloat16" else 4
    activations = word * (kept * (layer + scores) + carried)
    return 4.0 * 5 * params * trained + activations + 3.0 * 4 * rows * model.vocab


def sampling_bytes(model: ModelConfig, batch: int, s: int, models: int) -> float:
    """Weights, the key-value cache, and one scoring pass over whole rows."""
    cache = 2 * model.layers * batch * s * model.K * model.C
    scored = batch * s * (model.vocab * 2 + 4 * model.width + 2 * model.F)
    return 4.0 * (models * param_counts(model)["total"] + cache + scored)
