"""Simulated labellers: where no person has given feedback, a programme judges. Sentiment (VADER, Hutto &
Gilbert 2014) is the default gold score, and annotators rank with noise."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..config import ConfigError
from .prompts import Prompt


@functools.cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def gold_score(texts: Iterable[str]) -> np.ndarray:
    """VADER's compound sentiment of each response, float64 in [-1, 1]; about 0.1 ms a text."""
    return np.array([_analyzer().polarity_scores(text)["compound"] for text in texts], np.float64)


def sentiment(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """`gold_score` of the responses, as a labeller `(prompts, responses) -> scores`."""
    return gold_score(responses)


def approved(prompts: Iterable[Prompt], threshold: float = 0.0) -> list[Prompt]:
    """The prompts whose true continuation has a `gold_score` of at least `threshold`: what the
    labeller would demonstrate. Trained on with EOS, they teach the model to finish the sentence and
    to stop."""
    prompts = list(prompts)
    scores = gold_score(p.response for p in prompts)
    return [p for p, score in zip(prompts, scores, strict=True) if score >= threshold]


def rank_by_annotators(
    scores: np.ndarray, noise: float, annotators: int, seed: int | Sequence[int]
) -> np.ndarray:
    """Rankings that noisy annotators would give.

    Each annotator draws a ranking from a Plackett-Luce model (Plackett 1975) with utilities
    score / noise, by sorting utilities to which Gumbel noise is added (Yellott 1977). The result
    ranks the responses by their mean rank over the annotators.

    Args:
        scores: (..., K) utilities, higher is better.
        noise: the difference in score that makes the odds of a preference e to 1; 0: no noise.
        annotators: at least 1.
        seed: of the draws.

    Returns:
        (..., K) int64 dense ranks from 1, lower is better; equal mean ranks are ties.
    """
    if noise < 0 or annotators < 1:
        raise ConfigError(f"noise = {noise}, annotators = {annotators}; expected >= 0 and >= 1")
    scores = np.asarray(scores, np.float64)
    gumbel = np.random.default_rng(seed).gumbel(size=(annotators, *scores.shape))
    utilities = scores + noise * gumbel
    better = utilities[..., None, :] > utilities[..., :, None]  # [..., k, j]: j is above k
    total = better.sum(axis=(0, -1))  # mean rank, times annotators, from 0: exact integers
    above = total[..., None, :] < total[..., :, None]
    first = np.tril(total[..., None, :] == total[..., :, None], -1).any(-1)  # a tie seen earlier
    return 1 + (above & ~first[..., None, :]).sum(axis=-1)
