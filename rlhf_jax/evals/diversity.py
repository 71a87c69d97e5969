"""How varied a set of responses is."""

from __future__ import annotations

import numpy as np


def distinct_n(tokens_BR: np.ndarray, mask_BR: np.ndarray, n: int) -> float:
    """Distinct n-grams over n-grams in all responses together (Li et al. 2016); NaN without any."""
    grams = [
        tuple(row[i : i + n])
        for row, length in zip(tokens_BR, mask_BR.sum(-1).astype(int), strict=True)
        for i in range(length - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else float("nan")
