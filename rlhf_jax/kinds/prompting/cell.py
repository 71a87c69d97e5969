from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_jax.kinds.task import LANGUAGE_MODELS
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.ranges import (
    Count,
    Range,
    Seed,
)


@dataclass(frozen=True)
class Prompting(Cell):
    """A model's answers to tasks put to it in words, with and without worked examples in front
    (Brown et al. 2020): exact match of greedy completions, and multiple choice."""

    KIND = "prompting"
    PARENTS = {"policy": LANGUAGE_MODELS}
    policy: str = "sft"  # the language model, of any kind
    # MODULE:FUNCTION, (split, n, seed) -> n `rlhf_jax.evals.prompting.Item` of each type and group.
    tasks: str = field(default="", metadata={"outside": "callable"})
    # Worked examples, which are of the training split.
    shots: tuple[Annotated[int, Range(0, 1000)], ...] = (0, 1, 4)
    items: Count = 64  # of each type and group, of the test split
    answer_len: Annotated[int, Range(2, 2**24)] = 8  # tokens of an answer at most, its end included
    template: Literal["plain", "chat"] = "plain"  # Q and A lines, or turns of a conversation
    seed: Seed = 0

    def check(self) -> None:
        if ":" not in self.tasks:
            raise ConfigError(
                f"{self.name}.tasks = {self.tasks!r}; expected MODULE:FUNCTION, which gives the "
                "items"
            )
        if not self.shots or len(set(self.shots)) < len(self.shots):
            raise ConfigError(
                f"{self.name}.shots = {self.shots}; expected different numbers of examples from 0"
            )
