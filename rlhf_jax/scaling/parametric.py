"""Approach 3 of Hoffmann 2022: one parametric loss surface L(N, D) = E + A / N^alpha + B / D^beta.

The objective is the sum over runs of Huber(delta = 1e-3) of the log residual, as published. A mean
with an optimizer's default tolerances stops early (Besiroglu 2024), so the objective is minimised
in units of delta^2, with ln N and ln D centred, from a grid of starts, and polished until the
gradient vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import minimize

from rlhf_jax.scaling.points import FitError, Points

DELTA = 1e-3  # Huber threshold on the log residual (Hoffmann 2022, eq. 3)
HIT = 1e-6  # a start hits when its objective is within this share of the best
NAMES = ("E", "A", "B", "alpha", "beta", "a", "b", "G")


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta; N parameters, D tokens, L nats a token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray | float:
        """L in nats a token; inf or NaN where a wild law overflows."""
        n, d = np.asarray(params, np.float64), np.asarray(tokens, np.float64)
        with np.errstate(all="ignore"):
            return self.E + self.A * n ** (-self.alpha) + self.B * d ** (-self.beta)

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


@dataclass(frozen=True)
class ParametricFit:
    """A fitted law with how it was found and how far it can be trusted.

    Attributes:
      law: the optimum. objective: its summed Huber loss. n: runs fitted.
      resampled: laws of the bootstrap, shape (resamples, 5) in the order of Law's fields.
      hit_rate: share of grid starts that end at the optimum.
      condition: condition number of the objective's Hessian in (ln A, ln B, ln E, alpha, beta).
      residuals: (n,), ln predicted - ln observed.
      outliers: labels of rows beyond 3 robust standard deviations; all are kept in the fit.
      refused: why a and b mean nothing, or None. warnings: what to know before using it.
    """

    law: Law
    objective: float
    n: int
    resampled: np.ndarray
    hit_rate: float
    condition: float
    residuals: np.ndarray
    outliers: tuple[str, ...]
    refused: str | None
    warnings: tuple[str, ...]

    def intervals(self, level: float = 0.95) -> dict[str, list[float]]:
        """Percentile intervals of every coefficient over the bootstrap resamples."""
        laws = [Law(*row) for row in self.resampled]
        if not laws:
            return {}
        tail = (1 - level) / 2
        columns = {name: [getattr(law, name) for law in laws] for name in NAMES}
        return {k: _quantiles(np.array(v), tail) for k, v in columns.items()}

    def frontier(self, flops: np.ndarray, level: float = 0.95) -> list[dict[str, Any]]:
        """N*, D*, L* with percentile intervals at each compute budget."""
        if self.refused:
            return []
        laws = [law for row in self.resampled if np.isfinite((law := Law(*row)).G) and law.G > 0]
        draws = np.array([law.compute_optimal(flops) for law in laws])  # (R, 2, budgets)
        tail = (1 - level) / 2
        rows = []
        for i, c in enumerate(np.asarray(flops, np.float64)):
            n_star, d_star = self.law.compute_optimal(c)
            if not (0 < n_star < np.inf and 0 < d_star < np.inf):
                continue  # beyond floating point: a law from data that hold none
            row: dict[str, Any] = {
                "flops": float(c),
                "n_star": float(n_star),
                "d_star": float(d_star),
                "loss_star": float(self.law.loss(n_star, d_star)),
            }
            if laws:
                best = [law.loss(*draws[r, :, i]) for r, law in enumerate(laws)]
                row["intervals"] = {
                    "n_star": _quantiles(draws[:, 0, i], tail),
                    "d_star": _quantiles(draws[:, 1, i], tail),
                    "loss_star": _quantiles(np.array(best), tail),
                }
            rows.append(row)
        return rows


class _Surface:
    """The objective on fixed data, theta = (ln A', ln B', ln E, alpha, beta) with ln N, ln D centred.

    Values are in units of delta^2, so that a residual of delta contributes 1/2.
    """

    def __init__(self, points: Points):
        self.mx, self.my = np.log(points.params).mean(), np.log(points.tokens).mean()
        self.x, self.y = np.log(points.params) - self.mx, np.log(points.tokens) - self.my
        self.log_loss = np.log(points.loss)

    def residual(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log residuals (n,) and the shares (3, n) that the terms A, B, E have of the prediction."""
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * self.x, b - beta * self.y, np.full_like(self.x, e)])
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        return top + np.log(total) - self.log_loss, shares / total

    def jacobian(self, shares: np.ndarray) -> np.ndarray:
        """d residual / d theta, (5, n)."""
        p, q, s = shares
        return np.stack([p, q, s, -p * self.x, -q * self.y])

    def __call__(self, theta: np.ndarray, weights: np.ndarray | float = 1.0):
        """(objective, gradient); weights (n,) are the bootstrap's counts."""
        r, shares = self.residual(theta)
        u = r / DELTA
        size = np.abs(u)
        value = np.sum(weights * np.where(size <= 1, 0.5 * u * u, size - 0.5))
        slope = weights * np.clip(u, -1, 1) / DELTA
        return value, self.jacobian(shares) @ slope

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        """(5, 5), exact up to the residuals that sit at the Huber kink."""
        r, shares = self.residual(theta)
        u = r / DELTA
        J = self.jacobian(shares)
        # Term k is linear in theta, so d2 LSE = sum_k share_k g_k g_k^T - J J^T.
        one, zero = np.ones_like(self.x), np.zeros_like(self.x)
        g = np.array([[one, zero, zero, -self.x, zero], [zero, one, zero, zero, -self.y],
                      [zero, zero, one, zero, zero]])  # fmt: skip
        slope = np.clip(u, -1, 1) / DELTA
        curved = np.einsum("kn,kin,kjn->ij", shares * slope, g, g) - (J * slope) @ J.T
        return (J * (np.abs(u) <= 1) / DELTA**2) @ J.T + curved

    def law(self, theta: np.ndarray) -> Law:
        a, b, e, alpha, beta = (float(v) for v in theta)
        with np.errstate(over="ignore"):
            E, A, B = np.exp([e, a + alpha * self.mx, b + beta * self.my]).tolist()
        return Law(E, A, B, alpha, beta)

    def starts(self) -> np.ndarray:
        """3^5 starts: the share of the loss that each term has at the centre, and the exponents."""
        level = np.exp(self.log_loss.mean())
        reducible = (0.05, 0.2, 0.6)
        grid = product(reducible, reducible, (0.3, 0.6, 0.9), (0.1, 0.35, 0.8), (0.1, 0.35, 0.8))
        return np.array([[*np.log(np.array(g[:3]) * level), *g[3:]] for g in grid])

    def minimise(self, start: np.ndarray, weights: np.ndarray | float = 1.0, rounds: int = 1):
        """L-BFGS, restarted up to `rounds` times or until it gains nothing: (theta, objective)."""
        theta, best = np.asarray(start, np.float64), np.inf
        for _ in range(rounds):
            found = minimize(self, theta, args=(weights,), jac=True, method="L-BFGS-B",
                             options={"maxiter": 500, "maxfun": 1000, "ftol": 1e-13, "gtol": 1e-7,
                                      "maxcor": 20})  # fmt: skip
            if not found.fun < best:
                break
            gained = best - found.fun
            theta, best = found.x, float(found.fun)
            if gained < 1e-12 * best:
                break
        return theta, best


