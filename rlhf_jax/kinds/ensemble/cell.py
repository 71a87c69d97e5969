from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlhf_jax.kinds.bases import FromRankings
from rlhf_jax.kinds.ensemble.result import EnsembleResult
from rlhf_jax.study.cell import Cell, Cost
from rlhf_jax.study.config import ConfigError, check_names
from rlhf_jax.study.ranges import Weight

if TYPE_CHECKING:
    from rlhf_jax.study.graph import Study


@dataclass(frozen=True)
class Ensemble(Cell):
    """Several reward models as one: their normalised scores combined (Coste et al. 2023)."""

    KIND = "ensemble"
    RESULT = EnsembleResult
    ROLES = ("reward",)
    PARENTS = {"members": "reward_model"}
    members: tuple[str, ...] = ()
    combine: Literal["mean", "worst", "mean_minus_variance"] = "mean"
    variance_coef: Weight = 1.0

    def check(self) -> None:
        check_names(self.members, f"{self.name}.members", least=2)
        if self.combine != "mean_minus_variance":
            self.unused("variance_coef", "combine = 'mean_minus_variance'")

    def check_in(self, study: Study) -> None:
        for name in self.members:
            if not isinstance(study[name], FromRankings):
                raise ConfigError(
                    f"{self.name}.members: {name!r} is a {study[name].KIND} cell, which learns "
                    f"from no rankings that members could be compared on; expected cells of a kind "
                    f"derived from rlhf_jax.kinds.bases.FromRankings"
                )

    def member_cells(self) -> tuple[str, ...]:
        return self.members

    def row_length(self, study: Study) -> int:
        return study[self.members[0]].row_length(study)

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        from rlhf_jax.cost.formulas import Formulas
        from rlhf_jax.cost.memory import sampling_bytes

        c = Formulas(study, self, accumulate)
        first = study[self.members[0]]
        assert isinstance(first, FromRankings)
        _, heldout_rows, k = first.sizes(study)
        sequences = heldout_rows * k
        flops = sum(map(c.passes, c.rewards(self.name))) * sequences
        memory = sampling_bytes(c.model, 256, c.s, len(self.members))
        return Cost(sequences, flops, 0.0, memory, 0.0)

    def batches(self, study: Study) -> Iterator[tuple[str, int, bool]]:
        for member in self.members:
            yield from study[member].batches(study)

    def scored(self, study: Study) -> Iterator[tuple[str, int, str]]:
        for _, length, of in study[self.members[0]].scored(study):
            yield from ((member, length, of) for member in self.members)

    def remarks(self, study: Study) -> Iterator[str]:
        if same := self.same_runs(study):
            yield f"{self.name}.members: {same}"

    def same_runs(self, study: Study) -> str:
        """Which members are the same run, and what follows; empty: none are."""
        ids = study.run_ids("")
        groups: dict[str, list[str]] = {}
        for member in self.members:
            groups.setdefault(ids[member], []).append(member)
        equal = [", ".join(names) for names in groups.values() if len(names) > 1]
        if not equal:
            return ""
        return (
            f"{' and '.join(equal)} are the same run, equal in all but their names, and always "
            f"agree; for an ensemble give them different seeds, bases or comparisons"
        )
