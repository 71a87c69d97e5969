"""The report of a study: one self-contained HTML page, from run folders alone.

No script and no network; light, dark and print. A section whose cells are not done says so.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from rlhf_jax.report import evaluation_sections as evaluations
from rlhf_jax.report import overoptimization, plots_scaling, prompting
from rlhf_jax.report import policy_sections as policies
from rlhf_jax.report import reward_sections as rewards
from rlhf_jax.report import scaling_sections as scaling
from rlhf_jax.report.markup import (
    Html,
    absent,
    cell_link,
    figure,
    number,
    page,
    paragraph,
    plus_minus,
    table,
)
from rlhf_jax.report.study_fits import Fits, run_fits
from rlhf_jax.report.study_results import StudyResults, is_number, read_study
from rlhf_jax.report.style import Plot, count, power
from rlhf_jax.study.files import write_text

MOST_NAMED = 20  # base models that the summary names one by one


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
    fits = run_fits(study, resamples, seed)
    plots: list[Plot] = []

    def draw(plot: Plot | None) -> str:
        if plot is not None:
            plots.append(plot)
        return figure(plot)

    sections = [
        ("summary", "Summary", _summary(study, fits)),
        ("data", "Data", _data(study)),
        *scaling.sections(study, fits, draw),
        ("base", "Base model", _base(study, draw)),
        ("sft", "Supervised fine-tuning", _sft(study, draw)),
        *_prompting(study, draw),
        ("reward", "Reward model", rewards.reward(study, draw)),
        *_over(study, fits, draw),
        ("ppo", "PPO", policies.ppo(study, draw)),
        *_others(study, draw),
        ("evaluation", "Evaluation", evaluations.evaluation(study, draw)),
        ("limits", "Limits", _limits(study, fits)),
        ("provenance", "Provenance", _provenance(study)),
    ]
    title = str(study.spec.get("title") or study.spec.get("name") or study.folder.name)
    text = page(title, str(study.spec.get("description") or ""), sections)
    drawn = {plot.name for plot in plots}
    for old in (study.folder / "figures").glob("*.*"):
        if old.stem not in drawn:  # of a report that had other sections
            old.unlink()
    for plot in plots:
        plot.write(study.folder / "figures")
    path = study.folder / "report.html"
    write_text(path, text)
    return path


def _summary(study: StudyResults, fits: Fits) -> str:
    lines = scaling.headlines(fits)
    bases = _bases(study)
    if len(bases) > MOST_NAMED:
        lines.append(f"Of {len(bases):,} base models, the one of lowest held-out loss:")
        bases = [min(bases, key=lambda cell: cell.heldout.get("loss", math.inf))]
    for cell in bases:
        held = cell.heldout
        lines.append(
            f"{cell.name} ({count(held.get('params'))} parameters): held-out loss "
            f"{plus_minus(held.get('loss'), held.get('stderr'))} nats/token, "
            f"{plus_minus(held.get('bits_per_byte'), held.get('bits_per_byte_stderr'))} bits/byte."
        )
    lines += rewards.headlines(study) + overoptimization.headlines(study, fits.overoptimization)
    lines += evaluations.headlines(study) + prompting.headlines(study)
    if study.missing:
        done = len(study.cells) - len(study.missing)
        lines.append(f"{done} of {len(study.cells)} cells are done; the rest is listed under Data.")
    if not lines:
        return paragraph("No cell has a result yet.")
    return (
        '<ul class="headline">' + "".join(f"<li>{paragraph(line)}</li>" for line in lines) + "</ul>"
    )


def _data(study: StudyResults) -> str:
    parts = []
    if study.spec.get("command"):
        parts.append(f"<p>Made by</p>{Html('<pre>')}{_escape(study.spec['command'])}</pre>")
    corpus = study.spec.get("corpus")
    if isinstance(corpus, dict):
        rows = [
            (k, ", ".join(map(str, v)) if isinstance(v, list) else v) for k, v in corpus.items()
        ]
        parts.append(
            "<h3>Corpus</h3>" + table(("field", "value"), [(k, str(v)) for k, v in rows], (1,))
        )
    kinds = dict.fromkeys(cell.kind for cell in study.cells)
    counts = [(kind, len(study.of(kind, done=False)), len(study.of(kind))) for kind in kinds]
    parts.append("<h3>Cells</h3>" + table(("kind", "cells", "done"), counts))
    if study.missing:
        late = [(cell_link(cell), cell.kind, cell.state) for cell in study.missing]
        parts.append("<h3>Not done</h3>" + table(("cell", "kind", "state"), late, (2,)))
    return "".join(parts)


def _over(study: StudyResults, fits: Fits, draw) -> list[tuple[str, str, str]]:
    """Best of n and over-optimization, where the study has them."""
    found = []
    if study.of("best_of_n"):
        found.append(("best-of-n", "Best of n", overoptimization.best_of_n(study)))
    for analysis in study.analyses("overoptimization"):
        title = "Over-optimization" + (f" ({analysis.label})" if analysis.label else "")
        made = fits.overoptimization[analysis.name]
        found.append((analysis.name, title, overoptimization.section(study, analysis, made, draw)))
    return found


def _prompting(study: StudyResults, draw) -> list[tuple[str, str, str]]:
    """Prompting, where the study has it."""
    if not study.of("prompting", done=False):
        return []
    return [("prompting", "Prompting", prompting.prompting(study, draw))]


def _others(study: StudyResults, draw) -> list[tuple[str, str, str]]:
    """DPO and rounds, where the study has them."""
    found = [("dpo", "DPO", policies.dpo(study))] if study.of("dpo") else []
    by_round = policies.by_round(study, draw)
    return found + ([("rounds", "Rounds", by_round)] if by_round else [])


def _scalars(results: dict[str, Any]) -> list[tuple[str, float]]:
    """Top-level numbers of results files, as (file.key, value)."""
    return [
        (f"{stem}.{key}", value)
        for stem, content in results.items()
        if isinstance(content, dict)
        for key, value in content.items()
        if is_number(value)
    ]


def _escape(text: Any) -> str:
    return paragraph(str(text))[3:-4]


def _bases(study: StudyResults) -> list:
    """Finished pretraining cells outside every analysis, or those that other cells start from."""
    parents = {p for cell in study.cells for p in cell.parents}
    return [c for c in study.of("pretrain") if c.name in parents or c.name not in study.analysed]


def _base(study: StudyResults, draw) -> str:
    bases = _bases(study)
    if not bases:
        return absent(study, "pretrain", "base model outside the sweep")
    rows = []
    for cell in bases:
        held = cell.heldout
        flops = held.get("flops")
        exact = flops.get("exact") if isinstance(flops, dict) else flops
        rows.append(
            (
                cell_link(cell),
                count(held.get("params")),
                count(held.get("train_tokens")),
                power(exact or 0),
                plus_minus(held.get("loss"), held.get("stderr")),
                plus_minus(held.get("bits_per_byte"), held.get("bits_per_byte_stderr")),
            )
        )
    body = table(
        ("cell", "params", "training tokens", "FLOPs (exact)", "held-out loss", "bits/byte"), rows
    )
    body += draw(plots_scaling.loss_curves(bases, "base-curve", "training"))
    return body


def _sft(study: StudyResults, draw) -> str:
    cells = study.of("sft")
    if not cells:
        return absent(study, "sft", "fine-tuning cell")
    rows = [(cell_link(c), key, number(v)) for c in cells for key, v in _scalars(c.results)]
    body = table(("cell", "result", "value"), rows) if rows else ""
    return body + draw(plots_scaling.loss_curves(cells, "sft-curve", "fine-tuning"))


def _limits(study: StudyResults, fits: Fits) -> str:
    lines = [
        "Losses are of one held-out set that all cells share: their standard errors are over its "
        "rows of tokens, and say nothing about other seeds or other text.",
        "FLOPs are the exact count of matmuls unless another convention is named; the parametric "
        "law's optimum takes C = 6 N D.",
    ]
    if fits.approaches:
        lines.append(
            "IsoFLOP parabolas are approximations; intervals come from the scatter of the runs, so "
            "they hold what differs between runs and not what all runs share (data, schedule, "
            "learning-rate law)."
        )
    if study.of("evaluate"):
        lines.append(
            "The gold reward is a rule that stands in for people. Samples shown are the first of "
            "those that the evaluation's seed chose, not a selection."
        )
    for cell in study.cells:
        for where, said in (cell.results.get("left_out") or {}).items():
            lines.append(f"{cell.name}, {where}: {said}.")
    if any(c.provenance.get("dirty") for c in study.cells):
        lines.append("Some cells ran from a checkout with uncommitted changes (marked + below).")
    return "".join(map(paragraph, lines))


def _provenance(study: StudyResults) -> str:
    rows, environments = [], []
    for cell in study.cells:
        p = cell.provenance
        commit = str(p.get("commit") or "-")[:10] + ("+" if p.get("dirty") else "")
        versions = ", ".join(f"{k} {v}" for k, v in p.get("versions", {}).items())
        made_on = f"{p.get('hardware') or '-'}; Python {p.get('python') or '-'}; {versions or '-'}"
        if made_on not in environments:
            environments.append(made_on)
        anchor = Html(f'<span id="cell-{_escape(cell.run_id)}">{_escape(cell.name)}</span>')
        rows.append(
            (
                anchor,
                cell.kind,
                Html(f"<code>{_escape(cell.run_id)}</code>"),
                cell.state,
                commit,
                number(cell.seconds, 4),
                environments.index(made_on) + 1,
                ", ".join(cell.parents) or "-",
            )
        )
    head = ("cell", "kind", "run id", "state", "commit", "seconds", "made on", "starts from")
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    intro = "Every number above is of a cell below; its folder holds the configuration, metrics and results."
    machines = "".join(paragraph(f"Made on {i}: {e}.") for i, e in enumerate(environments, 1))
    return paragraph(f"{intro} Report written {written}.") + machines + table(head, rows, (7,))
