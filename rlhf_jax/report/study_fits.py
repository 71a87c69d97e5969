"""What a study's analyses conclude, fitted once and kept as `fits/NAME.json`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_jax.laws.approaches import fit_points
from rlhf_jax.laws.curves import at_equal_compute, joined
from rlhf_jax.laws.learning_rate import check_lr
from rlhf_jax.laws.learning_rate_fit import fit_learning_rate
from rlhf_jax.laws.named import fit_named
from rlhf_jax.laws.overoptimization import fit_overoptimization
from rlhf_jax.laws.points import FitError, Points
from rlhf_jax.laws.predict import score
from rlhf_jax.report import overoptimization
from rlhf_jax.report.study_results import (
    Analysed,
    CellResult,
    StudyResults,
    is_number,
    sweep_points,
    sweep_table,
    training_curves,
    unique_rows,
)
from rlhf_jax.study.config import ConfigError, content_id
from rlhf_jax.study.files import read_json, write_json

METHOD = 4  # of fitting; a change of it makes every kept fit anew
# What a fit has of which nothing could be made, by the kind of fit: the shape of the others.
NOTHING: dict[str, Any] = {"intervals": {}, "extrapolation": {}, "notes": []}
NO_EXPONENT = NOTHING | {"n": None, "a": None, "b": None, "frontier": [], "points": []}
NO_APPROACH = {
    1: NO_EXPONENT | {"envelope": []},
    2: NO_EXPONENT | {"budgets": []},
    3: NO_EXPONENT | {"E": None, "residuals": []},
}
NO_RATE = NOTHING | {"groups": []}
NO_REPETITION = NOTHING | {"parameters": None, "residuals": []}
NOT_MEASURED = dict.fromkeys(("n_star", "d_star", "loss_star", "refused")) | {"intervals": {}}
NO_PEAK = NOTHING | {"alpha": None, "beta": None, "gold_at_0": None, "peak": None, "band": None}


@dataclass(frozen=True)
class Fits:
    """By the name of the analysis; every value is JSON. A fit that cannot be made is
    {"refused": reason}. prediction: the one made before the last budget was run, and its score."""

    approaches: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    lr_check: dict[str, dict[str, Any]] = field(default_factory=dict)
    lr_law: dict[str, dict[str, Any]] = field(default_factory=dict)
    data_constrained: dict[str, dict[str, Any]] = field(default_factory=dict)
    overoptimization: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    prediction: dict[str, Any] | None = None


def run_fits(
    study: StudyResults, resamples: int = 1000, seed: int = 0, as_kept: bool = False
) -> Fits:
    """Runs every analysis and writes `fits/NAME.json`; an unchanged fit is read back instead, and
    with `as_kept` every fit that is there."""
    fits = Fits(prediction=_prediction(study))

    def kept(
        name: str, inputs: list, nothing: dict[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        path = study.folder / "fits" / f"{name}.json"
        fit = (as_kept and read_json(path)) or _kept(path, [*inputs, resamples, seed, METHOD], make)
        return fit if fit.keys() - {"refused", "notes", "made_from"} else nothing | fit

    for analysis in study.analyses("isoflop"):
        rows = sweep_table(analysis.cells, analysis.params, analysis.flops)
        fits.approaches[analysis.name] = {
            approach: kept(
                f"{analysis.name}-approach{approach}",
                [rows, approach, analysis.loss, analysis.window, analysis.left_out],
                NO_APPROACH[approach],
                partial(_approach, analysis, rows, approach, resamples, seed),
            )
            for approach in ((1, 2, 3) if analysis.loss == "heldout" else (2,))
        }
    for analysis in study.analyses("lr_law"):
        rows = sweep_table(analysis.cells)
        fits.lr_law[analysis.name] = kept(
            analysis.name, [rows], NO_RATE, partial(fit_learning_rate, rows)
        )
    for analysis in study.analyses("data_constrained"):
        rows = unique_rows(analysis.cells)
        fits.data_constrained[analysis.name] = kept(
            analysis.name, [rows], NO_REPETITION, partial(_repetition, rows, resamples, seed)
        )
    for analysis in study.analyses("overoptimization"):
        fits.overoptimization[analysis.name] = {
            group.name: kept(
                f"{analysis.name}-{group.name}",
                overoptimization.inputs(group),
                NO_PEAK,
                partial(_overoptimization, group, resamples, seed),
            )
            for group in overoptimization.groups(study, analysis)
        }
    for analysis in study.analyses("lr_check"):
        fits.lr_check[analysis.name] = _lr_check(analysis.cells)
        path = study.folder / "fits" / f"{analysis.name}.json"
        write_json(path, fits.lr_check[analysis.name])
    return fits


def _approach(
    analysis: Analysed, rows: list[dict[str, Any]], approach: int, resamples: int, seed: int
) -> dict[str, Any]:
    window = math.inf if analysis.window is None else analysis.window
    fit = fit_points(_points(analysis, rows), approach, resamples, seed, window)
    out = [{"label": name, "reason": reason} for name, reason in analysis.left_out]
    notes = [f"{name} is left out: {reason}" for name, reason in analysis.left_out]
    return fit | {"notes": [*fit["notes"], *notes], "left_out": [*out, *fit["left_out"]]}


def _repetition(rows: list[dict[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """The data-constrained law never rises: runs that more repetition made worse are outside it."""
    worse = {
        row["label"]
        for row in rows
        for other in rows
        if (row["params"], row["unique_tokens"]) == (other["params"], other["unique_tokens"])
        and row["tokens"] > other["tokens"]
        and row["loss"] > other["loss"]
    }
    kept = [row for row in rows if row["label"] not in worse]
    fit = fit_named("data_constrained", sweep_points(kept), resamples, seed)
    said = [
        f"{label} is left out: repetition made it worse than fewer tokens did"
        for label in sorted(worse)
    ]
    return fit | {"notes": [*fit["notes"], *said]}


def _overoptimization(group: overoptimization.Group, resamples: int, seed: int) -> dict[str, Any]:
    curves = [overoptimization.gold_curve(cell) for cell in group.cells]
    return fit_overoptimization(group.form, curves, resamples, seed)


def _points(analysis: Analysed, rows: list[dict[str, Any]]) -> Points:
    """The table that an isoflop analysis fits: final losses, or losses at equal compute on the
    way."""
    if len(rows) < 3:
        raise FitError(f"{len(rows)} of the sweep's cells have a held-out loss")
    if analysis.loss == "heldout":
        return sweep_points(rows)
    if analysis.loss == "ends":
        return at_equal_compute(joined(sweep_points(rows)))
    return at_equal_compute(training_curves(analysis.cells, analysis.params, analysis.flops))


def _kept(path: Path, inputs: list, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    key = content_id(inputs)
    try:
        old = read_json(path)
    except ValueError:
        old = None
    if old and old.get("made_from") == key:
        return old
    try:
        fit = make()
    except FitError as e:
        fit = {"refused": str(e), "notes": []}
    fit["made_from"] = key
    write_json(path, fit)
    return fit


def _lr_check(cells: Sequence[CellResult]) -> dict[str, Any]:
    """{"points": [{lr, loss, stderr, label, run_id}], interior, resolved, reason, best_lr}."""
    rows = [
        {k: row[k] for k in ("lr", "loss", "stderr", "label", "run_id", "params")}
        for row in sweep_table(cells)
        if is_number(row["lr"])
    ]
    rows.sort(key=lambda row: row["lr"])
    out: dict[str, Any] = {"points": rows, "missing": [c.name for c in cells if c.heldout is None]}
    try:
        return out | check_lr([(r["lr"], r["loss"], r["stderr"]) for r in rows]).to_dict()
    except ConfigError as e:
        return out | {"best_lr": None, "interior": False, "resolved": False, "reason": str(e)}


def _prediction(study: StudyResults) -> dict[str, Any] | None:
    """`prediction.json` of the study folder with `score` beside it."""
    if not (said := read_json(study.folder / "prediction.json")):
        return None
    rows = {r["label"]: r for a in study.analyses("isoflop") for r in sweep_table(a.cells)}
    found = score(said, sweep_points(list(rows.values()))) if rows else {"measured": NOT_MEASURED}
    found["measured"] = NOT_MEASURED | found["measured"]
    return said | {"score": {"approaches": {}, "runs": None} | found}
