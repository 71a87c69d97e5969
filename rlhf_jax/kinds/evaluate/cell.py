from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlhf_jax.kinds.bases import ByReward
from rlhf_jax.kinds.evaluate.result import EvaluateResult
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.cell import option
from rlhf_jax.study.ranges import Count, Seed, Temperature

if TYPE_CHECKING:
    from rlhf_jax.kinds.needs import Need
    from rlhf_jax.study.cell import Cost
    from rlhf_jax.study.graph import Study


@dataclass(frozen=True)
class Evaluate(ByReward):
    """Two policies side by side on held-out prompts: gold reward, KL, diversity, calibration,
    tax."""

    KIND = "evaluate"
    RESULT = EvaluateResult
    PARENTS = {"before": "language_model", "after": "language_model", "reward": "reward"}
    HELDOUT = True
    before: str = "sft"
    after: str = "ppo"
    # A cell, or an import path MODULE:FUNCTION of a callable.
    reward: str = field(default="reward", metadata={"outside": "callable"})
    task: TaskConfig = field(default_factory=TaskConfig)
    prompts: Count = 256
    temperature: Temperature = 1.0
    seed: Seed = 0
    # MODULE:FUNCTION, (prompts, responses) -> which of a known distribution's modes each is in.
    modes: str = option("", "callable")

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        from rlhf_jax.cost.formulas import Formulas

        c = Formulas(study, self, accumulate)
        sequences = 2 * self.prompts
        scored = 2 * c.forward + sum(map(c.passes, c.rewards(self.reward)))
        decode = c.forward * sequences
        flops = decode + scored * sequences + 2 * c.heldout
        return c.sampled(sequences, flops, decode, self.prompts, 3)

    def scored(self, study: Study) -> Iterator[tuple[str, int, str]]:
        yield from super().scored(study)
        for policy in (self.before, self.after):
            yield policy, self.row_length(study), f"prompts and responses of {self.name}.task"

    def splits(self) -> Iterator[str]:
        if not self.task.prompts:
            yield "test"

    def needs(self, study: Study) -> Iterator[Need]:
        from rlhf_jax.kinds.needs import judged

        return judged(study, self, "test", self.prompts)
