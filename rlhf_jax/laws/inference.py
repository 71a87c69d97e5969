"""The cheapest model to train and then serve.

Sardana et al. 2023, "Beyond Chinchilla-Optimal: Accounting for Inference in Language Model Scaling
Laws": minimise 6 N D + 2 N D_inf over (N, D) subject to L(N, D) = target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import brentq

from rlhf_jax.laws.points import FitError


class ChinchillaForm(Protocol):
    """E + A / N^alpha + B / D^beta: `parametric.Law` and `laws.Chinchilla` are two."""

    @property
    def E(self) -> float: ...
    @property
    def A(self) -> float: ...
    @property
    def B(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def beta(self) -> float: ...


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
    law: ChinchillaForm,
    inference_tokens: float,
    loss: float | None = None,
    flops: float | None = None,
) -> InferenceOptimal:
    """The (N, D) of least 6 N D + 2 N D_inf at a given quality.

    Args:
      law: of Chinchilla's form, all its coefficients positive. inference_tokens: D_inf, tokens
        that will be read or written in the model's life.
      loss: the quality, nats a token; or flops: a training budget, whose compute-optimal loss is
        then the quality. Give one.

    Raises:
      FitError: neither or both are given, the loss is not above the law's E, or the law has no
        compute-optimal split.
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
        loss = _loss_at(law, float(flops or 0.0))
    if not law.E < loss < float("inf"):
        raise FitError(
            f"no model reaches a loss of {loss:g}: the law's irreducible loss is {law.E:g}; ask "
            "for more"
        )
    reducible = loss - law.E

    def at(x: float) -> tuple[float, float]:
        """(N, D) at x, the log odds that N's term has of the reducible loss."""
        log_n_share, log_d_share = -np.logaddexp(0, -x), -np.logaddexp(0, x)
        n = (np.log(law.A / reducible) - log_n_share) / law.alpha
        d = (np.log(law.B / reducible) - log_d_share) / law.beta
        return float(np.exp(n)), float(np.exp(d))

    def slope(x: float, tokens: float) -> float:
        """Rises in x; 0 where moving along the loss contour leaves the total unchanged."""
        d = at(x)[1]
        served = np.log1p(tokens / (3 * d))
        return float(np.log(law.alpha / law.beta) + x - served)

    chinchilla = at(float(np.log(law.beta / law.alpha)))
    # The optimum has a share of N's term at least Chinchilla's: a smaller model on more tokens.
    low = high = float(np.log(law.beta / law.alpha))
    while slope(high, inference_tokens) < 0:
        high += 1.0
    root = low if high == low else brentq(slope, low, high, args=(inference_tokens,), xtol=1e-14)
    n, d = at(root)
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


def _loss_at(law: ChinchillaForm, flops: float) -> float:
    """The least loss at C = 6 N D (Hoffmann 2022, eq. 4)."""
    if not 0 < flops < float("inf"):
        raise FitError(f"flops is {flops}; a training budget must be positive and finite")
    total = law.alpha + law.beta
    log_g = np.log(law.alpha * law.A / (law.beta * law.B)) / total
    log_nd = np.log(flops / 6.0)
    log_n = log_g + law.beta / total * log_nd
    log_d = log_nd - log_n
    reducible = law.A * np.exp(-law.alpha * log_n) + law.B * np.exp(-law.beta * log_d)
    return float(law.E + reducible)
