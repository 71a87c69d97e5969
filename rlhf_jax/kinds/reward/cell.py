from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_jax.kinds.task import LANGUAGE_MODELS
from rlhf_jax.study.cell import Cell, option
from rlhf_jax.study.config import OptimConfig, check_names
from rlhf_jax.study.ranges import (
    Count,
    Passes,
    Seed,
    Size,
    Weight,
)


@dataclass(frozen=True)
class Reward(Cell):
    """A reward model from rankings: the K-wise loss of InstructGPT, one prompt an element."""

    KIND = "reward"
    PARENTS = {
        "base": LANGUAGE_MODELS,
        "comparisons": ("compare", "feedback"),
        "earlier": ("compare", "feedback"),
    }
    base: str = "sft"  # whose trunk it starts from; of any size
    # A compare or feedback cell, or a file of records.
    comparisons: str = field(default="compare", metadata={"outside": "file"})
    epochs: Passes = 1
    batch: Size = 16  # prompts
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.0))
    seed: Seed = 0
    earlier: tuple[str, ...] = option((), "file")  # of earlier rounds, learned from as well
    prompts: Count | None = option(None)  # only so many training prompts, the first; None: all
    # All pairs of a ranking (with K = 2 Bradley-Terry), the ranking as a whole, or its best alone.
    loss: Literal["kwise", "plackett_luce", "best_of_n"] = option("kwise")
    margin: Weight = option(0.0)  # kwise: score asked of a pair for each rank between them
    centre: Weight = option(0.0)  # of the squared sum of a pair's scores, which pulls them to 0
    # Afterwards the score has mean 0 and variance 1 on the compared samples (Ziegler 2019), or is 0
    # on average on true continuations (Stiennon 2020, InstructGPT).
    normalise: Literal["samples", "demonstrations"] = option("samples")

    @property
    def compared(self) -> tuple[str, ...]:
        """The cells and files whose comparisons it learns from."""
        return (self.comparisons, *self.earlier)

    def check(self) -> None:
        check_names(self.compared, f"{self.name}.comparisons and earlier")
        if self.loss != "kwise":
            self.unused("margin", "loss = 'kwise'")
