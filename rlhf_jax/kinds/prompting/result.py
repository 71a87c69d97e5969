"""What a prompting cell measures."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.study.results import Headline, Interval


@dataclass(frozen=True)
class Rates:
    """Answers to `n` items with so many worked examples (`rlhf_jax.evals.prompting.scored`)."""

    shots: int
    group: str
    n: int
    exact: float
    exact_interval: Interval
    majority: float
    choice: float
    choice_interval: Interval
    chance: float
    margin: float
    margin_interval: Interval


@dataclass(frozen=True)
class OfGroup(Rates):
    """types: how many types of item the group has."""

    types: int


@dataclass(frozen=True)
class OfType(Rates):
    type: str


@dataclass(frozen=True)
class Shown:
    """An item, what the model completed, and the choice that it found most likely."""

    shots: int
    group: str
    type: str
    prompt: str
    text: str
    answer: str
    completion: str
    chosen: str


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts with their answers."""

    mean: float
    longest: int


@dataclass(frozen=True)
class Answered:
    """items: of each type. tokens: by shots. seen: tokens of a row of training."""

    template: str
    items: int
    shots: tuple[int, ...]
    tokens: dict[str, Lengths]
    seen: int
    groups: tuple[OfGroup, ...]
    types: tuple[OfType, ...] = ()
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class PromptingResult:
    prompting: Answered

    def headline(self) -> Headline:
        """Over all groups, with as few worked examples as were asked for."""
        shots = min(self.prompting.shots)
        groups = [g for g in self.prompting.groups if g.shots == shots]
        n = sum(g.n for g in groups)
        share = sum(g.choice * g.n for g in groups) / n
        return Headline(f"right choices, {shots} shots", share, form=".1%", unit=f"of {n:,}")
