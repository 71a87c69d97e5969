from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_jax.kinds.task import LANGUAGE_MODELS
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import OptimConfig
from rlhf_jax.study.ranges import (
    Passes,
    Positive,
    Seed,
    Size,
)


@dataclass(frozen=True)
class DPO(Cell):
    """Direct preference optimisation from rankings (Rafailov et al. 2023), or IPO (Azar et al.
    2023): the implicit reward beta log(pi / pi_0) takes the place of a reward model's score."""

    KIND = "dpo"
    PARENTS = {"policy": LANGUAGE_MODELS, "comparisons": ("compare", "feedback")}
    policy: str = "sft"  # where it starts, and the reference
    # A compare or feedback cell, or a file of records.
    comparisons: str = field(default="compare", metadata={"outside": "file"})
    loss: Literal["dpo", "ipo"] = "dpo"
    beta: Positive = 0.1
    epochs: Passes = 1
    batch: Size = 16  # prompts
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4, weight_decay=0.0))
    seed: Seed = 0

    @property
    def compared(self) -> tuple[str, ...]:
        """As of `Reward`."""
        return (self.comparisons,)
