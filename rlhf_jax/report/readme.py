"""The page of a study in a repository: `README.md` beside its exported results, written from them
and from the docstring of the study file, and an index of all studies of a folder."""

from __future__ import annotations

import ast
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.report.blocks import page
from rlhf_jax.report.html import leads_of, sections_of, title_of
from rlhf_jax.report.study_fits import run_fits
from rlhf_jax.report.study_results import StudyResults, read_study
from rlhf_jax.report.style import Plot
from rlhf_jax.study.files import read_json, write_json, write_text
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.kept import put_back

ELSEWHERE = ("summary", "provenance")  # sections that a page has in other words


def write_readme(to: Path, source: Path | None) -> Path:
    """Writes `to/README.md` from the results that were exported there, and those headline figures
    that it lacks.

    Args:
        source: the study file, whose docstring holds the findings; None: not known.
    """
    with tempfile.TemporaryDirectory() as runs:
        study = _put_back(to, Path(runs))
        sections = sections_of(study, run_fits(study, as_kept=True))
    leads = leads_of(sections)
    plots = [b for s in sections for b in s.blocks if isinstance(b, Plot)]
    for plot in [*plots, *(lead.plot for _, lead in leads if lead.plot)]:
        if not (to / "figures" / f"{plot.name}.svg").exists():
            plot.write(to / "figures")
    shown = {plot.name for plot in plots}
    others = sorted(p.stem for p in (to / "figures").glob("*.svg") if p.stem not in shown)
    text = page(
        "study.md.j2",
        title=title_of(study),
        findings=docstring(source) if source else "",
        leads=[lead for _, lead in leads],
        summary=[line for s in sections for line in s.said],
        sections=[s for s in sections if s.blocks and s.anchor not in ELSEWHERE],
        files={p.name for p in to.glob("**/*.csv")},
        others=[name for name in others if not name.startswith("lead-")],
        command=study.spec.get("command") or "",
        made=_made(study),
    )
    write_text(to / "README.md", text)
    return to / "README.md"


def write_index(folder: Path) -> Path:
    """Writes `folder/README.md`, which lists the study files of a folder with their exports."""
    write_text(folder / "README.md", page("index.md.j2", studies=list(_studies(folder))))
    return folder / "README.md"


def docstring(source: Path) -> str:
    return ast.get_docstring(ast.parse(source.read_text())) or ""


def _studies(folder: Path) -> Iterator[dict[str, Any]]:
    """File, name, title and what it asks of every study file; export: where its results are."""
    exports: dict[str | None, tuple[dict[str, Any], Path | None]] = {}
    for path in sorted(folder.glob("results/*/results.json")):
        found = read_json(path)
        words = str(found.get("command", "")).split()
        file = next((Path(word).name for word in words if word.endswith(".py")), None)
        exports[file] = (found, path.parent.relative_to(folder))
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text())
        if not any(
            isinstance(node, ast.FunctionDef) and node.name == "study" for node in tree.body
        ):
            continue
        found, export = exports.get(path.name, ({}, None))
        asks = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
        yield {
            "file": path.name,
            "title": found.get("title") or path.stem,
            "asks": asks.replace("|", "\\|"),
            "export": export,
            "cells": len(found.get("cells", [])),
        }


def _put_back(export: Path, runs: Path) -> StudyResults:
    """The study as its run folders were, as far as the export has them."""
    spec = read_json(export / "results.json")
    for cell in spec["cells"]:
        if cell["done"]:
            put_back(CellFolder(runs / cell["folder"], cell["name"]), cell, export)
    folder = runs / "studies" / spec["name"]
    known = ("name", "run_id", "kind", "parents", "folder")
    write_json(
        folder / "study.json",
        {**spec, "cells": [{key: cell[key] for key in known} for cell in spec["cells"]]},
    )
    if (export / "fits").is_dir():
        shutil.copytree(export / "fits", folder / "fits")
    if (export / "prediction.json").exists():
        shutil.copy(export / "prediction.json", folder)
    return read_study(folder, runs)


def _made(study: StudyResults) -> list[tuple[str, str]]:
    """Commits, versions and hardware of the processes that finished the cells."""
    found: dict[str, dict[str, None]] = {"commit": {}, "hardware": {}, "versions": {}}
    for cell in study.cells:
        of = cell.provenance
        if not of:
            continue
        versions = {"Python": of.get("python"), **(of.get("versions") or {})}
        commit = str(of.get("commit") or "-")[:10]
        found["commit"][commit + (" with changes" if of.get("dirty") else "")] = None
        found["hardware"][str(of.get("hardware") or "-")] = None
        found["versions"][", ".join(f"{k} {v}" for k, v in versions.items() if v)] = None
    return [(name, "; ".join(values)) for name, values in found.items() if values]
