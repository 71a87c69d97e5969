from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_jax.kinds.task import LANGUAGE_MODELS, TaskConfig
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.ranges import (
    Count,
    Real,
    Seed,
    Temperature,
)


@dataclass(frozen=True)
class Feedback(Cell):
    """Records of a policy's own samples that a simulated labeller has edited, or criticised. A
    compare cell of the same policy, task, k, temperature and seed ranks the same samples."""

    KIND = "feedback"
    PARENTS = {"policy": LANGUAGE_MODELS}
    policy: str = "sft"
    task: TaskConfig = field(default_factory=TaskConfig)
    gives: Literal["corrections", "critiques"] = "corrections"
    prompts: Count = 512
    heldout_prompts: Count = 64
    k: Count = 1  # completions a prompt
    temperature: Temperature = 1.0
    min_gold: Real = 0.0  # what the labeller scores at least this is good, and is not edited
    seed: Seed = 0

    def check(self) -> None:
        labellers = "rlhf_jax.data.annotators"
        if not self.task.gold.startswith(labellers + ":"):
            raise ConfigError(
                f"{self.name}.task.gold = {self.task.gold!r}; the simulated labeller edits and "
                f"criticises by sentiment, for a gold score of {labellers} alone. Use one, or name "
                f"a file of people's records where it is learned from"
            )
