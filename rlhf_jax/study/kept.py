"""Run folders restored from results that the repository keeps (`--kept`).

`rlhf-jax report --export` writes those results. A restored cell has its configuration, results and
provenance, the metrics that figures are made from, and no checkpoints: reports and status use it,
and it runs again when a cell that starts from it has to run (`rlhf_jax.study.selection.needed`).
"""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import read_json, write_json, write_text
from rlhf_jax.study.folder import KEPT, CellFolder
from rlhf_jax.study.graph import Study
from rlhf_jax.study.runs import Runs

# A cell with one of these has run here.
BEGUN = ("done.json", "failed.json", "heartbeat.json", "checkpoints")


def restore(study: Study, runs: Runs, corpus_hash: str, kept: Path) -> list[str]:
    """Writes folders for the cells, by run id, that have results in an export in `kept` (`results`
    beside the study file) and have not run in RUNS. Returns their names.

    Raises:
      ConfigError: nothing is kept there.
    """
    exports = sorted(kept.glob("*/results.json"))
    if not exports:
        raise ConfigError(f"no results are kept in {kept}; leave out --kept to run the study")
    known = {cell["run_id"]: (cell, path) for path in exports for cell in read_json(path)["cells"]}
    ids, found = study.run_ids(corpus_hash), []
    for name, folder in runs.folders(study, corpus_hash).items():
        cell, path = known.get(ids[name], ({}, kept))
        if not cell.get("done") or folder.kept() or any((folder.path / n).exists() for n in BEGUN):
            continue
        with folder.held() as ours:
            if ours:
                put_back(folder, cell, path)
                found.append(name)
    return sorted(found)


def put_back(folder: CellFolder, cell: dict, path: Path) -> None:
    """Writes what an export in `path` holds of a finished cell; kept.json last."""
    folder.clear()
    for stem, content in cell["results"].items():
        write_json(folder.results / f"{stem}.json", content)
    write_json(folder.path / "config.json", cell["config"])
    write_json(folder.path / "provenance.json", {"sessions": [cell["provenance"]]})
    if columns := cell.get("metrics"):
        rows = zip(*columns.values(), strict=True)
        lines = (json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        write_text(folder.path / "metrics.jsonl", "".join(lines))
    folder.finish(KEPT, **cell["done"], kept=str(path))
