"""What a pretraining cell measures."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.evals.results import HeldOut
from rlhf_jax.study.results import Headline


@dataclass(frozen=True)
class PretrainHeldOut(HeldOut):
    """Held-out loss and what it cost. param_counts: by part. flops: by convention."""

    params: int
    param_counts: dict[str, float]
    train_tokens: int
    batch_tokens: int
    flops: dict[str, float]


@dataclass(frozen=True)
class PretrainResult:
    heldout: PretrainHeldOut

    def headline(self) -> Headline:
        return self.heldout.headline()
