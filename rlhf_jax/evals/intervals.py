"""Intervals of rates and means, and the resampling that every bootstrap draws from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import ndtri

BLOCK = 1000  # resamples in memory at once


def resampled_rows(n: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Blocks (up to `BLOCK`, n) of `resamples` in all: indices of rows drawn with replacement."""
    for first in range(0, resamples, BLOCK):
        yield rng.integers(0, n, (min(BLOCK, resamples - first), n))


def resampled_counts(
    n: int, resamples: int, rng: np.random.Generator, size: int | np.ndarray | None = None
) -> np.ndarray:
    """(resamples, n): how often each of n rows is among `size` (default n) drawn with
    replacement."""
    size = n if size is None else size
    return rng.multinomial(size, np.full(n, 1 / n), resamples).astype(np.float64)


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> list[float]:
    """[low, high] of the finite draws; NaN without any."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return [float("nan"), float("nan")]
    return [float(q) for q in np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])]


def paired_interval(
    differences: np.ndarray, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Mean of paired differences and its percentile bootstrap interval."""
    blocks = resampled_rows(
        len(differences), resamples, np.random.Generator(np.random.Philox(seed))
    )
    means = np.concatenate([differences[rows].mean(-1) for rows in blocks])
    low, high = percentile_interval(means, level)
    return float(differences.mean()), (low, high)


def clustered_interval(
    right: np.ndarray,
    cluster: np.ndarray,
    n: int,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    """The percentile bootstrap interval of mean(right) over pairs, with whole clusters resampled:
    pairs of one prompt are not independent.

    Where every cluster has the same mean a bootstrap shows no spread, and the interval is Wilson's
    with a cluster for an observation.

    Args:
      cluster: each pair's, of `n`.
    """
    total, count = np.bincount(cluster, right, n), np.bincount(cluster, minlength=n)
    total, count = total[count > 0], count[count > 0]
    if np.ptp(total / count) == 0:
        return wilson_interval(float(total[0] / count[0]) * len(total), len(total))
    blocks = resampled_rows(len(total), resamples, np.random.Generator(np.random.Philox(seed)))
    means = [total[rows].sum(-1) / count[rows].sum(-1) for rows in blocks]
    low, high = percentile_interval(np.concatenate(means), level)
    return low, high


def wilson_interval(wins: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate (a tie counts half a win)."""
    p, z = wins / n, ndtri((1 + level) / 2)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float(centre - half), float(centre + half)