def fit_parametric(points: Points, resamples: int = 1000, seed: int = 0) -> ParametricFit:
    """Fits L(N, D) to every row and bootstraps over rows.

    Args:
      points: at least 6 runs with at least 3 distinct N and 3 distinct D.
      resamples: bootstrap resamples (0: no intervals). seed: of the resampling.

    Raises:
      FitError: too few runs, or too few distinct sizes or token counts.
    """
    _check(points)
    surface = _Surface(points)
    theta, best, found = _solve(surface, surface.starts())
    objectives = np.array([f for _, f in found])
    hits = float(np.mean(objectives <= best * (1 + HIT) + 1e-9))
    residuals, _ = surface.residual(theta)
    eigen = np.linalg.eigvalsh(surface.hessian(theta))
    condition = float(eigen[-1] / eigen[0]) if eigen[0] > 0 else float("inf")
    refused, warnings = _judge(surface, theta, condition)
    spread = 1.4826 * np.median(np.abs(residuals - np.median(residuals)))
    far = np.abs(residuals - np.median(residuals)) > max(3 * spread, 1e-12)
    others = _other_optima(found, theta, best)
    return ParametricFit(
        law=surface.law(theta),
        objective=best * DELTA**2,
        n=len(points),
        resampled=_bootstrap(surface, [theta, *others], resamples, seed),
        hit_rate=hits,
        condition=condition,
        residuals=residuals,
        outliers=tuple(points.labels[i] for i in np.flatnonzero(far)),
        refused=refused,
        warnings=warnings,
    )


