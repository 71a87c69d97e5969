"""The one solver of every law: damped Newton on many tables at once, from a grid of exponents.

A start fixes the exponents and takes the linear terms from non-negative least squares
(`linear_start`, variable projection); Newton then moves both together. Derivatives are
complex-step derivatives of the law's own formula (Squire & Trapp 1998), exact to rounding, so that
a law is its formula and its starts and nothing else; `surface.Surface` writes them out for
approach 3, where tables are large and resamples many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import nnls

from rlhf_jax.evals.intervals import resampled_rows

HIT = 1e-6  # a start hits when its objective is within this share of the best
STEP = 1e-20  # of the complex-step derivative; nothing is subtracted, so it can be this small
BLOCK = 250  # tables in memory at once, fewer where rows are many:
ELEMENTS = 250_000  # residuals in memory at once
MANY = 1000  # runs; of more, starts are tried on a sample
FLAT = 1e-4  # a parameter that moves no prediction by this share, e-fold for e-fold, is unknown
SINGULAR = 1e-11  # of the scaled normal equations' eigenvalues: parameters not told apart


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

    @property
    def unit(self) -> float:
        """Residuals are divided by it, so that a residual of delta contributes 1/2."""
        return 1.0 if np.isinf(self.delta) else self.delta

    def total(self, r: np.ndarray, weights: np.ndarray | float = 1.0):
        """Sums (...,) of Huber(r), r (..., n), in units of unit^2, and slopes (..., n)."""
        size = np.abs(r) / self.unit
        inner = np.minimum(size, self.delta / self.unit)
        with np.errstate(invalid="ignore"):  # beyond floating point: not a number
            value = np.sum(weights * inner * (size - 0.5 * inner), -1)
        return value, weights * np.copysign(inner, r) / self.unit


HUBER_LOG = Objective(log=True, delta=1e-3)  # Hoffmann 2022, eq. 3
HUBER = Objective(log=False, delta=1e-3)
LEAST_SQUARES = Objective(log=False, delta=float("inf"))


@dataclass(frozen=True)
class Found:
    """The optimum: theta (free,), its objective in units of unit^2, the share of starts that end
    there, and end points of other starts that are near as good."""

    theta: np.ndarray
    objective: float
    hit_rate: float
    others: tuple[np.ndarray, ...]


class Problem:
    """One law on fixed data. theta: (..., free) unconstrained coordinates, held ones left out.

    Args:
      law_class: a `law.Law`. columns: its INPUTS, each (n,). target: observed, (n,).
      held: parameters that keep a given value.
    """

    ROUNDS = 4  # descents, each from the end of the one before: narrow valleys stop the first

    def __init__(
        self,
        law_class: Any,
        columns: Mapping[str, np.ndarray],
        target: np.ndarray,
        objective: Objective,
        held: Mapping[str, float],
    ):
        self.law_class, self.columns, self.target = law_class, columns, target
        self.objective, self.held = objective, held
        self.names = law_class.names()
        self.free = np.array([i for i, name in enumerate(self.names) if name not in held])
        self.positive = np.array([name not in law_class.SIGNED for name in self.names])
        self.fixed = np.array([held.get(name, 1.0) for name in self.names], np.float64)
        self.observed = np.log(target) if objective.log else target

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: np.ndarray) -> Problem:
        """The same problem on some of its rows."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return type(self)(self.law_class, columns, self.target[rows], self.objective, self.held)

    @cached_property
    def sample(self) -> Problem:
        """The problem that starts are tried on: at most `MANY` rows, drawn once."""
        if len(self) <= MANY:
            return self
        return self.take(np.random.default_rng(0).choice(len(self), MANY, replace=False))

    def moved(self, theta: np.ndarray, sample: Any) -> np.ndarray:
        """theta (free,) of the sample in the coordinates of all rows."""
        return theta

    def theta(self, values: np.ndarray) -> np.ndarray:
        """Parameters (p,) to coordinates (free,): ln of those that must be positive."""
        values = np.asarray(values, np.float64)
        logs = np.log(np.where(self.positive, values, 1))
        return np.where(self.positive, logs, values)[self.free]

    def values(self, theta: np.ndarray) -> np.ndarray:
        """Coordinates (..., free) to parameters (..., p), in theta's dtype."""
        values = np.broadcast_to(self.fixed, (*theta.shape[:-1], len(self.names)))
        values = values.astype(theta.dtype)
        positive = self.positive[self.free]
        with np.errstate(all="ignore"):
            logs = np.exp(np.where(positive, theta, 0))
        values[..., self.free] = np.where(positive, logs, theta)
        return values

    def starts(self) -> np.ndarray:
        """(s, free): what the law starts from; starts that differ in held parameters are one."""
        starts = self.law_class.starts(self.columns, self.target)
        return np.unique([self.theta(start) for start in starts], axis=0)

    # --- residuals and derivatives, of R tables at once ---------------------------------------

    def _slopes(self, theta: np.ndarray, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (R, n) and their derivatives (free - first, R, n) in the criterion's
        sense."""
        free, out = theta.shape[1], []
        for j in range(first, free):
            step = theta + 1j * STEP * (np.arange(free) == j)
            with np.errstate(all="ignore"):
                said = self.law_class.formula(self.values(step).T[..., None], self.columns)
                out.append(np.log(said) if self.objective.log else said)
        return out[0].real, np.array([said.imag for said in out]) / STEP

    def residual(self, theta: np.ndarray, observed: np.ndarray | None = None):
        """(residuals (R, n), state (k, R, n)) at theta (R, free); the state is the derivatives."""
        said, J = self._slopes(theta)
        return said - (self.observed if observed is None else observed), J

    def jacobian(self, state: np.ndarray) -> np.ndarray:
        """d residual / d theta, (free, R, n)."""
        return state

    def gradient(self, state: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """(R, free) from the slopes (R, n) of the Huber sum."""
        return np.einsum("frn,rn->rf", state, slope)

    def curvature(self, theta, r, state, weights) -> tuple[np.ndarray, np.ndarray]:
        """Hessians (R, free, free) and the matrices of iteratively reweighted least squares.

        Runs at the Huber kink count as on the side where they are. The second majorise the Huber
        function, so they are a metric in which steps are damped.
        """
        _, slope = self.objective.total(r, weights)
        inner, reweighted = self.weights(r, weights)
        H, free, h = np.empty((len(theta), *[theta.shape[1]] * 2)), theta.shape[1], 1e-7
        for k in range(free):
            curved = self._slopes(theta + h * (np.arange(free) == k), k)[1] - state[k:]
            H[:, k, k:] = H[:, k:, k] = np.einsum("frn,rn->rf", curved, slope) / h
        J = np.moveaxis(state, 0, 1)
        H += (J * inner[:, None]) @ J.swapaxes(1, 2)
        return H, (J * reweighted[:, None]) @ J.swapaxes(1, 2)

    def weights(self, r: np.ndarray, weights: np.ndarray | float):
        """Second derivatives of the Huber sum in r, and what majorises them, (R, n) each."""
        size, unit = np.abs(r), self.objective.unit
        return (
            weights * (size <= self.objective.delta) / unit**2,
            weights / np.maximum(size / self.objective.delta, 1) / unit**2,
        )

    def __call__(self, theta: np.ndarray, weights: np.ndarray | float = 1.0):
        """(objective in units of unit^2, gradient) at theta (free,)."""
        r, state = self.residual(theta[None])
        value, slope = self.objective.total(r, weights)
        return float(value[0]), self.gradient(state, slope)[0]

    def hessian(self, theta: np.ndarray) -> np.ndarray:
        """(free, free), exact up to the residuals that sit at the Huber kink."""
        r, state = self.residual(theta[None])
        return self.curvature(theta[None], r, state, 1.0)[0][0]

    @property
    def block(self) -> int:
        """Tables in memory at once."""
        return max(1, min(BLOCK, ELEMENTS // len(self)))

    def descend(
        self,
        theta: np.ndarray,
        weights: np.ndarray | None = None,
        observed: np.ndarray | None = None,
        steps: int = 200,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Damped Newton on R tables at once, each from its own theta (R, free).

        Args:
          weights: counts of the runs in each table, (R, n), default 1.
          observed: each table's ln losses (or targets), (R, n), default the data's own.

        Returns:
          (theta, objective), (R, free) and (R,); inf where a table's law cannot be evaluated.
        """
        shape = (len(theta), len(self))
        theta, values = np.array(theta, np.float64), np.empty(len(theta))
        weights = np.broadcast_to(1.0, shape) if weights is None else weights
        observed = np.broadcast_to(self.observed if observed is None else observed, shape)
        for i in range(0, len(theta), self.block):
            part = slice(i, i + self.block)
            for _ in range(self.ROUNDS):
                theta[part], values[part] = self._descend(
                    theta[part], weights[part], observed[part], steps
                )
        return theta, values

    def _descend(self, theta, weights, observed, steps):
        r, state = self.residual(theta, observed)
        best, slope = self.objective.total(r, weights)
        best = np.where(np.isfinite(best), best, np.inf)
        damping, quiet = np.full(len(theta), 1e-2), np.zeros(len(theta), int)
        left = np.arange(len(theta))
        H, metric = self.curvature(theta, r, state, weights)
        for _ in range(steps):
            w, gradient = weights[left], self.gradient(state, slope)
            ridge = 1e-12 * np.trace(metric, axis1=1, axis2=2)[:, None, None] + 1e-300
            A = H + damping[left, None, None] * metric + ridge * np.eye(theta.shape[1])
            step = np.clip(-np.linalg.solve(A, gradient[..., None])[..., 0], -1, 1)
            trial = theta[left] + step
            r_new, state_new = self.residual(trial, observed[left])
            value, slope_new = self.objective.total(r_new, w)
            better = value < best[left]
            with np.errstate(invalid="ignore"):
                gain = np.where(better, best[left] - value, 0.0)
                to_gain = -np.einsum("rk,rk->r", gradient, step)
                there = (to_gain >= 0) & (to_gain < 1e-11 * best[left]) & (damping[left] <= 1e-2)
            quiet[left] = np.where(better & (gain > 1e-10 * best[left]), 0, quiet[left] + 1)
            damping[left] = np.clip(damping[left] * np.where(better, 0.2, 5.0), 1e-8, 1e6)
            moved = left[better]
            theta[moved], best[moved] = trial[better], value[better]
            r[better], slope[better] = r_new[better], slope_new[better]
            state[:, better] = state_new[:, better]
            going = (quiet[left] < 8) & ~there & (best[left] > 0)
            if not going.any():
                break
            new = going & better
            if new.any():
                H[new], metric[new] = self.curvature(
                    theta[left[new]], r[new], state[:, new], w[new]
                )
            left, r, slope, state = left[going], r[going], slope[going], state[:, going]
            H, metric = H[going], metric[going]
        return theta, best

    def polish(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """(theta, objective): Newton steps with halving, while they lower it: the last digits."""
        ends, values = self.descend(theta[None])
        theta, best = ends[0], float(values[0])
        for _ in range(50):
            H, gradient = self.hessian(theta), self(theta)[1]
            if not (np.isfinite(H).all() and np.isfinite(gradient).all()):
                break
            step = np.linalg.lstsq(H, gradient, rcond=1e-14)[0]
            trials = [theta - step * 0.5**k for k in range(12)]
            found = [self(trial)[0] for trial in trials]
            k = int(np.nanargmin([*found, np.inf]))
            if k == len(trials) or not found[k] < best:
                break
            theta, best = trials[k], found[k]
        return theta, best

    def search(self) -> Found:
        """The optimum: every start on the sample, the best of them and its rivals on all rows."""
        sample = self.sample
        ends, values = sample.descend(sample.starts())
        theta, best = sample.polish(ends[np.argmin(values)])
        hit_rate = float(np.mean(values <= best * (1 + HIT) + 1e-9))
        others = _rivals(ends, values, theta, best)
        if sample is not self:
            found = [self.polish(self.moved(t, sample)) for t in (theta, *others)]
            found.sort(key=lambda end: end[1])
            theta, best = found[0]
            near = best * (1 + 10 / np.sqrt(len(self)))
            others = [t for t, value in found[1:] if value < near and _apart(t, [theta])]
        return Found(theta, best, hit_rate, tuple(others))

    def lowest(self, starts: Sequence[np.ndarray], count: int, **tables: Any) -> np.ndarray:
        """Parameters (count, p) of the lower of the ends of `starts` in each of `count` tables
        (`weights` or `observed`, as `descend` takes them)."""
        best, values = self.descend(np.tile(starts[0], (count, 1)), **tables)
        for start in starts[1:]:
            ends, found = self.descend(np.tile(start, (count, 1)), **tables)
            lower = found < values
            best[lower], values[lower] = ends[lower], found[lower]
        return self.values(best)

    def bootstrap(self, found: Found, resamples: int, seed: int) -> np.ndarray:
        """Parameters refitted to rows drawn with replacement, (resamples, p)."""
        n, rng = len(self), np.random.default_rng(seed)
        drawn = [np.empty((0, len(self.names)))]
        for rows in resampled_rows(n, resamples, rng):
            counts = np.array([np.bincount(row, minlength=n) for row in rows], np.float64)
            drawn.append(self.lowest([found.theta, *found.others], len(rows), weights=counts))
        return np.concatenate(drawn)

    def judge(self, theta: np.ndarray) -> tuple[str | None, tuple[str, ...], float]:
        """(refused, warnings, condition): which parameters the table does not determine.

        One whose e-fold change moves no prediction by `FLAT`, or several that the residuals'
        normal equations cannot tell apart.
        """
        names, floor, warnings = [self.names[i] for i in self.free], self.law_class.FLOOR, []
        J = self.jacobian(self.residual(theta[None])[1])[:, 0].T
        size = np.abs(J).max(0)
        flat = [name for name, s in zip(names, size, strict=True) if not s > FLAT]
        if floor in flat:
            flat.remove(floor)
            warnings.append(f"{floor} ran to 0: the table does not bend enough to show a floor")
        refused = None
        if flat:
            refused = (
                f"the table does not determine {', '.join(flat)}: a change by a factor of e moves "
                f"no prediction by {FLAT:g}"
            )
        H = self.hessian(theta)
        scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(H)), 1e-300))
        condition = condition_of(H * scale * scale[:, None])
        keep = np.flatnonzero(size > FLAT)
        if refused is None and len(keep):
            unit = J[:, keep] / np.linalg.norm(J[:, keep], axis=0)
            values, vectors = np.linalg.eigh(unit.T @ unit)
            if values[0] < SINGULAR * values[-1]:
                mixed = [names[keep[i]] for i in np.flatnonzero(np.abs(vectors[:, 0]) > 0.1)]
                refused = (
                    f"the table cannot tell {', '.join(mixed)} apart: runs vary along one line "
                    f"only; add runs that vary {', '.join(self.law_class.INPUTS)} on their own"
                )
        if condition > 1e10:
            warnings.append(
                f"the scaled Hessian's condition number is {condition:.1e}: a flat valley"
            )
        return refused, tuple(warnings), condition


def condition_of(H: np.ndarray) -> float:
    """Condition number of a symmetric matrix; inf unless positive definite."""
    eigen = np.linalg.eigvalsh(H) if np.isfinite(H).all() else np.zeros(1)
    return float(eigen[-1] / eigen[0]) if eigen[0] > 0 else float("inf")


def _apart(theta: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    return all(np.abs(theta - other).max() > 0.05 for other in others)


def _rivals(
    ends: np.ndarray, values: np.ndarray, theta: np.ndarray, best: float, count: int = 2
) -> list[np.ndarray]:
    """Ends of other starts, distinct from the optimum, best first: a resample may prefer one."""
    found: list[np.ndarray] = []
    for i in np.argsort(values, kind="stable"):
        if values[i] < 10 * best + 1e3 and _apart(ends[i], [theta, *found]):
            found.append(ends[i])
        if len(found) == count:
            break
    return found


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
