"""Results that the repository keeps stand in for run folders that are gone (`--kept`).

`rlhf-jax report --export` writes them. A cell comes back with its configuration, results and
provenance, of its metrics at most those that figures are made from, and no checkpoints: reports and
status use it, and it runs again when a cell has to run that starts from it (`launch.graph.needed`).
"""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.graph import Study
from rlhf_jax.study.runs import KEPT, CellFolder, Runs, read_json, write_json

BEGUN = (
    "done.json",
    "failed.json",
    "heartbeat.json",
    "checkpoints",
)  # one of them: it has run here


def restore(study: Study, runs: Runs, corpus_hash: str, kept: Path) -> list[str]:
    """Folders for the study's cells that an export in `kept` (`results` beside the study file)
    holds results of and RUNS does not, by run id. Returns the names of those that came back.

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
        (folder.path / "metrics.jsonl").write_text("".join(lines))
    folder.finish(KEPT, **cell["done"], kept=str(path))
