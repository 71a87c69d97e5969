"""Over-training and downstream error.

Gadre et al. 2024, "Language models scale reliably with over-training and on downstream tasks".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from rlhf_jax.laws.law import Law
from rlhf_jax.laws.solve import linear_start


@dataclass(frozen=True)
class OverTraining(Law):
    """L = E + (a M^eta + b M^-eta) C^-eta, M = D / N tokens a parameter, C = 6 N D.

    It is Chinchilla's law with tied exponents alpha = beta = 2 eta, written so that at any fixed
    M the reducible loss is a power of C with one exponent. Gadre et al. fit it by least squares
    of the plain loss, with N all parameters, embeddings included.
    """

    E: float
    a: float
    b: float
    eta: float

    NAME = "over_training"
    INPUTS = ("params", "tokens")
    SOURCE = (
        "Gadre et al. 2024, Language models scale reliably with over-training and on downstream "
        "tasks"
    )
    FLOOR = "E"
    DERIVED = ("optimal_ratio",)

    @classmethod
    def formula(cls, p: Any, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        E, a, b, eta = p
        log_m, log_c = _logs(columns)
        return E + a * np.exp(eta * (log_m - log_c)) + b * np.exp(-eta * (log_m + log_c))

    @classmethod
    def starts(cls, columns: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        log_m, log_c = _logs(columns)
        rows = []
        for eta in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4):
            terms = [
                np.ones_like(log_m),
                np.exp(eta * (log_m - log_c)),
                np.exp(-eta * (log_m + log_c)),
            ]
            rows.append([*linear_start(terms, target), eta])
        return np.array(rows)

    @property
    def optimal_ratio(self) -> float:
        """Tokens a parameter of least loss, the same at every compute: (b/a)^(1 / (2 eta))."""
        with np.errstate(all="ignore"):
            return float((np.float64(self.b) / self.a) ** (0.5 / np.float64(self.eta)))


@dataclass(frozen=True)
class Downstream(Law):
    """Error = eps - k exp(-gamma L): a downstream error rate from the validation loss L (nats).

    eps is the error of a model that knows nothing. The fit's residuals are plain, for an error
    has an absolute scale and may be near 0.
    """

    eps: float
    k: float
    gamma: float

    NAME = "downstream"
    INPUTS = ("loss",)
    TARGET = "error"
    SOURCE = (
        "Gadre et al. 2024, Language models scale reliably with over-training and on downstream "
        "tasks"
    )

    @classmethod
    def formula(cls, p: Any, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        eps, k, gamma = p
        return eps - k * np.exp(-gamma * columns["loss"])

    @classmethod
    def starts(cls, columns: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        loss, rows = columns["loss"], []
        for gamma, above in product((0.3, 0.7, 1.5, 3.0), (1.02, 1.3)):
            eps = above * target.max()
            k = np.median((eps - target) * np.exp(gamma * loss))
            rows.append([eps, k, gamma])
        return np.array(rows)


def _logs(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """ln M and ln C."""
    n, d = np.log(columns["params"]), np.log(columns["tokens"])
    return d - n, np.log(6.0) + n + d


# Refit of the RefinedWeb runs trained for at least 20 tokens a parameter, C4 validation loss,
# to the digits given.
GADRE_2024 = OverTraining(E=1.770, a=161.0, b=240.0, eta=0.128)
