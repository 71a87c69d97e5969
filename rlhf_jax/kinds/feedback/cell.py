from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_jax.kinds.bases import Sampled
from rlhf_jax.kinds.feedback.result import FeedbackResult
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.ranges import Real

# That a critique makes at most: the critique, a verdict, a revision, the revision as an answer.
EXAMPLES = 4


@dataclass(frozen=True)
class Feedback(Sampled):
    """Records of a policy's own samples that a simulated labeller has edited, or criticised. A
    compare cell of the same policy, task, k, temperature and seed ranks the same samples."""

    KIND = "feedback"
    RESULT = FeedbackResult
    ROLES = ("comparisons", "records")
    gives: Literal["corrections", "critiques"] = "corrections"
    min_gold: Real = 0.0  # what the labeller scores at least this is good, and is not edited

    def roles(self) -> tuple[str, ...]:
        return (*self.ROLES, "verdicts") if self.gives == "critiques" else self.ROLES

    def check(self) -> None:
        labellers = "rlhf_jax.data.annotators"
        if not self.task.gold.startswith(labellers + ":"):
            raise ConfigError(
                f"{self.name}.task.gold = {self.task.gold!r}; the simulated labeller edits and "
                f"criticises by sentiment, for a gold score of {labellers} alone. Use one, or name "
                f"a file of people's records where it is learned from"
            )

    def most_records(self, role: str) -> int:
        each = EXAMPLES if role == "records" and self.gives == "critiques" else 1
        return self.prompts * self.k * each
