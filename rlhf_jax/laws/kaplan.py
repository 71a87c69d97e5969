"""Kaplan et al. 2020, "Scaling Laws for Neural Language Models": the joint law of eq. 1.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from rlhf_jax.laws.law import Law
from rlhf_jax.laws.solve import linear_start


@dataclass(frozen=True)
class Kaplan(Law):
    """L = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D, without an irreducible loss.

    Kaplan's N leaves embeddings out; which count is given must be the same in fits and use.
    """

    alpha_N: float
    alpha_D: float
    N_c: float
    D_c: float

    NAME = "kaplan"
    INPUTS = ("params", "tokens")
    SOURCE = "Kaplan et al. 2020, Scaling Laws for Neural Language Models, eq. 1.5"
    DERIVED = ("compute_exponent",)

    @classmethod
    def formula(cls, p: Any, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        alpha_n, alpha_d, n_c, d_c = p
        size = np.exp(alpha_n / alpha_d * (np.log(n_c) - np.log(columns["params"])))
        return np.exp(alpha_d * np.log(size + d_c / columns["tokens"]))

    @classmethod
    def starts(cls, columns: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        rows = []
        for alpha_n, alpha_d in product((0.03, 0.08, 0.2), repeat=2):
            ratio = alpha_n / alpha_d
            terms = [columns["params"] ** -ratio, 1 / columns["tokens"]]
            size, d_c = linear_start(terms, target ** (1 / alpha_d))
            rows.append([alpha_n, alpha_d, size ** (1 / ratio), d_c])
        return np.array(rows)

    @property
    def compute_exponent(self) -> float:
        """Exponent of N* in C = 6 N D, alpha_D / (alpha_N + alpha_D).

        0.575 with the published constants. The 0.73 that the paper advises comes from its law of
        size and steps (eq. 1.6), which stops runs before they converge, not from this surface.
        """
        with np.errstate(all="ignore"):
            return float(np.float64(self.alpha_D) / (self.alpha_N + self.alpha_D))

    def compute_optimal(self, flops: Any) -> tuple[np.ndarray, np.ndarray]:
        """(N*, D*) of least loss at C = 6 N D, where ratio (N_c/N)^ratio = D_c / D."""
        nd = np.asarray(flops, np.float64) / 6.0
        ratio = self.alpha_N / self.alpha_D
        log_n = (np.log(ratio) + ratio * np.log(self.N_c) + np.log(nd / self.D_c)) / (1 + ratio)
        n = np.exp(log_n)
        return n, nd / n


KAPLAN_2020 = Kaplan(alpha_N=0.076, alpha_D=0.103, N_c=6.4e13, D_c=1.8e13)
