from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_jax.kinds.task import LANGUAGE_MODELS, REWARDS, TaskConfig
from rlhf_jax.study.cell import Cell, option
from rlhf_jax.study.ranges import (
    Count,
    Seed,
    Temperature,
)


@dataclass(frozen=True)
class Evaluate(Cell):
    """Two policies side by side on held-out prompts: gold reward, KL, diversity, calibration,
    tax."""

    KIND = "evaluate"
    PARENTS = {"before": LANGUAGE_MODELS, "after": LANGUAGE_MODELS, "reward": REWARDS}
    before: str = "sft"
    after: str = "ppo"
    # A cell of `REWARDS`, or an import path MODULE:FUNCTION of a callable.
    reward: str = field(default="reward", metadata={"outside": "callable"})
    task: TaskConfig = field(default_factory=TaskConfig)
    prompts: Count = 256
    temperature: Temperature = 1.0
    seed: Seed = 0
    # MODULE:FUNCTION, (prompts, responses) -> which of a known distribution's modes each is in.
    modes: str = option("", "callable")
