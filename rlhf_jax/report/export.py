"""The small results of a study, as files worth committing."""

from __future__ import annotations

import csv
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rlhf_jax.report.families import climbs_a_reward
from rlhf_jax.report.readme import write_index, write_readme
from rlhf_jax.report.study_results import read_study, unique_rows
from rlhf_jax.study.files import read_json, write_json
from rlhf_jax.study.folder import CellFolder

LARGE = 256 * 1024  # bytes of a figure's table that stays in the run folder
LONG = 64  # lists longer than this stay in the run folder
# Of the metrics of a policy, those that figures and fits of over-optimization are made from.
KEPT_METRICS = (
    "step",
    "kl",
    "reward_gold",
    "reward_proxy",
    "entropy",
    "distinct_2",
    "response_length",
    "stop_rate",
    "max_ratio_error",
    "max_logprob_gap",
)
TEXTS = ("samples",)  # and so do texts: what a corpus holds or a model says is not ours to publish


def export(study_folder: Path, runs_root: Path, to: Path) -> Path:
    """Copy fits, figures and a prediction to `to`, and write `results.json`: the command, and of
    every finished cell its configuration, results, time and provenance, and PPO's curves; and
    `runs.csv`, the pretraining runs as a table that `rlhf-jax fit` reads; and `README.md`, the
    study's page. Replaces what an earlier export left there, which stays if this one cannot be
    written. A study whose cells all come from that export (`--kept`) gets its page alone."""
    to.mkdir(parents=True, exist_ok=True)
    spec = read_json(study_folder / "study.json")
    source = Path(spec["file"]) if spec.get("file") else None
    if not ((to / "results.json").exists() and _came_from_an_export(spec, runs_root)):
        _replace(study_folder, runs_root, to)
    write_readme(to, source)
    if source and to.resolve().parent == source.parent / "results":
        write_index(source.parent)
    return to


def _came_from_an_export(spec: dict[str, Any], runs_root: Path) -> bool:
    folders = [CellFolder(runs_root / cell["folder"], cell["name"]) for cell in spec["cells"]]
    return any(f.kept() for f in folders) and not any(f.done() for f in folders)


def _replace(study_folder: Path, runs_root: Path, to: Path) -> None:
    with tempfile.TemporaryDirectory(dir=to, prefix=".export-") as tmp:
        _write(study_folder, runs_root, Path(tmp))
        for name in ("fits", "figures"):
            shutil.rmtree(to / name, ignore_errors=True)
        for path in Path(tmp).iterdir():
            path.replace(to / path.name)


def _write(study_folder: Path, runs_root: Path, to: Path) -> None:
    study = read_json(study_folder / "study.json")
    study.pop("file", None)  # where it lay on this machine
    for name in ("fits", "figures"):
        if (study_folder / name).is_dir():
            shutil.copytree(study_folder / name, to / name, ignore=_large_tables)
    if (study_folder / "prediction.json").exists():
        shutil.copy(study_folder / "prediction.json", to)
    cells = []
    for cell in study["cells"]:
        folder = CellFolder(runs_root / cell["folder"], cell["name"])
        session = (folder.json("provenance.json") or {"sessions": [{}]})["sessions"][-1]
        done = folder.record()
        if done is not None:
            done = {k: v for k, v in done.items() if k not in ("digests", "kept")}
        kept = ("commit", "dirty", "python", "versions", "hardware", "started")
        cells.append(
            {
                **cell,
                "config": folder.json("config.json"),
                "done": done,
                "provenance": {k: session.get(k) for k in kept},
                "results": {n: _short(folder.result(n)) for n in folder.result_names()},
                **({"metrics": _columns(folder)} if climbs_a_reward(cell["kind"]) else {}),
            }
        )
    write_json(to / "results.json", {**study, "cells": cells})
    rows = unique_rows(read_study(study_folder, runs_root).cells)
    if rows:
        known = [key for key in rows[0] if all(row[key] is not None for row in rows)]
        with (to / "runs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, known, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def _large_tables(folder: str, names: list[str]) -> list[str]:
    """Figures' data that would be most of a repository; they can be made again."""
    return [n for n in names if n.endswith(".csv") and (Path(folder) / n).stat().st_size > LARGE]


def _columns(folder: CellFolder) -> dict[str, list[int | float]]:
    """Column by column, to six digits."""
    rows = folder.metrics()
    return {
        name: [x if isinstance(x, int) else float(f"{x:.6g}") for x in (row[name] for row in rows)]
        for name in KEPT_METRICS
        if all(name in row for row in rows)
    }


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items() if not _long(v) and k not in TEXTS}
    return value


def _long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > LONG
