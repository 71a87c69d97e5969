"""What a policy-gradient cell measures."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.study.results import Headline, rest


@dataclass(frozen=True)
class LastIteration:
    """The last row of metrics; `metrics` are those that the algorithm adds. diagnoses: what the
    logged iterations show to have gone wrong, by name."""

    step: int
    kl: float
    reward_proxy: float
    reward_gold: float
    entropy: float
    diagnoses: dict[str, str]
    metrics: dict[str, float] = rest()


@dataclass(frozen=True)
class PPOResult:
    ppo: LastIteration

    def headline(self) -> Headline:
        name = f"gold reward of iteration {self.ppo.step}"
        return Headline(name, self.ppo.reward_gold, form=".3f")
