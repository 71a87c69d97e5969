"""What cells that predict next tokens have in common."""

from __future__ import annotations

import math
from typing import Any

from rlhf_jax.cost.flops import flops_per_token
from rlhf_jax.objectives.named import RESERVED
from rlhf_jax.study.config import ModelConfig
from rlhf_jax.train.metrics import Throughput


def metrics_row(cfg: ModelConfig, start: int, batch: int, seq_len: int, nats: bool = True) -> Any:
    """Lines of metrics.jsonl of a run that goes on from optimizer step `start`. `nats`: the loss is
    a token's negative log-likelihood, and has an equivalent in bits per byte."""
    positions = batch * seq_len  # processed a step
    per_token = flops_per_token(cfg, seq_len, "exact")
    throughput = Throughput(per_token)

    def row(metrics: dict[str, float], totals: dict[str, float]) -> dict[str, float]:
        totals["tokens"] = totals.get("tokens", start * positions) + positions
        totals["targets"] = totals.get("targets", 0) + metrics["weight"]
        found = {
            k: v / max(metrics["weight"], 1.0) for k, v in metrics.items() if k not in RESERVED
        }
        if nats:
            bits = metrics["loss"] * metrics["weight"] / math.log(2)
            found["bits_per_byte"] = bits / max(metrics["bytes"], 1.0)
        return {
            "tokens": totals["tokens"],
            "targets": totals["targets"],
            "flops": totals["tokens"] * per_token,
            "loss": metrics["loss"],
            **found,
            "lr": metrics["lr"],
            "grad_norm": metrics["grad_norm"],
            **throughput(positions),
        }

    return row