def fit_law(points: Points) -> Law:
    """The law alone, from every ninth start and without a bootstrap; raises as `fit_parametric`."""
    _check(points)
    surface = _Surface(points)
    return surface.law(_solve(surface, surface.starts()[4::9])[0])


def _solve(surface: _Surface, starts: np.ndarray) -> tuple[np.ndarray, float, list]:
    """(theta, objective) of the best end point, polished, and the end points of all starts."""
    found = [surface.minimise(start) for start in starts]
    theta, _ = min(found, key=lambda f: f[1])
    return *_newton(surface, *surface.minimise(theta, rounds=50)), found


def _check(points: Points) -> None:
    sizes, tokens = len(np.unique(points.params)), len(np.unique(points.tokens))
    if len(points) < 6:
        raise FitError(
            f"approach 3 fits 5 coefficients and needs at least 6 runs, not {len(points)}"
        )
    if sizes < 3 or tokens < 3:
        raise FitError(
            f"approach 3 needs at least 3 distinct sizes and 3 distinct token counts; the "
            f"{len(points)} runs have {sizes} and {tokens}"
        )
    spread = np.linalg.svd(
        np.stack([np.log(v) - np.log(v).mean() for v in (points.params, points.tokens)]),
        compute_uv=False,
    )
    if spread[1] < 0.03 * spread[0]:
        raise FitError(
            "N and D lie on one line in logs (a single budget, or a fixed D/N): approach 3 cannot tell "
            "their effects apart; add runs off that line"
        )


def _newton(surface: _Surface, theta: np.ndarray, best: float) -> tuple[np.ndarray, float]:
    """Newton steps with halving, while they lower the objective: the last digits."""
    for _ in range(50):
        _, gradient = surface(theta)
        step = np.linalg.lstsq(surface.hessian(theta), gradient, rcond=1e-14)[0]
        trials = [theta - step * 0.5**k for k in range(12)]
        values = [surface(t)[0] for t in trials]
        k = int(np.argmin(values))
        if not values[k] < best:
            break
        theta, best = trials[k], float(values[k])
    return theta, best


def _judge(surface: _Surface, theta: np.ndarray, condition: float):
    """(refused, warnings): which terms the data do not determine."""
    law = surface.law(theta)
    _, shares = surface.residual(theta)
    refused = None
    for name, share, exponent in (("N", shares[0], law.alpha), ("D", shares[1], law.beta)):
        if exponent <= 0 or share.max() < 1e-4:
            refused = (
                f"the loss does not fall with {name} in this table (exponent {exponent:.3g}, at most "
                f"{share.max():.1e} of the loss): there is no compute-optimal split"
            )
    if not refused and not 0 < law.G < np.inf:
        refused = "the coefficients leave floating point: the table does not determine a law"
    warnings = []
    if shares[2].max() < 1e-3:
        warnings.append("E ran to 0: the table does not bend enough to show an irreducible loss")
    if condition > 1e8:
        warnings.append(f"the Hessian's condition number is {condition:.1e}: a flat valley of laws")
    return refused, tuple(warnings)


def _other_optima(found: list, theta: np.ndarray, best: float, count: int = 2) -> list[np.ndarray]:
    """End points of other starts, distinct from the optimum, best first: seeds for the bootstrap."""
    others: list[np.ndarray] = []
    for end, value in sorted(found, key=lambda f: f[1]):
        new = all(np.abs(end - t).max() > 0.05 for t in [theta, *others])
        if new and value < 10 * best + 1e3:
            others.append(end)
        if len(others) == count:
            break
    return others


def _bootstrap(surface: _Surface, starts: list, resamples: int, seed: int) -> np.ndarray:
    """Laws refitted to rows drawn with replacement, (resamples, 5)."""
    rng, n = np.random.default_rng(seed), len(surface.x)
    laws = np.empty((resamples, 5))
    for i in range(resamples):
        counts = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        ends = [surface.minimise(start, counts, rounds=2) for start in starts]
        law = surface.law(min(ends, key=lambda end: end[1])[0])
        laws[i] = law.E, law.A, law.B, law.alpha, law.beta
    return laws


def _quantiles(values: np.ndarray, tail: float) -> list[float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return [float("nan"), float("nan")]
    return [float(q) for q in np.quantile(finite, [tail, 1 - tail])]
