"""A second, independent optimizer of approach 3: the exponents outside, the linear terms inside.

For fixed (alpha, beta) the law is linear in E, A, B >= 0. The inner problem starts at non-negative
least squares of the relative residuals, which approximate log residuals, and is then solved for the
objective itself, the log-Huber sum, by damped Newton on the coefficients that are not at zero. The
outer problem has two dimensions: a grid, then Nelder-Mead from its best points until a restart
gains nothing. Nothing is shared with `rlhf_jax.laws.solve` but the definition of the objective.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize, nnls

DELTA = 1e-3

EXPONENTS = (0.02, 0.06, 0.12, 0.2, 0.3, 0.42, 0.6, 0.9, 1.4)  # the grid of each exponent
LIMITS = (1e-3, 4.0)


@dataclass
class _Profile:
    """The objective (in units of delta^2) as a function of (alpha, beta) alone."""

    x: np.ndarray
    y: np.ndarray
    log_loss: np.ndarray
    inner: dict[tuple[float, float], np.ndarray] = field(default_factory=dict)

    def __call__(self, exponents: np.ndarray) -> float:
        alpha, beta = (float(v) for v in exponents)
        if not all(LIMITS[0] <= v <= LIMITS[1] for v in (alpha, beta)):
            return np.inf
        X = np.stack([np.ones_like(self.x), np.exp(-alpha * self.x), np.exp(-beta * self.y)], 1)
        coefficients, value = self._solve(X)
        self.inner[alpha, beta] = coefficients
        return value

    def _value(self, X: np.ndarray, c: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        prediction = X @ c
        if not prediction.min() > 0:
            return np.inf, prediction, prediction
        u = (np.log(prediction) - self.log_loss) / DELTA
        size = np.abs(u)
        return float(np.where(size <= 1, 0.5 * u * u, size - 0.5).sum()), u, prediction

    def _solve(self, X: np.ndarray) -> tuple[np.ndarray, float]:
        relative = X / np.exp(self.log_loss)[:, None]
        c = nnls(relative, np.ones(len(X)))[0]
        value, u, prediction = self._value(X, c)
        damping, quiet = 1e-2, 0
        for _ in range(200):
            g = X / prediction[:, None]
            size, slope = np.abs(u), np.clip(u, -1, 1) / DELTA
            gradient = g.T @ slope
            free = (c > 0) | (gradient < 0)
            gf = g[:, free]
            reweighted = (gf / np.maximum(size, 1)[:, None]).T @ gf / DELTA**2
            # d2 ln(X c) = -g g^T; the reweighted matrix majorises the Huber term.
            H = (gf * ((size <= 1) / DELTA**2 - slope)[:, None]).T @ gf
            A = H + damping * reweighted + 1e-13 * np.trace(reweighted) * np.eye(len(H))
            new = c.copy()
            new[free] = np.maximum(c[free] - np.linalg.solve(A, gradient[free]), 0.0)
            trial, u_new, prediction_new = self._value(X, new)
            if trial < value:
                quiet = 0 if value - trial > 1e-13 * value else quiet + 1
                c, value, u, prediction = new, trial, u_new, prediction_new
                damping = max(damping * 0.2, 1e-9)
            else:
                quiet, damping = quiet + 1, damping * 10
            if quiet >= 4:
                break
        return c, value


def fit(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    """E, A, B, alpha, beta and the objective (the plain sum) of least log-Huber sum with E, A, B
    >= 0 and both exponents positive."""
    mx, my = np.log(params).mean(), np.log(tokens).mean()
    profile = _Profile(np.log(params) - mx, np.log(tokens) - my, np.log(loss))
    grid = [np.array([alpha, beta]) for alpha in EXPONENTS for beta in EXPONENTS]
    starts = sorted(grid, key=profile)[:3]
    best, value = min((_nelder_mead(profile, s, 0.2, 1e-3) for s in starts), key=lambda f: f[1])
    for size in (0.02, 0.002):
        best, value = _nelder_mead(profile, best, size, 1e-10)
    alpha, beta = (float(v) for v in best)
    E, A, B = (float(v) for v in profile.inner[alpha, beta])
    A, B = float(A * np.exp(alpha * mx)), float(B * np.exp(beta * my))
    return {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta, "objective": value * DELTA**2}


def _nelder_mead(
    profile: _Profile, start: np.ndarray, size: float, tolerance: float
) -> tuple[np.ndarray, float]:
    """Nelder-Mead from a simplex of relative `size`; it never ends above its start."""
    simplex = start * np.array([[1, 1], [1 + size, 1], [1 - size / 2, 1 + size]])
    options: dict[str, Any] = {
        "initial_simplex": simplex,
        "xatol": tolerance,
        "fatol": tolerance,
        "maxfev": 300,
    }
    found = minimize(profile, start, method="Nelder-Mead", options=options)
    return found.x, float(found.fun)
