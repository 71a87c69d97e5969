"""What an ensemble cell measures."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.evals.results import RankingReport
from rlhf_jax.study.results import Headline


@dataclass(frozen=True, kw_only=True)
class EnsembleReport(RankingReport):
    """members: each one's accuracy. disagreement: standard deviation of the members' scores of a
    completion. unanimous: share of untied pairs that all members rank alike."""

    members: dict[str, float]
    disagreement: float
    unanimous: float


@dataclass(frozen=True)
class EnsembleResult:
    report: EnsembleReport

    def headline(self) -> Headline:
        return self.report.headline()
