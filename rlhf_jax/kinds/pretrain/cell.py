from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_jax.study.cell import Cell, option
from rlhf_jax.study.config import ModelConfig, OptimConfig
from rlhf_jax.study.ranges import (
    Seed,
    Size,
    Tokens,
)


@dataclass(frozen=True)
class Pretrain(Cell):
    """Next-token prediction on the corpus. `continues` extends another pretraining cell from its
    last checkpoint (optimizer moments and data position included) to more `tokens`, under a new
    schedule."""

    KIND = "pretrain"
    PARENTS = {"continues": ("pretrain",)}
    model: ModelConfig = field(default_factory=ModelConfig)
    tokens: Tokens = 1_000_000  # tokens processed in all, those of the cell it continues included
    batch: Size = 32  # sequences a step
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: Seed = 0
    continues: str | None = None
    # Only so many of the corpus's, the same ones for every seed.
    unique_tokens: Tokens | None = option(None)
    repeat: bool = False  # more tokens than there are unique ones, on purpose
    # MODULE:FUNCTION, a loss as `rlhf_jax.objectives.named` says; empty: negative log-likelihood.
    objective: str = option("", "callable")
