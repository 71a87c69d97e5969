from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import check_names
from rlhf_jax.study.ranges import (
    Weight,
)


@dataclass(frozen=True)
class Ensemble(Cell):
    """Several reward models as one: their normalised scores combined (Coste et al. 2023)."""

    KIND = "ensemble"
    PARENTS = {"members": ("reward",)}
    members: tuple[str, ...] = ()
    combine: Literal["mean", "worst", "mean_minus_variance"] = "mean"
    variance_coef: Weight = 1.0

    def check(self) -> None:
        check_names(self.members, f"{self.name}.members", least=2)
        if self.combine != "mean_minus_variance":
            self.unused("variance_coef", "combine = 'mean_minus_variance'")
