"""One interface for every scaling law: parameters, predict, fit, intervals.

A law is a frozen dataclass whose fields are its float parameters. What a law adds is its formula,
its starts, and its source; `fit.fit` does the rest in the same way for all. A new one is a class of
its own that `rlhf-jax fit --law MODULE:CLASS` names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from rlhf_jax.evals.intervals import percentile_interval
from rlhf_jax.laws.points import FitError, Points, plain
from rlhf_jax.laws.solve import HUBER, HUBER_LOG, Objective, Problem
from rlhf_jax.study.messages import suggest

OUTLIERS = "rows beyond 3 robust standard deviations are named and kept"


@dataclass(frozen=True)
class Law(ABC):
    """Base of the laws; a subclass has float fields, all fitted.

    Class attributes:
      NAME: as `--law` has it. INPUTS: columns of `Points` that `predict` takes. TARGET: "loss"
      (nats a token) or "error" (a rate). SOURCE: citation. SIGNED: parameters that may be negative
      (the others are fitted as logs). FLOOR: the parameter that may vanish without spoiling the
      rest. DERIVED: properties that are reported beside the parameters.
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
    @abstractmethod
    def formula(cls, p: Any, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """The prediction from parameters p, (p,) or (p, k, 1), and columns (n,): (n,) or (k, n).

        p may be complex (that is how derivatives are taken): use functions that are analytic,
        and compare real parts alone.
        """

    @classmethod
    @abstractmethod
    def starts(cls, columns: Mapping[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        """Parameters to start fits from, (starts, p): a grid of exponents, with the linear terms
        of `solve.linear_start`."""

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
    def chosen(
        cls, points: Points, objective: Objective | None, held: Mapping[str, float]
    ) -> tuple[type[Law], tuple[str, ...]]:
        """The law to fit, and notes on the choice: this one, unless it stands for several."""
        return cls, ()

    @classmethod
    def problem(
        cls, points: Points, objective: Objective | None, held: Mapping[str, float]
    ) -> Problem:
        """The law on a table's columns.

        Raises:
          FitError: a column is missing, there are too few runs or distinct inputs, or `held` names
            no parameter.
        """
        names = cls.names()
        for name, value in held.items():
            if name not in names:
                raise FitError(
                    f"{cls.NAME} has no parameter {name!r} to hold.{suggest(name, names)}"
                )
            if name not in cls.SIGNED and not value > 0:
                raise FitError(f"{cls.NAME}: {name} is held at {value}; it must be positive")
        columns = {}
        for name in (*cls.INPUTS, cls.TARGET):
            columns[name] = getattr(points, name)
            if columns[name] is None:
                raise FitError(
                    f"the law {cls.NAME!r} needs the column {name!r}, which this table does "
                    f"not have; say which one it is: --columns {name}=NAME"
                )
        target, free = columns.pop(cls.TARGET), len(names) - len(held)
        if free == 0:
            raise FitError(f"all parameters of {cls.NAME} are held: nothing is left to fit")
        if len(points) <= free:
            raise FitError(
                f"{cls.NAME} fits {free} parameters and needs at least {free + 1} runs, "
                f"not {len(points)}"
            )
        distinct = len(np.unique(np.stack(list(columns.values())), axis=1).T)
        if distinct < free:
            raise FitError(
                f"{cls.NAME} fits {free} parameters and needs as many distinct values of "
                f"{', '.join(cls.INPUTS)}; the {len(points)} runs have {distinct}"
            )
        if np.ptp(target) == 0:
            raise FitError(
                f"all {len(target)} values of {cls.TARGET} are {target[0]:g}: nothing to fit"
            )
        return Problem(cls, columns, target, objective or cls.objective(), held)


@dataclass(frozen=True)
class LawFit:
    """A fitted law with how it was found and how far it can be trusted.

    Attributes:
      law: the optimum. objective: its value. criterion: what was minimised. n: runs fitted.
      resampled: parameters of the bootstrap, (resamples, p). level: of `to_json`'s intervals.
      hit_rate: share of starts that end at the optimum.
      condition: condition number of the Hessian (scaled to unit diagonal, but for approach 3).
      residuals: (n,), in the criterion's sense, predicted less observed.
      outliers: labels of rows beyond 3 robust standard deviations; all are kept in the fit.
      refused: which parameters the table does not determine, or None. warnings: what to know
      before using it. notes: what was chosen or computed. points: the runs fitted.
      ahead: computes `extrapolation`.
    """

    law: Any
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
    refused: str | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    points: Points = field(repr=False)
    ahead: Callable[[], dict[str, Any]] = field(repr=False)

    @cached_property
    def extrapolation(self) -> dict[str, Any]:
        """As of `fit.extrapolation`: the law of the runs of less compute on the rest."""
        return self.ahead()

    @cached_property
    def laws(self) -> list[Any]:
        """The resampled laws."""
        return [type(self.law)(*row) for row in self.resampled.tolist()]

    def intervals(self, level: float | None = None) -> dict[str, list[float]]:
        """Percentile intervals of every fitted parameter and derived quantity; {} unsampled."""
        names = [name for name in self.law.names() if name not in self.held]
        found = {}
        for name in (*names, *self.law.DERIVED) if self.laws else ():
            draws = np.array([getattr(law, name) for law in self.laws])
            found[name] = percentile_interval(draws, level or self.level)
        return found

    def band(self, level: float | None = None, **columns: Any) -> tuple[np.ndarray, np.ndarray]:
        """Percentile band (low, high) of the prediction at `columns`, over the resamples."""
        if not self.laws:
            raise FitError("no resamples were drawn: fit with resamples=1000 to have a band")
        tail = (1 - (level or self.level)) / 2
        draws = np.array([law.predict(**columns) for law in self.laws])
        low, high = np.nanquantile(draws, [tail, 1 - tail], axis=0)
        return low, high

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: what is not finite, or was refused, is None."""
        law, points = self.law, self.points
        rows = [
            {"label": label}
            | {name: float(getattr(points, name)[i]) for name in law.INPUTS}
            | {"residual": float(self.residuals[i])}
            for i, label in enumerate(points.labels)
        ]
        derived = {name: None if self.refused else getattr(law, name) for name in law.DERIVED}
        return plain(
            {
                "law": law.NAME,
                "source": law.SOURCE,
                "inputs": list(law.INPUTS),
                "target": law.TARGET,
                "parameters": {name: getattr(law, name) for name in law.names()},
                "derived": derived,
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
