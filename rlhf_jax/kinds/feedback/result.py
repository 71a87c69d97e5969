"""What a feedback cell has collected."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.study.results import Headline


@dataclass(frozen=True)
class Collected:
    """k: responses to each prompt. good: share of responses of at least `min_gold`."""

    prompts: int
    k: int
    train_records: int
    validation_records: int
    gold_mean: float
    good: float


@dataclass(frozen=True)
class FeedbackResult:
    feedback: Collected

    def headline(self) -> Headline:
        count = self.feedback.train_records + self.feedback.validation_records
        return Headline("feedback", count, form=",d", unit="records")
