"""Run folders: where a cell's work lives, who holds it, and what state it is in.

RUNS/data/...                               corpora and tokenizers, by content hash
RUNS/cells/<name>-<run_id>/config.json      the cell
                           provenance.json  commit, versions, hardware, when
                           metrics.jsonl    the source of truth
                           checkpoints/ results/
                           checkpoint.json  its last checkpoint, once it has trained
                           lock             held by the process that runs it; never removed
                           heartbeat.json   who runs it, how far it is
                           failed.json      why it stopped, if it did
                           done.json        written last: the cell is done
                           kept.json        instead of it where only results are here (`--kept`)
RUNS/studies/<name>/                        study.json, fits, figures, report.html

done.json holds the SHA-256 of every other file that the cell wrote, and of itself. Whoever reads
one of those files checks it (`CellFolder.read`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_jax.study.config import ConfigError, to_json
from rlhf_jax.study.files import Damaged, disk_words, read_json, sweep, write_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.graph import Study
from rlhf_jax.study.messages import suggest

PROBE_BYTES = 64 * 1024  # written into a runs folder as a test before anything is begun
LEFTOVER_SECONDS = 3600.0  # an older temporary file is a dead process's


class Runs:
    """The root of all run folders.

    Raises:
      ConfigError: checkpoints cannot be written below the root: orbax reads its path as a pattern.
    """

    def __init__(self, root: str | Path = "runs") -> None:
        self.root = Path(root)
        path = str(self.root.absolute())
        if "\0" in path:
            raise ConfigError(f"runs folder {path!r} holds a NUL; name another folder with --runs")
        if set(path) & set("*?[\\") or path.encode(errors="replace").decode() != path:
            raise ConfigError(
                f"runs folder {path!r}: checkpoints cannot be written below a path that holds one "
                f"of * ? [ \\ or what is not UTF-8; name another folder with --runs"
            )
        try:
            if not (nearest := self._nearest()).is_dir():
                raise ConfigError(f"--runs {path}: {nearest} is a file; give a folder")
        except OSError as e:
            raise ConfigError(f"--runs {path}: {disk_words(e) or e}") from None

    def _nearest(self) -> Path:
        """The root, or the nearest of its parents that exists."""
        path = self.root.absolute()
        return next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())

    def check(self, write: bool = False) -> None:
        """Refuses a root that cannot be made, or, with `write`, one where nothing can be written.
        Leaves nothing behind.

        Raises:
          ConfigError: says why.
        """
        nearest = self._nearest()
        if nearest == self.root.absolute() and not write:
            return
        try:
            with tempfile.TemporaryDirectory(dir=nearest, prefix=".rlhf-jax-") as tmp:
                (Path(tmp) / "probe").write_bytes(bytes(PROBE_BYTES if write else 0))
        except OSError as e:
            what = "nothing can be written there" if write else "no folder can be made there"
            raise ConfigError(f"--runs {self.root}: {what} ({disk_words(e) or e})") from None

    def cell(self, name: str, run_id: str) -> CellFolder:
        """The folder of a run id; another study may have made it under another name. Where two
        studies began the same cell at once, the folder with the work in it."""
        return self._cell(name, run_id, sorted((self.root / "cells").glob(f"*-{run_id}")))

    def _cell(self, name: str, run_id: str, paths: Sequence[Path]) -> CellFolder:
        found = [CellFolder(p, name) for p in paths] or [
            CellFolder(self.root / "cells" / f"{name}-{run_id}", name)
        ]
        for wanted in (CellFolder.done, CellFolder.in_use, CellFolder.kept):
            if len(found) > 1:
                found = [f for f in found if wanted(f)] or found
        return found[0]

    def current(self, folder: CellFolder) -> CellFolder:
        """Where a cell's work is now: another study may have begun it since, under another
        name."""
        name, _, run_id = folder.path.name.rpartition("-")
        return replace(self.cell(name, run_id), name=folder.name)

    def study(self, study: Study) -> Path:
        return self.root / "studies" / study.name

    def folders(self, study: Study, corpus_hash: str) -> dict[str, CellFolder]:
        """Cell name -> folder. Cells of equal science share one, named after the first of them."""
        ids = study.run_ids(corpus_hash)
        there: dict[str, list[Path]] = {}
        for path in sorted((self.root / "cells").glob("*")):
            there.setdefault(path.name.rpartition("-")[2], []).append(path)
        found: dict[str, CellFolder] = {}
        for cell in study.cells:
            run_id = ids[cell.name]
            if run_id not in found:
                found[run_id] = self._cell(cell.name, run_id, there.get(run_id, []))
        return {c.name: replace(found[ids[c.name]], name=c.name) for c in study.cells}


def claim_study(study: Study, runs: Runs, source: str | Path, ids: Mapping[str, str]) -> str:
    """What `write_study` would replace in the study's folder, in words; empty: nothing.

    Args:
      source: the study's file. ids: its run ids by cell.

    Raises:
      ConfigError: another study file's study of the same name has that folder.
    """
    folder, source = runs.study(study), Path(source).resolve()
    try:
        old = read_json(folder / "study.json") or {}
    except Damaged as e:
        return f"{e}; it is written anew"
    made_by = Path(old.get("file") or source)
    if made_by.exists() and not made_by.samefile(source):
        raise ConfigError(
            f"{folder} belongs to the study in {made_by}; the one in {source} has the same name, "
            f"{study.name!r}. Give it another name, or another folder with --runs"
        )
    said = []
    if made_by != source and not made_by.exists():
        said.append(f"{folder} was made by {made_by}, which is gone; {source} takes its place")
    now = set(ids.values())
    gone = [c["name"] for c in old.get("cells", []) if c["run_id"] not in now]
    if gone:
        some = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
        said.append(
            f"the report in {folder} is replaced: it was of {len(gone)} cells that this study does "
            f"not have, or has with other settings ({some}). Their folders stay; "
            f"`{old.get('command')}` makes it again"
        )
    return "; ".join(said)


def write_study(
    study: Study, runs: Runs, corpus_hash: str, command: str, source: str | Path | None = None
) -> Path:
    """`studies/<name>/study.json`: the cells by id, and what to conclude from them. source: the
    study's file, which the folder then belongs to (`claim_study`)."""
    folder, folders = runs.study(study), runs.folders(study, corpus_hash)
    ids = study.run_ids(corpus_hash)
    sweep(folder, LEFTOVER_SECONDS)
    cells = [
        {
            "name": c.name,
            "kind": c.KIND,
            "run_id": ids[c.name],
            "parents": list(c.parents()),
            "folder": str(folders[c.name].path.relative_to(runs.root)),
        }
        for c in study.cells
    ]
    analyses = [
        to_json(a) | {"cells": [c.name for c in study.select(a.cells)]} for a in study.analyses
    ]
    write_json(
        folder / "study.json",
        {
            "name": study.name,
            "title": study.title or study.name,
            "command": command,
            **({"file": str(Path(source).resolve())} if source else {}),
            "corpus": {"hash": corpus_hash, **to_json(study.corpus)},
            "cells": cells,
            "analyses": analyses,
        },
    )
    return folder


