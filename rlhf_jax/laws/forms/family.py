"""One interface for every scaling law: parameters, predict, fit, intervals.

A law is a frozen dataclass whose fields are its float parameters. What a law adds is its formula,
its starts, and its source; `fitting.fit` does the rest in the same way for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from rlhf_jax.laws.forms.solve import HUBER, HUBER_LOG, Objective
from rlhf_jax.laws.points import FitError, Points, plain
from rlhf_jax.study.config import suggest

OUTLIERS = "rows beyond 3 robust standard deviations are named and kept"


@dataclass(frozen=True)
class ScalingLaw:
    """Base of the laws; a subclass has float fields, all fitted.

    Class attributes:
      NAME: in `LAWS`. INPUTS: columns of `Points` that `predict` takes. TARGET: "loss" (nats a
      token) or "error" (a rate). SOURCE: citation. SIGNED: parameters that may be negative (the
      others are fitted as logs). FLOOR: the parameter that may vanish without spoiling the rest.
      DERIVED: properties that are reported beside the parameters.
    """

    NAME: ClassVar[str]
    INPUTS: ClassVar[tuple[str, ...]]
    TARGET: ClassVar[str] = "loss"
    SOURCE: ClassVar[str]
    SIGNED: ClassVar[frozenset[str]] = frozenset()
    FLOOR: ClassVar[str | None] = None
    DERIVED: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))

    @property
    def values(self) -> np.ndarray:
        """Parameters in the order of `names()`, (p,)."""
        return np.array([getattr(self, name) for name in self.names()], np.float64)

    @classmethod
    def formula(cls, p: Any, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """The prediction from parameters p, (p,) or (p, k, 1), and columns (n,): (n,) or (k, n).

        p may be complex (that is how derivatives are taken): use functions that are analytic,
        and compare real parts alone.
        """
        raise NotImplementedError

    @classmethod
    def starts(cls, columns: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        """Parameters to start fits from, (starts, p)."""
        raise NotImplementedError

    def predict(self, **columns: Any) -> np.ndarray:
        """The law at columns named in INPUTS (arrays that broadcast, or numbers).

        Raises:
          FitError: a column is missing or is not one of INPUTS.
        """
        for name in columns:
            if name not in self.INPUTS:
                raise FitError(
                    f"{self.NAME} takes {', '.join(self.INPUTS)}, not {name!r}."
                    f"{suggest(name, self.INPUTS)}"
                )
        missing = [name for name in self.INPUTS if name not in columns]
        if missing:
            raise FitError(f"{self.NAME} needs {', '.join(missing)} to predict; give it")
        arrays = {name: np.asarray(columns[name], np.float64) for name in self.INPUTS}
        with np.errstate(all="ignore"):
            return np.asarray(self.formula(self.values, arrays))

    @classmethod
    def objective(cls) -> Objective:
        """Huber of log residuals; of plain ones for an error rate, whose scale is absolute."""
        return HUBER if cls.TARGET == "error" else HUBER_LOG

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
        """`fit` by the law's own solver; None: the generic one."""
        return None

    @classmethod
    def pointed(
        cls, points: Points, objective: Objective | None, held: Mapping[str, float]
    ) -> ScalingLaw | None:
        """The fitted law alone by the law's own solver; None: the generic one."""
        return None


@dataclass(frozen=True)
class LawFit:
    """A fitted law with how it was found and how far it can be trusted.

    Attributes:
      law: the optimum. objective: its value. criterion: what was minimised. n: runs fitted.
      resampled: parameters of the bootstrap, (resamples, p). level: of `to_json`'s intervals.
      hit_rate: share of starts that end at the optimum.
      condition: condition number of the Hessian scaled to unit diagonal.
      residuals: (n,), in the criterion's sense, predicted less observed.
      outliers: labels of rows beyond 3 robust standard deviations; all are kept in the fit.
      extrapolation: as of `rlhf_jax.laws.fits.extrapolation`.
      refused: which parameters the table does not determine, or None. warnings: what to know
      before using it. notes: what was chosen or computed. points: the runs fitted.
    """

    law: ScalingLaw
    objective: float
    criterion: str
    n: int
    resampled: np.ndarray
    seed: int
    level: float
    held: Mapping[str, float]
    hit_rate: float
    condition: float
    residuals: np.ndarray
    outliers: tuple[str, ...]
    extrapolation: Mapping[str, Any]
    refused: str | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    points: Points | None = field(default=None, repr=False)

    def intervals(self, level: float | None = None) -> dict[str, list[float]]:
        """Percentile intervals of every fitted parameter and derived quantity; {} unsampled."""
        if not len(self.resampled):
            return {}
        tail = (1 - (self.level if level is None else level)) / 2
        laws = [type(self.law)(*row) for row in self.resampled.tolist()]
        names = [name for name in self.law.names() if name not in self.held]
        found = {}
        for name in (*names, *self.law.DERIVED):
            draws = np.array([getattr(law, name) for law in laws])
            draws = draws[np.isfinite(draws)]
            if len(draws):
                found[name] = [float(q) for q in np.quantile(draws, [tail, 1 - tail])]
        return found

    def band(self, level: float | None = None, **columns: Any) -> tuple[np.ndarray, np.ndarray]:
        """Percentile band (low, high) of the prediction at `columns`, over the resamples."""
        if not len(self.resampled):
            raise FitError("no resamples were drawn: fit with resamples=1000 to have a band")
        tail = (1 - (self.level if level is None else level)) / 2
        laws = [type(self.law)(*row) for row in self.resampled.tolist()]
        draws = np.array([law.predict(**columns) for law in laws])
        low, high = np.nanquantile(draws, [tail, 1 - tail], axis=0)
        return low, high

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: what is not finite, or was refused, is None."""
        law = self.law
        rows: list[dict[str, Any]] = []
        if self.points is not None:
            for i, label in enumerate(self.points.labels):
                at = {name: float(getattr(self.points, name)[i]) for name in law.INPUTS}
                rows.append({"label": label, **at, "residual": float(self.residuals[i])})
        return plain(
            {
                "law": law.NAME,
                "source": law.SOURCE,
                "inputs": list(law.INPUTS),
                "target": law.TARGET,
                "parameters": {name: getattr(law, name) for name in law.names()},
                "derived": {
                    name: None if self.refused else getattr(law, name) for name in law.DERIVED
                },
                "held": dict(self.held),
                "criterion": self.criterion,
                "objective": self.objective,
                "n": self.n,
                "resamples": len(self.resampled),
                "seed": self.seed,
                "level": self.level,
                "intervals": self.intervals(),
                "hit_rate": self.hit_rate,
                "condition": self.condition,
                "outliers": {"policy": OUTLIERS, "rows": list(self.outliers)},
                "residuals": rows,
                "extrapolation": dict(self.extrapolation),
                "refused": self.refused,
                "warnings": list(self.warnings),
                "notes": list(self.notes),
            }
        )
