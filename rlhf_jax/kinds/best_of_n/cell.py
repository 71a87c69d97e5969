from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_jax.kinds.task import LANGUAGE_MODELS, REWARDS, TaskConfig
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.ranges import (
    Count,
    Range,
    Seed,
    Temperature,
)


@dataclass(frozen=True)
class BestOfN(Cell):
    """The best of n samples by a reward, for n up to `n`; its best responses are records that an
    SFT cell can learn from (rejection sampling)."""

    KIND = "best_of_n"
    PARENTS = {"policy": LANGUAGE_MODELS, "reward": REWARDS}
    policy: str = "sft"
    # A cell of `REWARDS`, or an import path MODULE:FUNCTION of a callable.
    reward: str = field(default="reward", metadata={"outside": "callable"})
    task: TaskConfig = field(default_factory=TaskConfig)
    split: Literal["train", "validation", "test"] = "test"  # whose prompts
    prompts: Count = 256
    n: Annotated[int, Range(1, 2**20)] = 64  # samples a prompt
    temperature: Temperature = 1.0
    seed: Seed = 0
