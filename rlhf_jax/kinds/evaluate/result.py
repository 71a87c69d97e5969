"""What an evaluation cell measures."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_jax.evals.results import Reliability
from rlhf_jax.study.results import Headline, Interval, flat


@dataclass(frozen=True)
class Side:
    """A policy, before or after: means over its responses, and its loss on held-out text."""

    gold: float
    proxy: float
    entropy: float
    distinct_1: float
    distinct_2: float
    similarity: float
    similarity_same_prompt: float
    length: float
    stop_rate: float
    perplexity: float
    bits_per_byte: float
    calibration: Reliability


@dataclass(frozen=True)
class Tax:
    """What the policy has lost on held-out text."""

    nats_per_token: float
    nats_per_token_interval: Interval
    bits_per_byte: float
    bits_per_byte_interval: Interval


@dataclass(frozen=True)
class ModeShares:
    counts: dict[str, int]
    shares: dict[str, float]
    none: float
    kept: int
    entropy: float


@dataclass(frozen=True)
class Modes:
    """Modes of a known distribution (`rlhf_jax.evals.modes.mode_report`)."""

    names: tuple[str, ...]
    before: ModeShares
    after: ModeShares
    total_variation: float


@dataclass(frozen=True)
class Sample:
    prompt: str
    before: str
    after: str
    gold_before: float
    gold_after: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Gains are after less before, on the same prompts. kl: nats a response, of the policy after
    from the one before. gold: side -> score of every prompt. next_words: side -> prompt -> the most
    likely next tokens."""

    n_prompts: int
    temperature: float
    gain: float
    gain_interval: Interval
    gain_at_equal_length: float
    gain_at_equal_length_interval: Interval
    win_rate: float
    win_rate_interval: Interval
    win_rate_length_controlled: float
    win_rate_length_controlled_interval: Interval
    kl: float
    kl_interval: Interval
    before: Side = flat("_before")
    after: Side = flat("_after")
    tax: Tax
    modes: Modes | None = None
    samples: tuple[Sample, ...] = ()
    next_words: dict[str, dict[str, tuple[tuple[str, float], ...]]] = field(default_factory=dict)
    gold: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluateResult:
    evaluation: Evaluation

    def headline(self) -> Headline:
        e = self.evaluation
        return Headline("gain in gold reward", e.gain, None, *e.gain_interval, ".3f")
