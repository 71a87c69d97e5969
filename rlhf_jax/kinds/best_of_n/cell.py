from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from rlhf_jax.kinds.bases import ByReward
from rlhf_jax.kinds.best_of_n.result import BestOfNResult
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.ranges import Count, Range, Seed, Temperature

if TYPE_CHECKING:
    from rlhf_jax.kinds.needs import Need
    from rlhf_jax.study.cell import Cost
    from rlhf_jax.study.graph import Study


@dataclass(frozen=True)
class BestOfN(ByReward):
    """The best of n samples by a reward, for n up to `n`; its best responses are records that an
    SFT cell can learn from (rejection sampling)."""

    KIND = "best_of_n"
    RESULT = BestOfNResult
    ROLES = ("records",)
    PARENTS = {"policy": "language_model", "reward": "reward"}
    policy: str = "sft"
    # A cell, or an import path MODULE:FUNCTION of a callable.
    reward: str = field(default="reward", metadata={"outside": "callable"})
    task: TaskConfig = field(default_factory=TaskConfig)
    split: Literal["train", "validation", "test"] = "test"  # whose prompts
    prompts: Count = 256
    n: Annotated[int, Range(1, 2**20)] = 64  # samples a prompt
    temperature: Temperature = 1.0
    seed: Seed = 0

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        from rlhf_jax.cost.formulas import Formulas

        c = Formulas(study, self, accumulate)
        sequences = self.n * self.prompts
        scored = sum(map(c.passes, c.rewards(self.reward)))
        decode = c.forward * sequences
        return c.sampled(sequences, decode + scored * sequences, decode, self.prompts, 3)

    def splits(self) -> Iterator[str]:
        if not self.task.prompts:
            yield self.split

    def needs(self, study: Study) -> Iterator[Need]:
        from rlhf_jax.kinds.needs import judged

        return judged(study, self, self.split, self.prompts)

    def most_records(self, role: str) -> int:
        return self.prompts

    def remarks(self, study: Study) -> Iterator[str]:
        if self.temperature == 0 and self.n > 1:
            yield (
                f"{self.name}.temperature = 0: the {self.n} samples of a prompt are one text, the "
                f"best of which is no better than any"
            )
