"""Chinchilla's law in the family: an adapter over `rlhf_jax.laws.parametric`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from rlhf_jax.laws.forms.family import LawFit, ScalingLaw
from rlhf_jax.laws.forms.fitting import ahead
from rlhf_jax.laws.forms.solve import HUBER_LOG, Objective, linear_start
from rlhf_jax.laws.parametric import Law, fit_law, fit_parametric
from rlhf_jax.laws.points import Points


@dataclass(frozen=True)
class Chinchilla(ScalingLaw):
    """L = E + A / N^alpha + B / D^beta.

    Fitted by `fit_parametric` under the usual objective; the family's own solver serves another
    objective, or held parameters.
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
        n, d = np.log(columns["params"]), np.log(columns["tokens"])
        return E + A * np.exp(-alpha * n) + B * np.exp(-beta * d)

    @classmethod
    def starts(cls, columns: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        n, d = columns["params"], columns["tokens"]
        rows = []
        for alpha, beta in product((0.1, 0.25, 0.4, 0.7), repeat=2):
            terms = linear_start([np.ones_like(n), n**-alpha, d**-beta], target)
            rows.append([*terms, alpha, beta])
        return np.array(rows)

    @property
    def surface(self) -> Law:
        """The same law with its compute-optimal frontier."""
        return Law(self.E, self.A, self.B, self.alpha, self.beta)

    @property
    def a(self) -> float:
        """Exponent of N* in C."""
        return self.surface.a

    @property
    def b(self) -> float:
        """Exponent of D* in C."""
        return self.surface.b

    @property
    def G(self) -> float:
        """Prefactor of N* in (C/6)^a."""
        return self.surface.G

    @classmethod
    def of(cls, law: Law) -> Chinchilla:
        return cls(law.E, law.A, law.B, law.alpha, law.beta)

    @classmethod
    def fitted(
        cls,
        points: Points,
        resamples: int,
        seed: int,
        level: float,
        objective: Objective | None,
        held: Mapping[str, float],
    ) -> LawFit | None:
        if held or objective not in (None, HUBER_LOG):
            return None
        found = fit_parametric(points, resamples, seed)
        return LawFit(
            law=cls.of(found.law),
            objective=found.objective,
            criterion=str(HUBER_LOG),
            n=found.n,
            resampled=found.resampled,
            seed=seed,
            level=level,
            held=held,
            hit_rate=found.hit_rate,
            condition=found.condition,
            residuals=found.residuals,
            outliers=found.outliers,
            extrapolation=ahead(cls, points),
            refused=found.refused,
            warnings=found.warnings,
            notes=points.notes,
            points=points,
        )

    @classmethod
    def pointed(
        cls, points: Points, objective: Objective | None, held: Mapping[str, float]
    ) -> ScalingLaw | None:
        if held or objective not in (None, HUBER_LOG):
            return None
        return cls.of(fit_law(points))
