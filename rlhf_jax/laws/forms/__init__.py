"""Scaling laws as one family: every law is fitted, judged and written down in the same way."""

from __future__ import annotations

from typing import Any

from rlhf_jax.laws.forms.broken import Broken, broken
from rlhf_jax.laws.forms.chinchilla import Chinchilla
from rlhf_jax.laws.forms.data_constrained import MUENNIGHOFF_2023, DataConstrained
from rlhf_jax.laws.forms.family import LawFit, ScalingLaw
from rlhf_jax.laws.forms.fitting import fit
from rlhf_jax.laws.forms.inference import InferenceOptimal, inference_optimal
from rlhf_jax.laws.forms.kaplan import KAPLAN_2020, Kaplan
from rlhf_jax.laws.forms.over_training import GADRE_2024, Downstream, OverTraining
from rlhf_jax.laws.forms.solve import HUBER, HUBER_LOG, LEAST_SQUARES, Objective
from rlhf_jax.laws.points import FitError, Points
from rlhf_jax.study.config import suggest

LAWS: dict[str, type[ScalingLaw]] = {
    law.NAME: law for law in (Chinchilla, DataConstrained, OverTraining, Downstream, Kaplan, Broken)
}

__all__ = [
    "GADRE_2024",
    "HUBER",
    "HUBER_LOG",
    "KAPLAN_2020",
    "LAWS",
    "LEAST_SQUARES",
    "MUENNIGHOFF_2023",
    "Broken",
    "Chinchilla",
    "DataConstrained",
    "Downstream",
    "InferenceOptimal",
    "Kaplan",
    "LawFit",
    "Objective",
    "OverTraining",
    "ScalingLaw",
    "broken",
    "fit",
    "fit_named",
    "inference_optimal",
]


def fit_named(name: str, points: Points, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The law called `name` in `LAWS`, fitted, as JSON values: see `LawFit.to_json`.

    Raises:
      FitError: no such law, or the table cannot be fitted (see `fit`).
    """
    if name not in LAWS:
        raise FitError(f"{name!r} is not a law.{suggest(name, list(LAWS))}")
    return fit(LAWS[name], points, resamples, seed).to_json()
