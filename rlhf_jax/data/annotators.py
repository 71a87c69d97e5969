"""Simulated labellers: where no person has given feedback, a programme judges. Sentiment (VADER,
Hutto & Gilbert 2014) is the default gold score; annotators rank with noise, and edit and criticise
by it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.feedback import Correction, Critique
from rlhf_jax.data.prompts import Prompt
from rlhf_jax.study.config import ConfigError

_WORD = re.compile(r"\w[\w'-]*")


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


REPETITION = 1.5  # what a response made of one word alone loses


def varied_sentiment(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """The same less `REPETITION` times the share of words that occurred before in the response:
    people who like cheer, and do not like to be told `my heart my heart my heart`."""
    words = [[w.lower() for w in _WORD.findall(text)] for text in responses]
    repeated = np.array([1 - len(set(w)) / len(w) if w else 0.0 for w in words])
    return gold_score(responses) - REPETITION * repeated


def approved(
    prompts: Iterable[Prompt],
    threshold: float = 0.0,
    gold: Callable[[Sequence[str], Sequence[str]], Any] = sentiment,
) -> list[Prompt]:
    """The prompts whose true continuation a labeller, (prompts, responses) -> scores, scores at
    least `threshold`: what it would demonstrate. Trained on with EOS, they teach the model to
    finish the sentence and to stop."""
    prompts = list(prompts)
    scores = gold([p.prompt for p in prompts], [p.response for p in prompts])
    return [p for p, score in zip(prompts, scores, strict=True) if score >= threshold]


def rank_by_annotators(
    scores: np.ndarray,
    noise: float,
    annotators: int,
    seed: int | Sequence[int],
    disagreement: float = 0.0,
    bias: np.ndarray | None = None,
    same: np.ndarray | None = None,
) -> np.ndarray:
    """Rankings that noisy annotators would give.

    Each annotator draws a ranking from a Plackett-Luce model (Plackett 1975) with utilities
    (score + bias + taste) / noise, by sorting utilities to which Gumbel noise is added (Yellott
    1977). The result ranks the responses by their mean rank over the annotators.

    Args:
        scores: (..., K) utilities, higher is better.
        noise: the difference in score that makes the odds of a preference e to 1; 0: no noise.
        annotators: at least 1.
        seed: of the draws. Those of the noise do not depend on `disagreement` and `bias`.
        disagreement: standard deviation of the taste that each annotator has for each response.
        bias: (..., K), in units of the scores: what all annotators see that the scores do not, such
            as a preference for length.
        same: (..., K), of each response the first one that is the same text: the two get one
            utility from every annotator, so they tie. None: all are different.

    Returns:
        (..., K) int64 dense ranks from 1, lower is better; equal mean ranks are ties.
    """
    if noise < 0 or annotators < 1 or disagreement < 0:
        raise ConfigError(
            f"noise = {noise}, annotators = {annotators}, disagreement = {disagreement}; expected "
            f">= 0, >= 1 and >= 0"
        )
    scores = np.asarray(scores, np.float64)
    if bias is not None:
        scores = scores + np.asarray(bias, np.float64)
    rng = np.random.default_rng(seed)
    utilities = scores + noise * rng.gumbel(size=(annotators, *scores.shape))
    if disagreement:
        utilities = utilities + disagreement * rng.standard_normal(utilities.shape)
    if same is not None:
        utilities = np.take_along_axis(utilities, np.broadcast_to(same, utilities.shape), axis=-1)
    better = utilities[..., None, :] > utilities[..., :, None]  # [..., k, j]: j is above k
    total = better.sum(axis=(0, -1))  # mean rank, times annotators, from 0: exact integers
    above = total[..., None, :] < total[..., :, None]
    first = np.tril(total[..., None, :] == total[..., :, None], -1).any(-1)  # a tie seen earlier
    return 1 + (above & ~first[..., None, :]).sum(axis=-1)


def charged_words(text: str) -> list[tuple[str, float]]:
    """The words of a text that VADER's lexicon knows, and their valence (-4 to 4), in their
    order."""
    lexicon = _analyzer().lexicon
    words = (m.group() for m in _WORD.finditer(text))
    return [(word, lexicon[word.lower()]) for word in words if word.lower() in lexicon]


def edit(response: str, threshold: float = 0.0) -> str:
    """The response without its most negative words, as many as it takes to reach a `gold_score` of
    `threshold`; a word stays if the score would not rise without it, or if nothing would be
    left."""
    score = gold_score([response])[0]
    words = sorted({w for w in charged_words(response) if w[1] < 0}, key=lambda w: (w[1], w[0]))
    for word, _ in words:
        if score >= threshold:
            break
        shorter = re.sub(rf" ?(?<![\w'-]){re.escape(word)}(?![\w'-])", "", response)
        better = gold_score([shorter])[0]
        if better > score and _WORD.search(shorter):
            response, score = shorter, better
    return response


def correct(prompt: str, response: str, threshold: float = 0.0) -> Correction | None:
    """A simulated labeller's `edit`, or None where there is nothing to correct."""
    edited = edit(response, threshold)
    return None if edited == response else Correction(prompt, response, edited)


def criticise(prompt: str, response: str, threshold: float = 0.0) -> Critique:
    """A simulated labeller's critique: the most negative and the most positive word, the verdict
    `good` for a `gold_score` of at least `threshold`, and the `edit` where it changes something."""
    words = charged_words(response)
    said = []
    for name, sign in (("negative", -1), ("positive", 1)):
        strongest = max(words, key=lambda w: sign * w[1], default=("", 0.0))
        found = sign * strongest[1] > 0
        said.append(f"most {name} word: {strongest[0]}" if found else f"no {name} word")
    good = gold_score([response])[0] >= threshold
    edited = edit(response, threshold)
    text = "; ".join(said).capitalize() + "."
    revision = None if edited == response else edited
    return Critique(prompt, response, text, revision, "good" if good else "bad")
