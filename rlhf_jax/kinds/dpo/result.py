"""What a DPO cell measures."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.evals.results import HeldOut, RankingReport
from rlhf_jax.study.results import Headline


@dataclass(frozen=True, kw_only=True)
class Preferences(RankingReport):
    """Of the implicit reward on held-out comparisons; log-probs and log-ratios to the reference are
    means over prompts, in nats a completion."""

    steps: int
    loss: float
    margin: float
    chosen_log_prob: float
    rejected_log_prob: float
    chosen_log_ratio: float
    rejected_log_ratio: float


@dataclass(frozen=True)
class DPOResult:
    dpo: Preferences
    heldout: HeldOut

    def headline(self) -> Headline:
        return self.dpo.headline()
