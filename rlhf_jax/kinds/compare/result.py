"""What a comparison cell has collected."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.study.results import Headline


@dataclass(frozen=True)
class Comparisons:
    """k: completions of each prompt. without_information: prompts whose completions all tie."""

    prompts: int
    k: int
    gold_mean: float
    gold_spread_within_prompt: float
    without_information: int | None = None


@dataclass(frozen=True)
class CompareResult:
    compare: Comparisons

    def headline(self) -> Headline:
        found = self.compare
        return Headline("comparisons", found.prompts, form=",d", unit=f"prompts x {found.k}")
