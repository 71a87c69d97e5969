"""What a best-of-n cell measures."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.study.results import Headline, Interval


@dataclass(frozen=True)
class Best:
    """The best of `n` by the proxy, on average. kl: a bound, in nats. gold_gain: over one
    sample."""

    n: int
    kl: float
    proxy: float
    proxy_interval: Interval
    gold: float
    gold_interval: Interval
    gold_gain: float
    gold_gain_interval: Interval


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """curve: of the best of 1, 2, 4, ..., n. gold_by_prompt: a row an n of the curve. distinct:
    share of different samples of a prompt. empty: prompts whose best response has no text."""

    prompts: int
    n: int
    temperature: float
    curve: tuple[Best, ...]
    gold_by_prompt: tuple[tuple[float, ...], ...] = ()
    distinct: float
    length: float
    demonstrations: int
    empty: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BestOfNResult:
    best_of_n: BestOf

    def headline(self) -> Headline:
        best = self.best_of_n.curve[-1]
        name = f"gold gain of the best of {best.n}"
        return Headline(name, best.gold_gain, None, *best.gold_gain_interval, ".3f")
