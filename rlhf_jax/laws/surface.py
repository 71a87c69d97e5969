"""Approach 3's objective and the descents on it: one table by L-BFGS, many resamples by Newton.

The objective is the sum over runs of Huber(delta = 1e-3) of ln L(N, D) - ln loss (Hoffmann 2022,
eq. 3), with L the log-sum-exp of three terms that are linear in theta.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.optimize import minimize

from rlhf_jax.laws.points import Points

DELTA = 1e-3  # Huber threshold on the log residual (Hoffmann 2022, eq. 3)
BLOCK = 250  # resamples in memory at once, fewer where rows are many:
ELEMENTS = 250_000  # residuals in memory at once


class Surface:
    """The objective on fixed data, theta = (ln A', ln B', ln E, alpha, beta) with ln N, ln D
    centred.

    Values are in units of delta^2, so that a residual of delta contributes 1/2: with its default
    tolerances an optimizer of the plain sum stops early (Besiroglu 2024).
    """

    def __init__(self, points: Points):
        self.mx, self.my = np.log(points.params).mean(), np.log(points.tokens).mean()
        self.x, self.y = np.log(points.params) - self.mx, np.log(points.tokens) - self.my
        self.log_loss = np.log(points.loss)
        one = np.ones_like(self.x)
        self.of_x = np.stack([one, self.x, self.x**2], 1)
        self.of_y = np.stack([one, self.y, self.y**2], 1)
        self.of_both = np.stack([one, self.x, self.y, self.x * self.y], 1)

    @property
    def block(self) -> int:
        """Resamples in memory at once."""
        return max(1, min(BLOCK, ELEMENTS // len(self.x)))

    def residual(self, theta: np.ndarray, log_loss: np.ndarray | None = None):
        """Log residuals (..., n) and the shares (3, ..., n) of the terms A, B, E, theta (...,
        5)."""
        a, b, e, alpha, beta = np.moveaxis(np.asarray(theta)[..., None], -2, 0)
        terms = np.stack([a - alpha * self.x, b - beta * self.y, e + np.zeros_like(self.x)])
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        target = self.log_loss if log_loss is None else log_loss
        return top + np.log(total) - target, shares / total

    def jacobian(self, shares: np.ndarray) -> np.ndarray:
        """d residual / d theta, (5, ..., n)."""
        p, q, s = shares
        return np.stack([p, q, s, -p * self.x, -q * self.y])

    def __call__(self, theta: np.ndarray, weights: np.ndarray | float = 1.0):
        """(objective, gradient) at theta (5,); weights (n,) are the bootstrap's counts."""
        r, shares = self.residual(theta)
        value, slope = _huber(r, weights)
        return value, self.jacobian(shares) @ slope

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        """(5, 5), exact up to the residuals that sit at the Huber kink."""
        r, shares = self.residual(theta[None])
        return self._curvature(r, shares, 1.0)[0][0]

    def _curvature(self, r: np.ndarray, shares: np.ndarray, weights: np.ndarray | float):
        """Hessians (R, 5, 5) and the matrices of iteratively reweighted least squares, (R, 5, 5).

        The second majorise the Huber function, so they are a metric in which steps are damped.
        """
        u = np.abs(r) / DELTA
        slope = weights * np.clip(r / DELTA, -1, 1) / DELTA
        inner = weights * (u <= 1) / DELTA**2
        # Term k is linear in theta, so d2 LSE = sum_k share_k g_k g_k^T - J J^T.
        H = self._outer(inner - slope, shares)
        for k, (level, power) in enumerate(((0, 3), (1, 4))):
            one, first, second = self._moments(shares[k] * slope, k)
            H[:, level, level] += one
            H[:, level, power] -= first
            H[:, power, level] -= first
            H[:, power, power] += second
        H[:, 2, 2] += (shares[2] * slope).sum(-1)
        return H, self._outer(weights / np.maximum(u, 1) / DELTA**2, shares)

    def _outer(self, w: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """sum_i w_i J_i J_i^T, (R, 5, 5), by moments of x and y; w (R, n), shares (3, R, n)."""
        p, q, s = shares
        H = np.empty((len(w), 5, 5))
        wp, wq = w * p, w * q
        for k, (level, power, v) in enumerate(((0, 3, wp * p), (1, 4, wq * q))):
            one, first, second = self._moments(v, k)
            H[:, level, level], H[:, power, power] = one, second
            H[:, level, power] = H[:, power, level] = -first
        of = (wp * q) @ self.of_both
        H[:, 0, 1], H[:, 0, 4], H[:, 3, 1], H[:, 3, 4] = of[:, 0], -of[:, 2], -of[:, 1], of[:, 3]
        for k, (level, power, v) in enumerate(((0, 3, wp * s), (1, 4, wq * s))):
            one, first, _ = self._moments(v, k)
            H[:, level, 2], H[:, power, 2] = one, -first
        H[:, 2, 2] = (w * s * s).sum(-1)
        for i, j in ((0, 1), (0, 4), (3, 1), (3, 4), (0, 2), (3, 2), (1, 2), (4, 2)):
            H[:, j, i] = H[:, i, j]
        return H

    def _moments(self, v: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
        """Sums of v, v z and v z^2 over runs, (R,) each; z is x for k = 0, y for k = 1."""
        return tuple((v @ (self.of_y if k else self.of_x)).T)

    def gradient(self, shares: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """(R, 5) from shares (3, R, n) and the slopes of the Huber sum (R, n)."""
        p, q = (self._moments(shares[k] * slope, k) for k in (0, 1))
        return np.stack([p[0], q[0], (shares[2] * slope).sum(-1), -p[1], -q[1]], 1)

    def moved(self, theta: np.ndarray, other: Surface) -> np.ndarray:
        """theta (5,) of another table's centring in this one's."""
        a, b, e, alpha, beta = theta
        return np.array(
            [a - alpha * (self.mx - other.mx), b - beta * (self.my - other.my), e, alpha, beta]
        )

    def coefficients(self, theta: np.ndarray) -> np.ndarray:
        """(..., 5): E, A, B, alpha, beta of theta (..., 5), the centring undone; inf on
        overflow."""
        a, b, e, alpha, beta = np.moveaxis(np.asarray(theta, np.float64), -1, 0)
        with np.errstate(over="ignore"):
            E, A, B = np.exp(e), np.exp(a + alpha * self.mx), np.exp(b + beta * self.my)
        return np.stack([E, A, B, alpha, beta], -1)

    def starts(self) -> np.ndarray:
        """3^5 starts: the share of the loss that each term has at the centre, and the exponents."""
        level = np.exp(self.log_loss.mean())
        reducible = (0.05, 0.2, 0.6)
        grid = product(reducible, reducible, (0.3, 0.6, 0.9), (0.1, 0.35, 0.8), (0.1, 0.35, 0.8))
        return np.array([[*np.log(np.array(g[:3]) * level), *g[3:]] for g in grid])

    def minimise(self, start: np.ndarray, rounds: int = 1) -> tuple[np.ndarray, float]:
        """L-BFGS, restarted up to `rounds` times or until it gains nothing: (theta, objective)."""
        theta, best = np.asarray(start, np.float64), np.inf
        for _ in range(rounds):
            found = minimize(
                self,
                theta,
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": 500, "maxfun": 1000, "ftol": 1e-13, "gtol": 1e-7, "maxcor": 20},
            )
            if not found.fun < best:
                break
            gained = best - found.fun
            theta, best = found.x, float(found.fun)
            if gained < 1e-12 * best:
                break
        return theta, best

    def descend(
        self,
        theta: np.ndarray,
        weights: np.ndarray | None = None,
        log_loss: np.ndarray | None = None,
        steps: int = 200,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Damped Newton on many tables at once, each from its own theta.

        Args:
          theta: starts, (R, 5). weights: counts of the runs in each table, (R, n), default 1.
          log_loss: each table's ln losses, (R, n), default the data's own.

        Returns:
          (theta, objective), (R, 5) and (R,).
        """
        n = len(self.x)
        theta = np.array(theta, np.float64)
        weights = np.broadcast_to(1.0, (len(theta), n)) if weights is None else weights
        log_loss = np.broadcast_to(self.log_loss, (len(theta), n)) if log_loss is None else log_loss
        values = np.empty(len(theta))
        for i in range(0, len(theta), self.block):
            part = slice(i, i + self.block)
            theta[part], values[part] = self._descend(
                theta[part], weights[part], log_loss[part], steps
            )
        return theta, values

    def _descend(self, theta, weights, log_loss, steps):
        r, shares = self.residual(theta, log_loss)
        best, slope = _huber(r, weights)
        damping = np.full(len(theta), 1e-2)
        quiet = np.zeros(len(theta), int)
        left = np.arange(len(theta))
        for _ in range(steps):
            w, target = weights[left], log_loss[left]
            H, metric = self._curvature(r, shares, w)
            gradient = self.gradient(shares, slope)
            ridge = 1e-12 * np.trace(metric, axis1=1, axis2=2)[:, None, None] * np.eye(5)
            A = H + damping[left, None, None] * metric + ridge
            step = np.clip(-np.linalg.solve(A, gradient[..., None])[..., 0], -1, 1)
            trial = theta[left] + step
            r_new, shares_new = self.residual(trial, target)
            value, slope_new = _huber(r_new, w)
            better = value < best[left]
            gain = np.where(better, best[left] - value, 0.0)
            to_gain = -np.einsum("rk,rk->r", gradient, step)
            there = (to_gain >= 0) & (to_gain < 1e-11 * best[left]) & (damping[left] <= 1e-2)
            quiet[left] = np.where(better & (gain > 1e-10 * best[left]), 0, quiet[left] + 1)
            damping[left] *= np.where(better, 0.2, 5.0)
            damping[left] = np.clip(damping[left], 1e-8, 1e6)
            moved = left[better]
            theta[moved], best[moved] = trial[better], value[better]
            r[better], slope[better] = r_new[better], slope_new[better]
            shares[:, better] = shares_new[:, better]
            going = (quiet[left] < 8) & ~there
            left, r, slope, shares = left[going], r[going], slope[going], shares[:, going]
            if not len(left):
                break
        return theta, best


def _huber(r: np.ndarray, weights: np.ndarray | float):
    """Sums (...,) of the Huber function of r (..., n) in units of delta^2, and slopes (..., n)."""
    u = r / DELTA
    size = np.abs(u)
    value = np.sum(weights * np.where(size <= 1, 0.5 * u * u, size - 0.5), -1)
    return value, weights * np.clip(u, -1, 1) / DELTA
