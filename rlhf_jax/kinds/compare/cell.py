from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from rlhf_jax.kinds.task import LANGUAGE_MODELS, TaskConfig
from rlhf_jax.study.cell import Cell, option
from rlhf_jax.study.ranges import (
    Count,
    Range,
    Real,
    Seed,
    Temperature,
    Weight,
)


@dataclass(frozen=True)
class Compare(Cell):
    """K completions of each prompt from a policy, ranked by simulated annotators."""

    KIND = "compare"
    PARENTS = {"policy": LANGUAGE_MODELS}
    policy: str = "sft"
    task: TaskConfig = field(default_factory=TaskConfig)
    prompts: Count = 512
    heldout_prompts: Count = 64
    k: Annotated[int, Range(2, 9)] = 6  # completions a prompt (2 to 9)
    temperature: Temperature = 1.0
    annotators: Annotated[int, Range(1, 10_000)] = 3
    noise: Weight = 0.2  # of one annotator, in units of the gold score
    seed: Seed = 0
    disagreement: Weight = option(0.0)  # standard deviation of an annotator's taste for a response
    length_bias: Real = option(0.0)  # gold score that annotators see in one more token
