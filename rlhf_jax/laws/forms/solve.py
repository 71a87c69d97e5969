"""Minimises a law's misfit: BFGS from many starts, then Newton.

Derivatives are complex-step derivatives of the law's own formula (Squire & Trapp 1998), exact to
rounding, so that a law is its formula and its starts and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize, nnls

if TYPE_CHECKING:
    from rlhf_jax.laws.forms.family import ScalingLaw

HIT = 1e-6  # a start hits when its objective is within this share of the best
EXACT = 1e-22  # an objective that holds no misfit beyond rounding: nothing is left to gain
STEP = 1e-20  # of the complex-step derivative; nothing is subtracted, so it can be this small


@dataclass(frozen=True)
class Objective:
    """Sum over runs of Huber(delta) of a residual: r^2 / 2 up to delta, linear beyond.

    Attributes:
      log: ln predicted - ln observed if true, else predicted - observed.
      delta: where the Huber loss turns linear; inf is least squares.
    """

    log: bool
    delta: float

    def __str__(self) -> str:
        kind = "log residuals" if self.log else "plain residuals"
        if np.isinf(self.delta):
            return f"half the sum of squares of {kind}"
        return f"sum of Huber(delta={self.delta:g}) of {kind}"

    def total(self, residual: np.ndarray) -> float:
        u = np.abs(residual)
        if np.isinf(self.delta):
            return float(np.sum(0.5 * u * u))
        linear = self.delta * (u - 0.5 * self.delta)
        return float(np.sum(np.where(u <= self.delta, 0.5 * u * u, linear)))


HUBER_LOG = Objective(log=True, delta=1e-3)  # Hoffmann 2022, eq. 3
HUBER = Objective(log=False, delta=1e-3)
LEAST_SQUARES = Objective(log=False, delta=float("inf"))


class Problem:
    """One law on fixed data. theta: (free,) unconstrained coordinates, held ones left out.

    Args:
      law_class: the law. columns: its INPUTS, each (n,). target: observed, (n,).
      held: parameters that keep a given value.
    """

    def __init__(
        self,
        law_class: type[ScalingLaw],
        columns: Mapping[str, np.ndarray],
        target: np.ndarray,
        objective: Objective,
        held: Mapping[str, float],
    ):
        self.law_class, self.columns, self.target = law_class, columns, target
        self.objective = objective
        self.names = law_class.names()
        self.free = np.array([i for i, name in enumerate(self.names) if name not in held])
        self.positive = np.array([name not in law_class.SIGNED for name in self.names])
        self.held = np.array([held.get(name, 1.0) for name in self.names], np.float64)
        self.observed = np.log(target) if objective.log else target
        self._at: tuple[bytes, np.ndarray, np.ndarray] | None = None

    def theta(self, values: np.ndarray) -> np.ndarray:
        """Parameters (p,) to coordinates (free,): ln of those that must be positive."""
        values = np.asarray(values, np.float64)
        return np.where(self.positive, np.log(np.where(self.positive, values, 1)), values)[
            self.free
        ]

    def values(self, theta: np.ndarray) -> np.ndarray:
        """Coordinates (free, ...) to parameters (p, ...), in theta's dtype."""
        shape = (len(self.names), *theta.shape[1:])
        values = np.broadcast_to(self.held.reshape(-1, *[1] * (theta.ndim - 1)), shape).astype(
            theta.dtype
        )
        with np.errstate(all="ignore"):
            for k, i in enumerate(self.free):
                values[i] = np.exp(theta[k]) if self.positive[i] else theta[k]
        return values

    def law(self, theta: np.ndarray) -> ScalingLaw:
        return self.law_class(*(float(v) for v in self.values(theta)))

    def __call__(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals (n,) and their derivatives (n, free); not finite where the law overflows."""
        theta = np.asarray(theta, np.float64)
        if self._at is not None and self._at[0] == theta.tobytes():
            return self._at[1:]
        steps = theta[:, None, None] + 1j * STEP * np.eye(len(theta))[:, :, None]
        with np.errstate(all="ignore"):
            predicted = self.law_class.formula(self.values(steps), self.columns)
            if self.objective.log:
                predicted = np.log(predicted)
        residual = predicted[0].real - self.observed
        self._at = (theta.tobytes(), residual, predicted.imag.T / STEP)
        return self._at[1:]

    def total(self, theta: np.ndarray) -> float:
        with np.errstate(all="ignore"):
            value = self.objective.total(self(theta)[0])
        return value if np.isfinite(value) else float("inf")

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        residual, J = self(theta)
        return J.T @ np.clip(residual, -self.objective.delta, self.objective.delta)

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        """(free, free), by central differences of the exact derivatives, symmetrised.

        Runs at the Huber kink count as on the side where they are now.
        """
        residual, J = self(theta)
        inside = np.abs(residual) <= self.objective.delta
        slope = np.clip(residual, -self.objective.delta, self.objective.delta)
        h = 1e-5
        rows = [
            (self(theta + e)[1] - self(theta - e)[1]).T @ slope / (2 * h)
            for e in h * np.eye(len(theta))
        ]
        curved = np.array(rows)
        return (J * inside[:, None]).T @ J + 0.5 * (curved + curved.T)

    def minimise(self, start: np.ndarray, rounds: int = 8) -> tuple[np.ndarray, float]:
        """BFGS from one start: (theta, objective); objective inf if it broke down at once.

        Each round begins with new axes, in which the Gauss-Newton curvature is the identity:
        a coefficient and its exponent lie in a valley that is too narrow for the plain ones.
        """
        theta, best = np.asarray(start, np.float64), self.total(start)
        with np.errstate(all="ignore"):
            return self._descend(theta, best, rounds)

    def _descend(self, theta: np.ndarray, best: float, rounds: int) -> tuple[np.ndarray, float]:
        for _ in range(rounds):
            if not EXACT < best < np.inf or not (axes := self._axes(theta)).size:
                break
            found = minimize(
                self._along,
                np.zeros(len(theta)),
                args=(theta, axes),
                jac=True,
                method="BFGS",
                options={"maxiter": 100, "gtol": 1e-9 * np.sqrt(best)},
            )
            if not found.fun < best:
                break
            gained, best = best - found.fun, float(found.fun)
            theta = theta + axes @ found.x
            if gained < 1e-9 * best or best < EXACT:
                break
        return theta, best

    def _axes(self, theta: np.ndarray) -> np.ndarray:
        """Columns that make the Gauss-Newton Hessian the identity, (free, free); empty if none."""
        residual, J = self(theta)
        if not np.isfinite(J).all():
            return np.empty((0, 0))
        weight = np.minimum(1, self.objective.delta / np.maximum(np.abs(residual), 1e-300))
        eigen, vectors = np.linalg.eigh((J * weight[:, None]).T @ J)
        return vectors / np.sqrt(np.maximum(eigen, 1e-12 * max(eigen[-1], 1e-300)))

    def _along(self, z: np.ndarray, theta: np.ndarray, axes: np.ndarray):
        """(objective, gradient) in the coordinates z of theta + axes z."""
        at = theta + axes @ z
        total, gradient = self.total(at), self.gradient(at)
        if not (np.isfinite(total) and np.isfinite(gradient).all()):
            return 1e30, np.zeros(len(z))  # beyond floating point: the line search turns back
        return total, axes.T @ gradient

    def polish(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """Newton steps with halving while they lower the objective: the last digits."""
        best = self.total(theta)
        for _ in range(50):
            if best < EXACT:
                break
            H, g = self.hessian(theta), self.gradient(theta)
            if not (np.isfinite(H).all() and np.isfinite(g).all()):
                break
            scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(H)), 1e-300))
            step = scale * np.linalg.lstsq(H * scale * scale[:, None], scale * g, rcond=1e-13)[0]
            trials = [theta - step * 0.5**k for k in range(12)]
            totals = [self.total(t) for t in trials]
            k = int(np.argmin(totals))
            if not totals[k] < best:
                break
            theta, best = trials[k], totals[k]
        return theta, best

    def solve(self, starts: np.ndarray) -> tuple[np.ndarray, float, list]:
        """(theta, objective) of the best of `starts` (s, p), and the ends of all distinct ones."""
        # Starts that differ in held parameters alone are one start.
        distinct = np.unique([self.theta(start) for start in starts], axis=0)
        found = [self.minimise(theta) for theta in distinct]
        theta, _ = min(found, key=lambda f: f[1])
        for _ in range(20):
            theta, before = self.polish(theta)
            theta, after = self.minimise(theta)
            if before - after <= 1e-12 * before or after < EXACT:
                break
        return theta, self.total(theta), found


def linear_start(columns: list[np.ndarray], target: np.ndarray, floor: float = 1e-3) -> np.ndarray:
    """Non-negative coefficients of `columns` (k of (n,)) that fit `target` in relative terms.

    Given the exponents most laws are linear in what is left, which makes a grid of starts small.
    A coefficient of 0 is raised to where its term is `floor` of the target, since its log is
    fitted.
    """
    X = np.stack(columns, 1) / target[:, None]
    size = np.abs(X).mean(0)
    found, _ = nnls(X / size, np.ones(len(target)))
    return np.maximum(found, floor) / size
