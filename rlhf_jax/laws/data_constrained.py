"""Repeated data: what the second and later epochs, and excess parameters, are worth.

Muennighoff et al. 2023, "Scaling Data-Constrained Language Models".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from rlhf_jax.laws.law import Law
from rlhf_jax.laws.solve import linear_start


@dataclass(frozen=True)
class DataConstrained(Law):
    """L = E + A / N'^alpha + B / D'^alpha, N parameters and D tokens of which U were unique.

    D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)), and N' likewise from U_N = min(N, G^2 U), the
    compute-optimal size for U tokens, G = (A/B)^(1 / (2 alpha)). The exponents of N and D are tied.
    R_D and R_N are in repetitions beyond the first: after R_D of them 1 - 1/e of the value that
    repetition can ever have is spent. The law never rises: runs that more epochs or parameters
    made worse are outside it.
    """

    E: float
    A: float
    B: float
    alpha: float
    R_D: float
    R_N: float

    NAME = "data_constrained"
    INPUTS = ("params", "tokens", "unique_tokens")
    SOURCE = "Muennighoff et al. 2023, Scaling Data-Constrained Language Models"
    FLOOR = "E"

    @classmethod
    def formula(cls, p: Any, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        E, A, B, alpha, r_d, r_n = p
        n, d = columns["params"], columns["tokens"]
        u = np.minimum(columns["unique_tokens"], d)
        best = np.exp((np.log(A) - np.log(B)) / alpha) * u
        u_n = np.where(np.real(best) < n, best, n)
        return (
            E
            + A * np.exp(-alpha * np.log(_worth(n, u_n, r_n)))
            + B * np.exp(-alpha * np.log(_worth(d, u, r_d)))
        )

    @classmethod
    def starts(cls, columns: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        n, d = columns["params"], columns["tokens"]
        u = np.minimum(columns["unique_tokens"], d)
        u_n = np.minimum(n, u / 20)  # Chinchilla's 20 tokens a parameter
        rows = []
        for alpha, r_d, r_n in product((0.2, 0.35, 0.6), (3.0, 15.0, 100.0), (1.0, 5.0, 100.0)):
            terms = [np.ones_like(n), _worth(n, u_n, r_n) ** -alpha, _worth(d, u, r_d) ** -alpha]
            rows.append([*linear_start(terms, target), alpha, r_d, r_n])
        return np.array(rows)

    def optimal_params(self, unique_tokens: Any) -> np.ndarray:
        """U_N: the compute-optimal size for one pass over the unique tokens, G^2 U."""
        ratio = math.exp((math.log(self.A) - math.log(self.B)) / self.alpha)
        return ratio * np.asarray(unique_tokens, np.float64)


def _worth(seen: Any, unique: Any, scale: Any) -> Any:
    """unique + unique scale (1 - exp(-(seen/unique - 1) / scale))."""
    return unique - unique * scale * np.expm1(-(seen / unique - 1) / scale)


MUENNIGHOFF_2023 = DataConstrained(
    E=math.exp(0.6254804),
    A=math.exp(6.255414),
    B=math.exp(7.3049974),
    alpha=0.3526596,
    R_D=15.387756,
    R_N=5.309743,
)
