"""Whether a model's probabilities are the rates at which it is right."""

from __future__ import annotations

from typing import Any

import numpy as np


def right_half(difference: np.ndarray) -> np.ndarray:
    """1 where a difference is positive, a half where it is 0: a tie is right half the time."""
    return (difference > 0) + 0.5 * (difference == 0)


def reliability(
    confidence: np.ndarray, right: np.ndarray, bins: int = 15, equal_counts: bool = False
) -> dict[str, Any]:
    """Accuracy against confidence in bins, and the expected calibration error, the mean over
    predictions of |accuracy - confidence| of their bin (Guo et al. 2017, `bins` as there).

    Args:
      confidence: (n,) probabilities. right: (n,) 1 where the prediction held, a half for a tie.
      equal_counts: bins of as many predictions each; otherwise of equal width.

    Returns {"expected_calibration_error", "confidence", "accuracy" (means), "n", "bins":
    [{confidence, accuracy, n}]}, empty bins left out.
    """
    at = np.minimum((confidence * bins).astype(int), bins - 1)
    if equal_counts:
        order = np.argsort(confidence, kind="stable")
        at[order] = np.repeat(np.arange(bins), [len(part) for part in np.array_split(order, bins)])
    n = np.bincount(at, minlength=bins)
    used = n > 0
    mean = np.bincount(at, confidence, bins)[used] / n[used]
    accuracy = np.bincount(at, right, bins)[used] / n[used]
    rows = [
        {"confidence": float(c), "accuracy": float(a), "n": int(k)}
        for c, a, k in zip(mean, accuracy, n[used], strict=True)
    ]
    return {
        "expected_calibration_error": float(n[used] @ np.abs(accuracy - mean) / len(confidence)),
        "confidence": float(np.mean(confidence)),
        "accuracy": float(np.mean(right)),
        "n": len(confidence),
        "bins": rows,
    }
