from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_jax.kinds.bases import Sampled
from rlhf_jax.kinds.compare.result import CompareResult
from rlhf_jax.study.cell import option
from rlhf_jax.study.ranges import Range, Real, Weight

if TYPE_CHECKING:
    from rlhf_jax.kinds.needs import Need
    from rlhf_jax.study.graph import Study


@dataclass(frozen=True)
class Compare(Sampled):
    """K completions of each prompt from a policy, ranked by simulated annotators."""

    KIND = "compare"
    RESULT = CompareResult
    ROLES = ("comparisons", "records")
    k: Annotated[int, Range(2, 9)] = 6  # completions a prompt (2 to 9)
    annotators: Annotated[int, Range(1, 10_000)] = 3
    noise: Weight = 0.2  # of one annotator, in units of the gold score
    disagreement: Weight = option(0.0)  # standard deviation of an annotator's taste for a response
    length_bias: Real = option(0.0)  # gold score that annotators see in one more token

    @property
    def habits(self) -> tuple[float, float, float]:
        return self.noise, self.disagreement, self.length_bias

    def needs(self, study: Study) -> Iterator[Need]:
        from rlhf_jax.kinds.needs import called

        yield from super().needs(study)
        yield from called(study, self, "train", self.prompts)

    def most_records(self, role: str) -> int:
        return self.prompts

    def remarks(self, study: Study) -> Iterator[str]:
        if self.temperature == 0:
            yield (
                f"{self.name}.temperature = 0: the {self.k} completions of a prompt are one text, "
                f"so all tie and no comparison says anything"
            )
