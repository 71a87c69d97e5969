"""Whether a model's probabilities are the rates at which it is right."""

from __future__ import annotations

from typing import Any

import numpy as np


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> dict[str, Any]:
    """Accuracy against confidence in bins of equal width, and the expected calibration error, the
    mean over predictions of |accuracy - confidence| of their bin (Guo et al. 2017, `bins` as
    there).

    Args:
      confidence: (n,) probabilities. right: (n,) 1 where the prediction held.

    Returns {"expected_calibration_error", "confidence", "accuracy" (means), "n", "bins":
    [{confidence, accuracy, n}]}, empty bins left out.
    """
    at = np.minimum((confidence * bins).astype(int), bins - 1)
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
