"""What measurements give that several kinds of cell share, as parts of their typed results."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.study.results import Headline, Interval, renamed


@dataclass(frozen=True)
class HeldOut:
    """Loss on the study's held-out set. loss: nats per token. stderr: over rows of tokens."""

    loss: float
    stderr: float
    bits_per_byte: float
    bits_per_byte_stderr: float
    tokens: int

    def headline(self) -> Headline:
        return Headline("held-out loss", self.loss, self.stderr, unit="nats a token")


@dataclass(frozen=True)
class Bin:
    """Predictions of similar confidence: their number, mean confidence, and rate of success."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Calibration:
    expected_calibration_error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Reliability(Calibration):
    """Of the most likely next token. confidence, accuracy: means over `n` tokens."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True, kw_only=True)
class BySize:
    """Accuracy on pairs that differ by `low` to `high` in margin or length."""

    low: float = renamed("from")
    high: float = renamed("to")
    n: int
    accuracy: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class ByRanks:
    ranks: int
    n: int
    accuracy: float


@dataclass(frozen=True)
class ByWinner:
    """winner: whether the better completion is the longer, the shorter, or as long."""

    winner: str
    n: int
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class RankingReport:
    """How well scores rank held-out completions (`rlhf_jax.evals.rankings.ranking_report`).

    accuracy: over `n_pairs` untied pairs of `n_prompts` prompts. prompts: that were trained on.
    accuracy_by_margin: by gold margin, where completions have a gold score.
    """

    prompts: int
    accuracy: float
    accuracy_interval: Interval
    n_pairs: int
    n_prompts: int
    baselines: dict[str, float]
    accuracy_by_margin: tuple[BySize, ...] = ()
    accuracy_by_rank_difference: tuple[ByRanks, ...]
    accuracy_by_length: tuple[ByWinner, ...]
    accuracy_by_length_difference: tuple[BySize, ...]
    calibration: Calibration
    notes: tuple[str, ...] = ()

    def headline(self) -> Headline:
        ends = self.accuracy_interval
        return Headline("held-out accuracy", self.accuracy, None, *ends, ".1%")
