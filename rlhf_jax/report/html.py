"""The report of a study: one self-contained HTML page, from run folders alone.

No script and no network; light, dark and print. Headline figures come first, then the sections: of
scaling, of every kind of cell in the order of the study's graph, and of what concerns all of them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from rlhf_jax.report import overoptimization, rounds, scaling_sections
from rlhf_jax.report.blocks import (
    Block,
    Heading,
    Items,
    Lead,
    Paragraph,
    Reference,
    Section,
    Table,
    columns,
    number,
    page,
    plain,
    reference,
)
from rlhf_jax.report.study_fits import Fits, run_fits
from rlhf_jax.report.study_results import StudyResults, read_study
from rlhf_jax.report.style import Plot, css
from rlhf_jax.study.cell import KNOWN
from rlhf_jax.study.files import write_text

MOST_LEADS = 6
LIMIT_OF_LOSSES = (
    "Losses are of one held-out set that all cells share: their standard errors are over its rows "
    "of tokens, and say nothing about other seeds or other text."
)
LIMIT_OF_FLOPS = (
    "FLOPs are the exact count of matmuls unless another convention is named; the parametric law's "
    "optimum takes C = 6 N D."
)
LIMIT_OF_FITS = (
    "IsoFLOP parabolas are approximations; intervals come from the scatter of the runs, so they "
    "hold what differs between runs and not what all runs share (data, schedule, learning-rate "
    "law)."
)


def build(
    study_folder: str | Path, runs_root: str | Path, resamples: int = 1000, seed: int = 0
) -> Path:
    """Runs the study's fits, draws its figures and writes `report.html` into the study folder.

    The page appears whole or not at all: it is written beside its place and moved there.

    Args:
      study_folder: `RUNS/studies/NAME`, with a study.json. runs_root: `RUNS`.
      resamples, seed: of the bootstrap.

    Raises:
      ConfigError: no study.json, or a damaged file of a finished cell.
    """
    study = read_study(study_folder, runs_root)
    study.check()
    sections = sections_of(study, run_fits(study, resamples, seed))
    leads = leads_of(sections)
    plots = [b for s in sections for b in s.blocks if isinstance(b, Plot)]
    plots += [lead.plot for _, lead in leads if lead.plot]
    text = page(
        "page.html.j2",
        title=title_of(study),
        description=str(study.spec.get("description") or ""),
        colours=Markup(css(":root")),
        leads=leads,
        sections=sections,
    )
    drawn = {plot.name for plot in plots}
    for old in (study.folder / "figures").glob("*.*"):
        if old.stem not in drawn:  # of a report that had other sections
            old.unlink()
    for plot in plots:
        plot.write(study.folder / "figures")
    path = study.folder / "report.html"
    write_text(path, text)
    return path


def title_of(study: StudyResults) -> str:
    return str(study.spec.get("title") or study.spec.get("name") or study.folder.name)


def sections_of(study: StudyResults, fits: Fits) -> list[Section]:
    """All sections of a report, each with an anchor."""
    found = scaling_sections.sections(study, fits)
    for kind in dict.fromkeys(cell.kind for cell in study.cells):
        make = KNOWN[kind].report_section() if kind in KNOWN else None
        section = make(study) if make else plain(study, kind)
        if section is not None:
            found.append(section if section.anchor else replace(section, anchor=kind))
    for analysis in study.analyses("overoptimization"):
        made = fits.overoptimization[analysis.name]
        found.append(overoptimization.section(study, analysis, made))
    if by_round := rounds.section(study):
        found.append(by_round)
    summary = Section("Summary", _summary(study, found), anchor="summary")
    limits = Section("Limits", _limits(study, fits, found), anchor="limits")
    return [summary, *found, _data(study), limits, _provenance(study)]


def leads_of(sections: list[Section]) -> list[tuple[str, Lead]]:
    """(anchor, headline figure) of the sections that have one, those with a picture first."""
    found = [(s.anchor, lead) for s in sections for lead in s.leads]
    return sorted(found, key=lambda of: of[1].plot is None)[:MOST_LEADS]


def _summary(study: StudyResults, sections: list[Section]) -> list[Block]:
    lines = [line for section in sections for line in section.said]
    if study.missing:
        done = len(study.cells) - len(study.missing)
        lines.append(f"{done} of {len(study.cells)} cells are done; the rest is listed under Data.")
    return [Items(lines or ["No cell has a result yet."])]


def _data(study: StudyResults) -> Section:
    corpus = study.spec.get("corpus")
    fields = corpus.items() if isinstance(corpus, dict) else ()
    rows = [(k, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for k, v in fields]
    kinds = dict.fromkeys(cell.kind for cell in study.cells)
    counts = [(kind, len(study.of(kind, done=False)), len(study.of(kind))) for kind in kinds]
    late = [(reference(cell), cell.kind, cell.state) for cell in study.missing]
    command = study.spec.get("command")
    blocks: list[Block] = [
        Paragraph("Made by") if command else None,
        Paragraph(str(command), "command") if command else None,
        Heading("Corpus") if rows else None,
        Table(("field", "value"), rows, (1,)) if rows else None,
        Heading("Cells"),
        Table(("kind", "cells", "done"), counts),
        Heading("Not done") if late else None,
        Table(("cell", "kind", "state"), late, (2,)) if late else None,
    ]
    return Section("Data", blocks, anchor="data")


def _limits(study: StudyResults, fits: Fits, sections: list[Section]) -> list[Block]:
    lines = [LIMIT_OF_LOSSES, LIMIT_OF_FLOPS]
    if fits.approaches:
        lines.append(LIMIT_OF_FITS)
    lines += [line for section in sections for line in section.cautions]
    for cell in study.cells:
        lines += [f"{cell.name}, {where}: {said}." for where, said in cell.left_out.items()]
    if any(c.provenance.get("dirty") for c in study.cells):
        lines.append("Some cells ran from a checkout with uncommitted changes (marked + below).")
    return [Items(lines)]


def _provenance(study: StudyResults) -> Section:
    rows, environments = [], []
    for cell in study.cells:
        p = cell.provenance
        versions = ", ".join(f"{k} {v}" for k, v in (p.get("versions") or {}).items())
        made_on = f"{p.get('hardware') or '-'}; Python {p.get('python') or '-'}; {versions or '-'}"
        if made_on not in environments:
            environments.append(made_on)
        rows.append((cell, environments.index(made_on) + 1))

    def commit(p: dict) -> str:
        return str(p.get("commit") or "-")[:10] + ("+" if p.get("dirty") else "")

    found = columns(
        rows,
        ("cell", lambda of: Reference(of[0].name, of[0].run_id, target=True)),
        ("kind", lambda of: of[0].kind),
        ("run id", lambda of: of[0].run_id),
        ("state", lambda of: of[0].state),
        ("commit", lambda of: commit(of[0].provenance)),
        ("seconds", lambda of: number(of[0].seconds, 4)),
        ("made on", lambda of: of[1]),
        ("starts from", lambda of: ", ".join(of[0].parents) or "-"),
        text=(7,),
    )
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    intro = (
        "Every number above is of a cell below; its folder holds the configuration, metrics and "
        f"results. Report written {written}."
    )
    machines = [Paragraph(f"Made on {i}: {e}.") for i, e in enumerate(environments, 1)]
    return Section("Provenance", [Paragraph(intro), *machines, found], anchor="provenance")
