"""Laws by the name that `rlhf-jax fit --law` and the kept fits have: built in, or MODULE:CLASS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_jax.laws.broken import Broken, broken
from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.laws.data_constrained import DataConstrained
from rlhf_jax.laws.fit import fit
from rlhf_jax.laws.kaplan import Kaplan
from rlhf_jax.laws.law import Law
from rlhf_jax.laws.over_training import Downstream, OverTraining
from rlhf_jax.laws.points import FitError, Points
from rlhf_jax.study.callables import is_callable, load_callable
from rlhf_jax.study.messages import suggest

LAWS: dict[str, type[Law]] = {
    law.NAME: law for law in (Chinchilla, DataConstrained, OverTraining, Downstream, Kaplan, Broken)
}


def law_named(name: str) -> type[Law]:
    """The law called `name` in `LAWS`, or at MODULE:CLASS.

    Raises:
      FitError: there is none, or it is no `Law`.
      ConfigError: the module cannot be imported.
    """
    if name in LAWS:
        return LAWS[name]
    if not is_callable(name):
        raise FitError(f"{name!r} is not a law.{suggest(name, list(LAWS))}")
    found = load_callable(name)
    if not (isinstance(found, type) and issubclass(found, Law)):
        raise FitError(f"{name} is {found!r}; a law is a subclass of rlhf_jax.laws.law.Law")
    if missing := sorted(found.__abstractmethods__) + [
        key for key in ("NAME", "INPUTS", "SOURCE") if not hasattr(found, key)
    ]:
        raise FitError(f"{name} lacks {', '.join(missing)}; see rlhf_jax.laws.law.Law")
    return found


def law_of(found: Mapping[str, Any]) -> Law:
    """The law that a fit found, from its JSON (`LawFit.to_json`)."""
    law_class, parameters = law_named(found["law"]), found["parameters"]
    if law_class is Broken:
        law_class = broken(found["inputs"][0], len(parameters) // 3 - 1)
    return law_class(**parameters)


def fit_named(name: str, points: Points, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The law of `law_named`, fitted, as JSON values: see `LawFit.to_json`; raises as `fit`."""
    return fit(law_named(name), points, resamples, seed).to_json() | {"law": name}
