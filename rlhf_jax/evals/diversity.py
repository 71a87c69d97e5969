"""How varied a set of responses is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np

MOST = 256  # responses that are compared in pairs


def rows_of(tokens_BR: np.ndarray, mask_BR: np.ndarray) -> list[tuple[int, ...]]:
    """The tokens of each response, EOS included."""
    lengths = mask_BR.sum(-1).astype(int)
    return [tuple(row[:n].tolist()) for row, n in zip(tokens_BR, lengths, strict=True)]


def grams(row: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def distinct_n(tokens_BR: np.ndarray, mask_BR: np.ndarray, n: int) -> float:
    """Distinct n-grams over n-grams in all responses together (Li et al. 2016); NaN without any."""
    found = [gram for row in rows_of(tokens_BR, mask_BR) for gram in grams(row, n)]
    return len(set(found)) / len(found) if found else float("nan")


def distinct_responses(tokens_BR: np.ndarray, mask_BR: np.ndarray) -> float:
    """Share of different responses."""
    return len(set(rows_of(tokens_BR, mask_BR))) / len(tokens_BR)


def self_similarity(tokens_BR: np.ndarray, mask_BR: np.ndarray, n: int = 2) -> float:
    """How much of its n-grams a response shares with another one, the mean over pairs of the first
    `MOST` responses; NaN for fewer than two.

    Of a pair: 2 |A and B| / (|A| + |B|), n-grams counted as often as they occur (Dice 1945). It is
    the pairwise relative of self-BLEU (Zhu et al. 2018) that needs no smoothing for short
    responses. Where neither has an n-gram it is 1 for equal responses and 0 for others.
    """
    rows = rows_of(tokens_BR[:MOST], mask_BR[:MOST])
    bags = [Counter(grams(row, n)) for row in rows]
    found = []
    for i, j in combinations(range(len(rows)), 2):
        size = bags[i].total() + bags[j].total()
        shared = (bags[i] & bags[j]).total()
        found.append(2 * shared / size if size else float(rows[i] == rows[j]))
    return float(np.mean(found)) if found else float("nan")


def similarity_within_prompts(tokens_PSR: np.ndarray, mask_PSR: np.ndarray, n: int = 2) -> float:
    """`self_similarity` of the S responses to the same prompt, the mean over P prompts."""
    each = [self_similarity(t, m, n) for t, m in zip(tokens_PSR, mask_PSR, strict=True)]
    return float(np.mean(each))
