"""The cheapest model to train and then serve.

Sardana et al. 2023, "Beyond Chinchilla-Optimal: Accounting for Inference in Language Model Scaling
Laws": minimise 6 N D + 2 N D_inf over (N, D) subject to L(N, D) = target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.laws.points import FitError


@dataclass(frozen=True)
class InferenceOptimal:
    """A size and token count that reach a loss at least total cost.

    Attributes:
      params: N. tokens: D, trained on. loss: nats a token.
      training_flops: 6 N D. inference_flops: 2 N D_inf. flops: their sum.
      training_only: (N, D) of least training compute at the same loss, the Chinchilla point.
      saving: share of the total that is saved against training_only serving the same tokens.
    """

    params: float
    tokens: float
    loss: float
    training_flops: float
    inference_flops: float
    flops: float
    training_only: tuple[float, float]
    saving: float


def inference_optimal(
    law: Chinchilla,
    inference_tokens: float,
    loss: float | None = None,
    flops: float | None = None,
) -> InferenceOptimal:
    """The (N, D) of least 6 N D + 2 N D_inf at a given quality.

    Args:
      law: all its coefficients positive. inference_tokens: D_inf, tokens
        that will be read or written in the model's life.
      loss: the quality, nats a token; or flops: a training budget, whose least loss it is.

    Raises:
      FitError: neither or both are given, the loss is not above E, or the law has no split.
    """
    if min(law.A, law.B, law.alpha, law.beta) <= 0:
        raise FitError(
            "the law has a coefficient that is not positive: it has no compute-optimal split"
        )
    if (loss is None) == (flops is None):
        raise FitError("give either the loss to reach or the flops of a training budget, not both")
    if not 0 <= inference_tokens < float("inf"):
        raise FitError(f"inference_tokens is {inference_tokens}; it must be finite and at least 0")
    if loss is None:
        if not (flops and 0 < flops < float("inf")):
            raise FitError(f"flops is {flops}; a training budget must be positive and finite")
        loss = float(law.loss(*law.compute_optimal(flops)))
    if not law.E < loss < float("inf"):
        raise FitError(
            f"no model reaches a loss of {loss:g}: the law's irreducible loss is {law.E:g}; ask "
            "for more"
        )
    start = float(np.log(law.beta / law.alpha))
    chinchilla = _on_contour(law, loss, start)

    def slope(x: float) -> float:
        """Rises in x; 0 where moving along the loss contour leaves the total unchanged."""
        served = np.log1p(inference_tokens / (3 * _on_contour(law, loss, x)[1]))
        return float(np.log(law.alpha / law.beta) + x - served)

    # The optimum has a share of N's term at least Chinchilla's: a smaller model on more tokens.
    high = start
    while slope(high) < 0:
        high += 1.0
    n, d = _on_contour(
        law, loss, start if high == start else brentq(slope, start, high, xtol=1e-14)
    )
    training, serving = 6.0 * n * d, 2.0 * n * inference_tokens
    other = 6.0 * chinchilla[0] * chinchilla[1] + 2.0 * chinchilla[0] * inference_tokens
    return InferenceOptimal(
        params=n,
        tokens=d,
        loss=loss,
        training_flops=training,
        inference_flops=serving,
        flops=training + serving,
        training_only=chinchilla,
        saving=1 - (training + serving) / other,
    )


def _on_contour(law: Chinchilla, loss: float, x: float) -> tuple[float, float]:
    """(N, D) of a loss, at x, the log odds that N's term has of the reducible loss."""
    n = (np.log(law.A / (loss - law.E)) + np.logaddexp(0, -x)) / law.alpha
    d = (np.log(law.B / (loss - law.E)) + np.logaddexp(0, x)) / law.beta
    return float(np.exp(n)), float(np.exp(d))