def status(study: Study, runs: Runs, corpus_hash: str | None) -> dict[str, Any]:
    """What `rlhf-jax status --json` prints. Before the corpus is prepared no run id is known."""
    if corpus_hash is None:
        rows = [
            {"name": c.name, "kind": c.KIND, "run_id": None, "state": "waiting"}
            for c in study.order()
        ]
        return {"study": study.name, "cells": rows}
    ids, folders = study.run_ids(corpus_hash), runs.folders(study, corpus_hash)
    states: dict[str, str] = {}
    rows = []
    for cell in study.order():
        folder = folders[cell.name]
        row: dict[str, Any] = {
            "name": cell.name,
            "kind": cell.KIND,
            "run_id": ids[cell.name],
            "folder": str(folder.path),
        }
        row |= folder.state()
        if row["state"] == "waiting":
            row["waiting_for"] = [p for p in cell.parents() if states[p] != "done"]
        states[cell.name] = row["state"]
        rows.append(row)
    return {"study": study.name, "cells": rows}


def find_cell(text: str, runs: Runs) -> Path:
    """The folder that RUN names: a path, STUDY/CELL of a study that has been run, or a cell's name.

    Raises:
      ConfigError: none is found, or several cells have the name.
    """
    if (Path(text) / "config.json").is_file():
        return Path(text)
    study, slash, name = text.rpartition("/")
    if slash:
        try:
            index = read_json(runs.root / "studies" / study / "study.json")
        except Damaged as e:
            raise Damaged(
                f"{e}; `rlhf-jax report STUDY` writes it anew, or give the folder of the cell"
            ) from None
        for cell in (index or {}).get("cells", []):
            if cell["name"] == name:
                return runs.root / cell["folder"]
        if index is None and (runs.root / "cells").is_dir():
            raise ConfigError(
                f"no {runs.root / 'studies' / study / 'study.json'}; `rlhf-jax report STUDY` "
                f"writes it, or give the folder or the name of the cell"
            )
    known = {p.parent for p in (runs.root / "cells").glob("*/config.json")}
    matches = sorted(p for p in known if text in (p.name, p.name.rpartition("-")[0]))
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"several cells are named {text!r}: {', '.join(map(str, matches))}")
    names = sorted({p.name.rpartition("-")[0] for p in known})
    raise ConfigError(
        f"no cell {text!r} in {runs.root}."
        + (suggest(text, names) if names else " Nothing has been run there; see --runs")
    )
