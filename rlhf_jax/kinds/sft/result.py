"""What a fine-tuning cell measures."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.evals.results import HeldOut
from rlhf_jax.study.results import Headline


@dataclass(frozen=True)
class Tuning:
    """demonstrations: answers that were shown. examples, cut: of records, all that were learned
    from, and those that end with a row."""

    demonstrations: int
    steps: int
    examples: int | None = None
    cut: int | None = None


@dataclass(frozen=True)
class Agreement:
    """A model's verdicts beside the critic's (`rlhf_jax.kinds.feedback.job.agreement`)."""

    n: int
    good: float
    accuracy: float
    majority: float
    ranking: float | None
    ranking_same_prompt: float | None


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How a model that has learned verdicts judges. gain, bias: normalise its log-odds."""

    gain: float
    bias: float
    notes: tuple[str, ...] = ()
    train: Agreement
    heldout: Agreement | None = None


@dataclass(frozen=True)
class SFTResult:
    heldout: HeldOut
    sft: Tuning
    judge: Judge | None = None

    def headline(self) -> Headline:
        return self.heldout.headline()
