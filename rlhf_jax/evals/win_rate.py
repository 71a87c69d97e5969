"""Win rates, plain and with the length of responses held equal."""

from __future__ import annotations

import numpy as np

from rlhf_jax.evals.calibration import right_half
from rlhf_jax.evals.intervals import percentile_interval, resampled_counts, wilson_interval

Interval = tuple[float, float]
RESAMPLES = 1000
PRIOR = np.diag([1e-6, 1e-2])  # keeps the logistic fit finite where one side always wins


def win_rate(before: np.ndarray, after: np.ndarray) -> tuple[float, Interval]:
    """Share of prompts that `after` wins, with Wilson's 95% interval."""
    won = float(right_half(after - before).sum())
    return won / len(before), wilson_interval(won, len(before))


def length_controlled(
    before: np.ndarray, after: np.ndarray, longer: np.ndarray, seed: int = 0
) -> tuple[float, Interval]:
    """The win rate that would be if both responses were equally long (Dubois et al. 2024).

    A logistic regression of wins on an intercept and tanh(longer / sd(longer)), evaluated at no
    difference in length. Theirs has a term for each instruction's difficulty too, which needs more
    than one pair of models. The 95% interval is a bootstrap's over prompts.

    Args:
      before, after: (n,) scores. longer: (n,) tokens of the response after less those before.
    """
    won = right_half(after - before)
    spread = longer.std()
    x = np.tanh(longer / spread) if spread > 0 else np.zeros(len(won))
    design = np.stack([np.ones(len(won)), x], axis=1)
    rates = 1 / (1 + np.exp(-_logistic(design, won, _weights(len(won), seed))[:, 0]))
    low, high = percentile_interval(rates[1:])
    return float(rates[0]), (low, high)


def gain_at_equal_length(
    gain: np.ndarray, longer: np.ndarray, seed: int = 0
) -> tuple[float, Interval]:
    """The intercept of a linear regression of paired gains (n,) on differences in length (n,), with
    a 95% bootstrap interval over prompts."""
    weights = _weights(len(gain), seed)
    total = weights.sum(1)
    mean_x, mean_y = weights @ longer / total, weights @ gain / total
    cross = weights @ (longer * gain) / total - mean_x * mean_y
    square = weights @ longer**2 / total - mean_x**2
    slope = np.where(square > 1e-9, cross / np.maximum(square, 1e-9), 0.0)
    found = mean_y - slope * mean_x
    low, high = percentile_interval(found[1:])
    return float(found[0]), (low, high)


def _weights(n: int, seed: int) -> np.ndarray:
    """(1 + RESAMPLES, n): ones, then how often each prompt is drawn."""
    rng = np.random.Generator(np.random.Philox(seed))
    return np.concatenate([np.ones((1, n)), resampled_counts(n, RESAMPLES, rng)])


def _logistic(X: np.ndarray, y: np.ndarray, weights_SN: np.ndarray) -> np.ndarray:
    """(S, 2): coefficients of S weighted logistic regressions, by Newton's method."""
    coef = np.zeros((len(weights_SN), X.shape[1]))
    for _ in range(30):
        p_SN = 1 / (1 + np.exp(-np.clip(coef @ X.T, -30, 30)))
        gradient = (weights_SN * (y - p_SN)) @ X - coef @ PRIOR
        curved = np.einsum("sn,ni,nj->sij", weights_SN * p_SN * (1 - p_SN), X, X) + PRIOR
        step = np.linalg.solve(curved, gradient[..., None])[..., 0]
        coef = coef + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return coef
