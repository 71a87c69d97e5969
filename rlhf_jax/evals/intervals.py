"""Intervals for paired comparisons."""

from __future__ import annotations

import numpy as np


def paired_interval(
    differences: np.ndarray, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Mean of paired differences and its percentile bootstrap interval."""
    rng = np.random.Generator(np.random.Philox(seed))
    n = len(differences)
    means = np.empty(resamples)
    for i in range(0, resamples, 1000):
        rows = rng.integers(0, n, (min(1000, resamples - i), n))
        means[i : i + 1000] = differences[rows].mean(-1)
    lo, hi = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(differences.mean()), (float(lo), float(hi))


def wilson_interval(wins: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a rate (a tie counts half a win)."""
    p = wins / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float(centre - half), float(centre + half)
