"""What a reward-model cell measures."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.evals.results import RankingReport
from rlhf_jax.study.results import Headline


@dataclass(frozen=True, kw_only=True)
class RewardReport(RankingReport):
    """gain, bias: bring the score to a scale that all reward models share."""

    gain: float
    bias: float


@dataclass(frozen=True)
class RewardResult:
    report: RewardReport

    def headline(self) -> Headline:
        return self.report.headline()
