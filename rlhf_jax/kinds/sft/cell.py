from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_jax.kinds.task import LANGUAGE_MODELS, TaskConfig
from rlhf_jax.study.cell import Cell, option
from rlhf_jax.study.config import ConfigError, OptimConfig
from rlhf_jax.study.ranges import (
    Count,
    Passes,
    Real,
    Seed,
    Size,
)


@dataclass(frozen=True)
class SFT(Cell):
    """Supervised fine-tuning on demonstrations; the loss is on completions only."""

    KIND = "sft"
    PARENTS = {"base": LANGUAGE_MODELS, "records": ("best_of_n", "compare", "feedback")}
    base: str = "base"
    task: TaskConfig = field(default_factory=TaskConfig)
    examples: Count = 4096
    min_gold: Real = 0.0  # continuations that the labeller scores at least this; of records, all
    epochs: Passes = 1
    batch: Size = 16
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.0))
    seed: Seed = 0
    # Demonstrations, corrections or critiques: a file of records, MODULE:FUNCTION (split, n, seed)
    # -> records, or a cell that wrote them. None: true continuations that the labeller approves of.
    records: str | None = option(None, "records")
    # MODULE:FUNCTION, a loss as `rlhf_jax.objectives.named` says; empty: negative log-likelihood.
    objective: str = option("", "callable")

    def check(self) -> None:
        if self.records is None and self.task.prompts:
            raise ConfigError(
                f"{self.name}.task.prompts = {self.task.prompts!r}, but only openings of the "
                f"corpus's sentences have true continuations to learn from; give records (a file, "
                "MODULE:FUNCTION or a cell)"
            )
