from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from rlhf_jax.kinds.prompting.result import PromptingResult
from rlhf_jax.study.cell import Cell, Cost
from rlhf_jax.study.config import ConfigError, to_json
from rlhf_jax.study.ranges import Count, Range, Seed

if TYPE_CHECKING:
    from rlhf_jax.kinds.needs import Need
    from rlhf_jax.study.graph import Study

TYPES = 20  # types and groups of items that a cell is taken to have


@dataclass(frozen=True)
class Prompting(Cell):
    """A model's answers to tasks put to it in words, with and without worked examples in front
    (Brown et al. 2020): exact match of greedy completions, and multiple choice."""

    KIND = "prompting"
    RESULT = PromptingResult
    PARENTS = {"policy": "language_model"}
    policy: str = "sft"
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

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        from rlhf_jax.cost.formulas import Formulas
        from rlhf_jax.cost.memory import sampling_bytes

        c = Formulas(study, self, accumulate)
        sequences = TYPES * self.items * len(self.shots)
        decode = c.forward * sequences * self.answer_len / c.s
        memory = sampling_bytes(c.model, 256, c.s, 1)
        return Cost(sequences, 2 * c.forward * sequences + decode, decode, memory, 0.0)

    def needs(self, study: Study) -> Iterator[Need]:
        from rlhf_jax.kinds.needs import Need
        from rlhf_jax.kinds.prompting.job import asked

        facts = {k: v for k, v in to_json(self).items() if k not in ("name", "policy", "tasks")}
        most = study.model_of(self).max_positions
        key = ["items", self.tasks, study.outside[self.tasks], facts, most]
        yield Need(key, lambda ctx: list(asked(ctx, self)))
