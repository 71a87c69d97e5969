"""Results that the repository keeps count as done where their run folders are gone (`--kept`).

`rlhf-jax report --export` writes them. A cell comes back with its configuration, results and provenance, of
its metrics at most those that figures are made from, and no checkpoints; so no cell comes back that an
unfinished one would start from.
"""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_jax.config import ConfigError
from rlhf_jax.runs import Runs, read_json, write_json
from rlhf_jax.study import Study


def restore(study: Study, runs: Runs, corpus_hash: str, kept: Path) -> list[str]:
    """Folders for the study's cells that an export in `kept` (`results` beside the study file) holds
    results of and RUNS does not, by run id. Returns the names of those that came back.

    Raises:
      ConfigError: nothing is kept there.
    """
    exports = sorted(kept.glob("*/results.json"))
    if not exports:
        raise ConfigError(f"no results are kept in {kept}; leave out --kept to run the study")
    known = {cell["run_id"]: (cell, path) for path in exports for cell in read_json(path)["cells"]}
    folders, ids = runs.folders(study, corpus_hash), study.run_ids(corpus_hash)
    there = {name for name, folder in folders.items() if folder.path.exists()}
    found = {
        name for name in folders
        if name not in there and ids[name] in known and known[ids[name]][0]["done"]
    }  # fmt: skip
    while True:  # a cell that will be run needs its parents' checkpoints
        undone = [c for c in study.cells if c.name not in found and not folders[c.name].done()]
        needed = {parent for cell in undone for parent in cell.parents()} & found
        if not needed:
            break
        found -= needed
    for name in sorted(found):
        cell, path = known[ids[name]]
        folder = folders[name]
        for stem, content in cell["results"].items():
            write_json(folder.results / f"{stem}.json", content)
        write_json(folder.path / "config.json", cell["config"])
        write_json(folder.path / "provenance.json", {"sessions": [cell["provenance"]]})
        if columns := cell.get("metrics"):
            rows = zip(*columns.values(), strict=True)
            lines = (json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
            (folder.path / "metrics.jsonl").write_text("".join(lines))
        write_json(folder.path / "done.json", cell["done"] | {"kept": str(path)})
    return sorted(found)
