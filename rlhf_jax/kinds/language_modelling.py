"""What cells that predict next tokens have in common."""

from __future__ import annotations

import math
from typing import Any

from rlhf_jax.cost.flops import flops_per_token
from rlhf_jax.model import Axes
from rlhf_jax.objectives import language_modelling
from rlhf_jax.study.config import ModelConfig
from rlhf_jax.train.metrics import Throughput
from rlhf_jax.train.step import Objective


def objective(cfg: ModelConfig, axes: Axes) -> Objective:
    return lambda params, batch: language_modelling(params, batch, cfg, axes)


def metrics_row(cfg: ModelConfig, start: int, batch: int, seq_len: int) -> Any:
    """Lines of metrics.jsonl of a run that goes on from optimizer step `start`."""
    positions = batch * seq_len  # processed a step
    per_token = flops_per_token(cfg, seq_len, "exact")
    throughput = Throughput(per_token)

    def row(metrics: dict[str, float], totals: dict[str, float]) -> dict[str, float]:
        totals["tokens"] = totals.get("tokens", start * positions) + positions
        totals["targets"] = totals.get("targets", 0) + metrics["weight"]
        nats = metrics["loss"] * metrics["weight"]
        return {
            "tokens": totals["tokens"],
            "targets": totals["targets"],
            "flops": totals["tokens"] * per_token,
            "loss": metrics["loss"],
            "bits_per_byte": nats / math.log(2) / max(metrics["bytes"], 1.0),
            "lr": metrics["lr"],
            "grad_norm": metrics["grad_norm"],
            **throughput(positions),
        }

    return row
