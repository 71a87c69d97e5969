"""Approach 3 of Hoffmann 2022: one parametric loss surface L(N, D) = E + A / N^alpha + B / D^beta.

The objective is the sum over runs of Huber(delta = 1e-3) of the log residual, as published; see
`surface` for how it is minimised and how its intervals are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from rlhf_jax.evals.intervals import percentile_interval
from rlhf_jax.laws.law import Law, LawFit
from rlhf_jax.laws.points import Points
from rlhf_jax.laws.solve import HUBER_LOG, Objective, Problem, linear_start
from rlhf_jax.laws.surface import Surface, check_runs


@dataclass(frozen=True)
class Chinchilla(Law):
    """L = E + A / N^alpha + B / D^beta; N parameters, D tokens, L nats a token.

    `Surface` fits it under the usual objective; the plain `Problem` serves another objective, or
    held parameters.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    NAME = "chinchilla"
    INPUTS = ("params", "tokens")
    SOURCE = "Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, approach 3"
    SIGNED = frozenset({"alpha", "beta"})
    FLOOR = "E"
    DERIVED = ("a", "b", "G")

    @classmethod
    def formula(cls, p: Any, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        E, A, B, alpha, beta = p
        return E + A * columns["params"] ** -alpha + B * columns["tokens"] ** -beta

    @classmethod
    def starts(cls, columns: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        n, d = columns["params"], columns["tokens"]
        rows = []
        for alpha, beta in product((0.1, 0.25, 0.4, 0.7), repeat=2):
            terms = linear_start([np.ones_like(n), n**-alpha, d**-beta], target)
            rows.append([*terms, alpha, beta])
        return np.array(rows)

    @classmethod
    def problem(
        cls, points: Points, objective: Objective | None, held: Mapping[str, float]
    ) -> Problem:
        if held or objective not in (None, HUBER_LOG):
            return super().problem(points, objective, held)
        check_runs(points.params, points.tokens)
        return Surface(cls, {"params": points.params, "tokens": points.tokens}, points.loss)

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> Any:
        """L in nats a token; inf or NaN where a wild law overflows."""
        return self.predict(params=params, tokens=tokens)

    @property
    def a(self) -> float:
        """Exponent of N* in C."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of D* in C; a + b = 1."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def G(self) -> float:
        """Prefactor of N* in (C/6)^a; NaN when an exponent is not positive."""
        if min(self.alpha, self.beta, self.A, self.B) <= 0:
            return float("nan")
        log = np.log([self.alpha, self.A, self.beta, self.B]) @ [1.0, 1.0, -1.0, -1.0]
        with np.errstate(over="ignore"):
            return float(np.exp(log / (self.alpha + self.beta)))

    def compute_optimal(self, flops: np.ndarray | float) -> tuple[Any, Any]:
        """(N*, D*) of least loss at C = 6 N D: N* = G (C/6)^a, D* = (C/6)^b / G (eq. 4)."""
        nd = np.asarray(flops, np.float64) / 6.0
        with np.errstate(all="ignore"):
            return self.G * nd**self.a, nd**self.b / self.G


def frontier(fit: LawFit, flops: np.ndarray, level: float = 0.95) -> list[dict[str, Any]]:
    """N*, D*, L* of a fitted `Chinchilla` with percentile intervals at each compute budget."""
    if fit.refused:
        return []
    laws = [law for law in fit.laws if np.isfinite(law.G) and law.G > 0]
    draws = np.array([law.compute_optimal(flops) for law in laws])  # (R, 2, budgets)
    rows = []
    for i, c in enumerate(np.asarray(flops, np.float64)):
        n_star, d_star = fit.law.compute_optimal(c)
        if not (0 < n_star < np.inf and 0 < d_star < np.inf):
            continue  # beyond floating point: a law from data that hold none
        row: dict[str, Any] = {"flops": float(c), "n_star": float(n_star), "d_star": float(d_star)}
        row["loss_star"] = float(fit.law.predict(params=n_star, tokens=d_star))
        if laws:
            best = np.array([law.loss(*draws[r, :, i]) for r, law in enumerate(laws)])
            row["intervals"] = {
                "n_star": percentile_interval(draws[:, 0, i], level),
                "d_star": percentile_interval(draws[:, 1, i], level),
                "loss_star": percentile_interval(best, level),
            }
        rows.append(row)
    return rows
