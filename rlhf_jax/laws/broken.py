"""Broken neural scaling law: a smooth chain of power laws in one quantity.

Caballero et al. 2022, "Broken Neural Scaling Laws", eq. 1. A law with n breaks has 3 + 3 n
parameters; the number of breaks is chosen by how well it extrapolates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from itertools import combinations, product
from typing import Any, ClassVar

import numpy as np

from rlhf_jax.laws.fit import ahead
from rlhf_jax.laws.law import Law
from rlhf_jax.laws.points import FitError, Points
from rlhf_jax.laws.solve import Objective, linear_start

MOST = 3  # breaks tried
STARTS = 10
SLOPES = (-0.1, 0.03, 0.1, 0.2, 0.4)  # of ln (y - a) against -ln x
TOLERANCE = 0.1  # a break must lower the held-out error by this share to be kept


@dataclass(frozen=True)
class Broken(Law):
    """y = a + b x^-c0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i).

    x is the one column of INPUTS. The slope is -c0 before the first break d_1 and -(c0 + ... + c_i)
    after break i; f_i is how many e-folds of x the bend takes. This class is the family: fitting it
    fits 0 to 3 breaks and gives an instance of one of its subclasses (`broken(column, breaks)`).
    """

    a: float
    b: float
    c0: float

    NAME = "broken"
    INPUTS = ("flops",)
    SOURCE = "Caballero et al. 2022, Broken Neural Scaling Laws, eq. 1"
    SIGNED = frozenset({"c0", *(f"c{i + 1}" for i in range(MOST))})
    FLOOR = "a"
    BREAKS: ClassVar[int | None] = None

    @classmethod
    def formula(cls, p: Any, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        log_x = np.log(columns[cls.INPUTS[0]])
        exponent = np.log(p[1]) - p[2] * log_x
        for i in range(cls.BREAKS or 0):
            c, d, f = p[3 + 3 * i : 6 + 3 * i]
            exponent = exponent - c * f * _softplus((log_x - np.log(d)) / f)
        return p[0] + np.exp(exponent)

    @classmethod
    def starts(cls, columns: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        """The best `STARTS` of a grid of shapes: slopes between breaks, places, and widths.

        Given those the law is linear in a and b.
        """
        x = columns[cls.INPUTS[0]]
        log_x = np.log(x)
        breaks = cls.BREAKS or 0
        places = combinations(np.quantile(log_x, (0.15, 0.3, 0.5, 0.7, 0.85)), breaks)
        grid = product(list(places), product(SLOPES, repeat=breaks + 1), (0.3, 1.0))
        scored = []
        for at, slopes, width in grid:
            bends = np.diff(slopes)
            if not bends.all():
                continue  # a break without a bend is the law with one fewer
            log_shape = -slopes[0] * log_x
            for place, bend in zip(at, bends, strict=True):
                log_shape = log_shape - bend * width * _softplus((log_x - place) / width)
            shape = np.exp(log_shape)
            a, b = linear_start([np.ones_like(x), shape], target)
            bent = [
                v
                for place, bend in zip(at, bends, strict=True)
                for v in (bend, np.exp(place), width)
            ]
            misfit = np.abs(np.log((a + b * shape) / target)).sum()
            scored.append((misfit, [a, b, slopes[0], *bent]))
        scored.sort(key=lambda s: s[0])
        return np.array([start for _, start in scored[:STARTS]])

    @classmethod
    def chosen(
        cls, points: Points, objective: Objective | None, held: Mapping[str, float]
    ) -> tuple[type[Law], tuple[str, ...]]:
        if cls.BREAKS is not None:
            return cls, ()
        return choose(points, cls.INPUTS[0], objective, held)


def choose(
    points: Points,
    column: str,
    objective: Objective | None = None,
    held: Mapping[str, float] | None = None,
) -> tuple[type[Broken], tuple[str, ...]]:
    """The law with the fewest breaks whose held-out error is within `TOLERANCE` of the least.

    Each number of breaks is fitted to the 75% of runs of least compute and scored above; a fit to
    all runs would always prefer more breaks. Fewest within a tolerance, since a handful of
    held-out runs does not order errors that are nearly equal. Returns the class and what was
    compared, in words.

    Raises:
      FitError: too few runs even without a break.
    """
    errors: dict[int, float] = {}
    reason = ""
    for breaks in range(MOST + 1):
        try:
            broken(column, breaks).problem(points, objective, held or {})
        except FitError as e:
            if not breaks:
                raise
            reason = f"; more breaks were not tried: {e}"
            break
        score = ahead(broken(column, breaks), points, objective, held)
        error = score.get("rms_log_error", np.nan)
        if "refused" in score:
            reason = f"; more breaks were not tried: {score['refused']}"
            break
        errors[breaks] = error if np.isfinite(error) else np.inf
    if not errors:
        return broken(column, 0), (f"0 breaks: held-out error is unknown{reason}",)
    least = min(errors.values())
    chosen = min(k for k, e in errors.items() if e <= max(least * (1 + TOLERANCE), 1e-9))
    listed = ", ".join(f"{k}: {e:.3g}" for k, e in errors.items())
    return broken(column, chosen), (
        f"{chosen} breaks, the fewest within {TOLERANCE:.0%} of the least held-out rms log error "
        f"({listed}){reason}",
    )


@cache
def broken(column: str = "flops", breaks: int | None = None) -> type[Broken]:
    """The law on "flops", "params" or "tokens" with a number of breaks, or with None to choose.

    Raises:
      FitError: another column, or breaks not in 0 to 3.
    """
    if column not in ("flops", "params", "tokens"):
        raise FitError(f"a broken law is a function of flops, params or tokens, not of {column!r}")
    if breaks is None:
        return type("Broken", (Broken,), {"INPUTS": (column,), "__module__": __name__})
    if breaks not in range(MOST + 1):
        raise FitError(f"breaks is {breaks}; it must be 0 to {MOST}")
    extra = [(f"{name}{i + 1}", float, field()) for i in range(breaks) for name in "cdf"]
    namespace = {"INPUTS": (column,), "BREAKS": breaks, "__module__": __name__}
    return make_dataclass(
        f"Broken{breaks}", extra, bases=(Broken,), namespace=namespace, frozen=True
    )


def _softplus(z: Any) -> Any:
    """ln(1 + exp(z)), also of complex z."""
    positive = np.real(z) > 0
    return np.where(positive, z, 0) + np.log1p(np.exp(np.where(positive, -z, z)))
