"""`rlhf-jax predict`: what the finished runs of a study say of a budget that has not been run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rlhf_jax.cost.flops import param_counts, train_flops
from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.laws.points import FitError
from rlhf_jax.laws.predict import check_flops, predict
from rlhf_jax.report.study_results import StudyResults, sweep_points, sweep_table
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import write_json
from rlhf_jax.study.graph import Study

NEAR = 0.05  # runs within this share of the compute asked for are the ones to come


def foretell(study: Study, results: StudyResults, flops: float, resamples: int = 1000) -> Path:
    """Writes `prediction.json` into the study folder, from the runs of less compute than `flops`.

    Raises:
      ConfigError: a run of that compute has begun, a prediction is there already, or the finished
        runs do not support one.
    """
    try:
        check_flops(flops)
    except FitError as e:
        raise ConfigError(str(e)) from None
    path = results.folder / "prediction.json"
    if path.exists():
        raise ConfigError(f"{path} is there already; a prediction is made once, before the runs")
    planned: list[dict[str, Any]] = []
    cells = {cell.name: cell for a in results.analyses("isoflop") for cell in a.cells}
    for cell in study.cells:
        if not isinstance(cell, Pretrain) or cell.name not in cells:
            continue
        spent = train_flops(cell.model, study.corpus.seq_len, cell.tokens)
        if abs(spent / flops - 1) > NEAR:
            continue
        if (cells[cell.name].folder.path / "metrics.jsonl").exists():
            raise ConfigError(
                f"{cell.name} has begun: what it gives can no longer be predicted; predict another "
                "budget"
            )
        params = param_counts(cell.model)["total"]
        planned.append({"label": cell.name, "params": params, "tokens": cell.tokens})
    rows = [
        r
        for r in sweep_table(list(cells.values()))
        if r["flops"] and r["flops"] < flops * (1 - NEAR)
    ]
    if not rows:
        raise ConfigError(f"no finished run of {study.name} has less than {flops:.4g} FLOPs")
    try:
        said = predict(sweep_points(rows), flops, planned, resamples)
    except FitError as e:
        raise ConfigError(str(e)) from None
    said = {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **said}
    write_json(path, said)
    return path
