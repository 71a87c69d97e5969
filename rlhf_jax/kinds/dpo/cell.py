from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rlhf_jax.kinds.bases import FromRankings
from rlhf_jax.kinds.dpo.result import DPOResult
from rlhf_jax.study.config import OptimConfig
from rlhf_jax.study.ranges import Passes, Positive, Seed, Size

if TYPE_CHECKING:
    from rlhf_jax.cost.formulas import Formulas


@dataclass(frozen=True)
class DPO(FromRankings):
    """Direct preference optimisation from rankings (Rafailov et al. 2023), or IPO (Azar et al.
    2023): the implicit reward beta log(pi / pi_0) takes the place of a reward model's score."""

    KIND = "dpo"
    RESULT = DPOResult
    ROLES = ("language_model",)
    PARENTS = {"policy": "language_model", "comparisons": "comparisons"}
    HELDOUT = True
    policy: str = "sft"  # where it starts, and the reference
    # A cell, or a file of records.
    comparisons: str = field(default="compare", metadata={"outside": "file"})
    loss: Literal["dpo", "ipo"] = "dpo"
    beta: Positive = 0.1
    epochs: Passes = 1
    batch: Size = 16  # prompts
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4, weight_decay=0.0))
    seed: Seed = 0

    def more_flops(self, c: Formulas, completions: int) -> float:
        return c.forward * completions + c.heldout  # the reference's log-probs
