"""The report of a study: one self-contained HTML page, from run folders alone.

No script and no network; light, dark and print. A section whose cells are not done says so.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rlhf_jax.report import plots_scaling
from rlhf_jax.report import rlhf_sections as rlhf
from rlhf_jax.report.markup import (
    Html,
    cell_link,
    figure,
    fixed,
    interval,
    number,
    page,
    paragraph,
    plus_minus,
    run_link,
    table,
)  # fmt: skip
from rlhf_jax.report.study_results import (
    Fits,
    StudyResults,
    is_number,
    read_study,
    run_fits,
    sweep_table,
)
from rlhf_jax.report.style import Plot, count, power


def build(
    study_folder: str | Path, runs_root: str | Path, resamples: int = 1000, seed: int = 0
) -> Path:
    """Runs the study's fits, draws its figures and writes `report.html` into the study folder.

    The page appears whole or not at all: it is written beside its place and moved there.

    Args:
      study_folder: `RUNS/studies/NAME`, with a study.json. runs_root: `RUNS`.
      resamples, seed: of the bootstrap.

    Raises:
      ConfigError: no study.json.
    """
    study = read_study(study_folder, runs_root)
    fits = run_fits(study, resamples, seed)
    plots: list[Plot] = []

    def draw(plot: Plot | None) -> str:
        if plot is not None:
            plots.append(plot)
        return figure(plot)

    sections = [
        ("summary", "Summary", _summary(study, fits)),
        ("data", "Data", _data(study)),
        *_scaling(study, fits, draw),
        ("base", "Base model", _base(study, draw)),
        ("sft", "Supervised fine-tuning", _sft(study, draw)),
        ("reward", "Reward model", rlhf.reward(study, draw)),
        ("ppo", "PPO", rlhf.ppo(study, draw)),
        ("evaluation", "Evaluation", rlhf.evaluation(study, draw)),
        ("limits", "Limits", _limits(study, fits)),
        ("provenance", "Provenance", _provenance(study)),
    ]
    title = str(study.spec.get("title") or study.spec.get("name") or study.folder.name)
    text = page(title, str(study.spec.get("description") or ""), sections)
    for plot in plots:
        plot.write(study.folder / "figures")
    return _write(study.folder / "report.html", text)


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _summary(study: StudyResults, fits: Fits) -> str:
    lines = [_exponent_line(2, name, fit) for name, fit in fits.isoflop.items()]
    lines += [_exponent_line(3, name, fit) for name, fit in fits.parametric.items()]
    lines += [
        f"Learning-rate check{_of(name)}: {check['reason']}."
        for name, check in fits.lr_check.items()
    ]
    for cell in _bases(study):
        held = cell.heldout
        lines.append(
            f"{cell.name} ({count(held.get('params'))} parameters): held-out loss "
            f"{plus_minus(held.get('loss'), held.get('stderr'))} nats/token, "
            f"{plus_minus(held.get('bits_per_byte'), held.get('bits_per_byte_stderr'))} bits/byte."
        )
    lines += rlhf.headlines(study)
    if study.missing:
        done = len(study.cells) - len(study.missing)
        lines.append(f"{done} of {len(study.cells)} cells are done; the rest is listed under Data.")
    if not lines:
        return paragraph("No cell has a result yet.")
    return (
        '<ul class="headline">' + "".join(f"<li>{paragraph(line)}</li>" for line in lines) + "</ul>"
    )


def _exponent_line(approach: int, name: str, fit: dict[str, Any]) -> str:
    title = "IsoFLOP" if approach == 2 else "parametric"
    if fit.get("refused"):
        return f"Approach {approach} ({title}){_of(name)}: no exponent. {_sentence(fit['refused'])}"
    ends = fit.get("intervals", {})
    return (
        f"Approach {approach} ({title}){_of(name)}: N* ∝ C^{fit['a']:.3f}, 95% interval "
        f"{interval(ends.get('a'), 3)}; D* ∝ C^{fit['b']:.3f} {interval(ends.get('b'), 3)}. "
        f"Hoffmann 2022: 0.49 and 0.51 (approach 2)."
    )


def _of(name: str) -> str:
    """` (label)` of an analysis that has one."""
    label = name.removeprefix("isoflop").removeprefix("lr_check").strip("-")
    return f" ({label.replace('-', ' ')})" if label else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


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


def _escape(text: Any) -> str:
    return paragraph(str(text))[3:-4]


def _scaling(study: StudyResults, fits: Fits, draw) -> list[tuple[str, str, str]]:
    sections = []
    for name, cells in study.analyses("isoflop"):
        rows = sweep_table(cells)
        body = (
            _sweep_rows(rows) if rows else paragraph("None of its cells has a held-out loss yet.")
        )
        body += draw(plots_scaling.training_curves([c for c in cells if c.done], f"{name}-curves"))
        two, three = fits.isoflop[name], fits.parametric[name]
        laws = _budgets(two) + draw(plots_scaling.isoflop(two, f"{name}-parabolas"))
        laws += draw(plots_scaling.frontier(two, three, f"{name}-frontier"))
        laws += _law(three) + draw(plots_scaling.residuals(three, f"{name}-residuals"))
        sections += [
            (name, "Scaling sweep" + _of(name), body),
            (f"{name}-fits", "Fits" + _of(name), laws),
        ]
    for name, check in fits.lr_check.items():
        tried = [
            (p["label"], run_link(p["run_id"]), number(p["lr"]), plus_minus(p["loss"], p["stderr"]))
            for p in check["points"]
        ]
        body = paragraph(_sentence(check["reason"]), "" if check["interior"] else "refused")
        body += table(("cell", "run id", "peak lr", "held-out loss"), tried) if tried else ""
        body += draw(plots_scaling.lr_check(check, name))
        sections.append((name, "Learning-rate check" + _of(name), body))
    return sections


def _sweep_rows(rows: list[dict[str, Any]]) -> str:
    rows = sorted(rows, key=lambda row: (float(f"{row['flops'] or 0:.1e}"), row["params"] or 0))
    return table(
        ("cell", "run id", "params N", "tokens D", "D/N", "FLOPs (exact)", "loss (nats/token)", "bits/byte", "peak lr"),
        [
            (
                row["label"], run_link(row["run_id"]), count(row["params"]), count(row["tokens"]),
                number(row["tokens"] / row["params"], 3) if row["params"] and row["tokens"] else "-",
                power(row["flops"]) if row["flops"] else "-", plus_minus(row["loss"], row["stderr"]),
                fixed(row["bits_per_byte"], 4), number(row["lr"], 3),
            )
            for row in rows
        ],
    )  # fmt: skip


def _budgets(fit: dict[str, Any]) -> str:
    body = "<h3>Approach 2: IsoFLOP minima</h3>"
    rows = []
    for b in fit.get("budgets") or []:
        ends, said = b["intervals"], b["refused"] or "; ".join(b["warnings"]) or "resolved"
        verdict = f"refused: {said}" if b["refused"] else said
        rows.append(
            (power(b["flops"]), len(b["points"]), count(b["n_star"]), interval(ends.get("n_star"), form=count),
             count(b["d_star"]), interval(ends.get("d_star"), form=count), fixed(b["loss_star"], 4),
             interval(ends.get("loss_star"), 4), verdict)
        )  # fmt: skip
    if rows:
        body += table(
            ("budget", "runs", "N*", "95%", "D*", "95%", "L*", "95%", "verdict"), rows, (8,)
        )
    if fit.get("refused"):
        return body + paragraph("No exponent: " + _sentence(fit["refused"]), "refused")
    ends = fit["intervals"]
    body += paragraph(
        f"a = {fit['a']:.4f} {interval(ends.get('a'), 3)}, b = {fit['b']:.4f} {interval(ends.get('b'), 3)} "
        f"(95%, {fit['resamples']} bootstrap resamples over runs)."
    )
    return body + _notes(fit)


def _law(fit: dict[str, Any]) -> str:
    body = "<h3>Approach 3: L(N, D) = E + A / N^alpha + B / D^beta</h3>"
    if fit.get("refused"):
        body += paragraph("No compute-optimal split: " + _sentence(fit["refused"]), "refused")
    if "E" not in fit:
        return body
    ends = fit["intervals"]
    names = ("E", "A", "B", "alpha", "beta", "a", "b")
    body += table(
        ("coefficient", "value", "95%"),
        [(k, number(fit[k], 6), interval(ends.get(k))) for k in names],
    )
    ahead = fit["extrapolation"]
    lines = [
        f"{fit['n']} runs; objective {number(fit['objective'], 6)}; {fit['hit_rate']:.0%} of 243 starts reach "
        f"this optimum; condition number {number(fit['condition'], 3)}.",
        f"Outliers: {fit['outliers']['policy']}.",
    ]
    if "rms_log_error" in ahead and is_number(ahead["rms_log_error"]):
        lines.append(
            f"Extrapolation: fitted to the {ahead['fitted']} runs up to {power(ahead['below'])} FLOPs, the law "
            f"misses the other {ahead['scored']} by {100 * ahead['rms_log_error']:.2f}% rms "
            f"(mean {100 * ahead['mean_log_error']:+.2f}%)."
        )
    else:
        lines.append(f"Extrapolation not scored: {ahead.get('refused', 'no finite error')}.")
    return body + "".join(map(paragraph, lines)) + _notes(fit)


def _notes(fit: dict[str, Any]) -> str:
    return "".join(paragraph(_sentence(note), "muted") for note in fit.get("notes", []))


def _bases(study: StudyResults) -> list:
    """Finished pretraining cells outside every analysis, or those that other cells start from."""
    parents = {p for cell in study.cells for p in cell.parents}
    return [c for c in study.of("pretrain") if c.name in parents or c.name not in study.analysed]


def _base(study: StudyResults, draw) -> str:
    bases = _bases(study)
    if not bases:
        return rlhf.absent(study, "pretrain", "base model outside the sweep")
    rows = []
    for cell in bases:
        held = cell.heldout
        flops = held.get("flops")
        exact = flops.get("exact") if isinstance(flops, dict) else flops
        rows.append(
            (cell_link(cell), count(held.get("params")), count(held.get("train_tokens")), power(exact or 0),
             plus_minus(held.get("loss"), held.get("stderr")),
             plus_minus(held.get("bits_per_byte"), held.get("bits_per_byte_stderr")))
        )  # fmt: skip
    body = table(
        ("cell", "params", "training tokens", "FLOPs (exact)", "held-out loss", "bits/byte"), rows
    )
    body += draw(plots_scaling.loss_curves(bases, "base-curve", "training"))
    return body


def _sft(study: StudyResults, draw) -> str:
    cells = study.of("sft")
    if not cells:
        return rlhf.absent(study, "sft", "fine-tuning cell")
    rows = [(cell_link(c), key, number(v)) for c in cells for key, v in rlhf.scalars(c.results)]
    body = table(("cell", "result", "value"), rows) if rows else ""
    return body + draw(plots_scaling.loss_curves(cells, "sft-curve", "fine-tuning"))


def _limits(study: StudyResults, fits: Fits) -> str:
    lines = [
        "Losses are of one held-out set that all cells share: their standard errors are over its rows of tokens, "
        "and say nothing about other seeds or other text.",
        "FLOPs are the exact count of matmuls unless another convention is named; the parametric law's "
        "optimum takes C = 6 N D.",
    ]
    if fits.isoflop:
        lines.append(
            "IsoFLOP parabolas are approximations; intervals come from resampling runs, so they hold what "
            "differs between runs and not what all runs share (data, schedule, learning-rate law)."
        )
    if study.of("evaluate"):
        lines.append(
            "The gold reward is a rule that stands in for people. Samples shown are the first of those that "
            "the evaluation's seed chose, not a selection."
        )
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
            (anchor, cell.kind, Html(f"<code>{_escape(cell.run_id)}</code>"), cell.state, commit,
             number(cell.seconds, 4), environments.index(made_on) + 1,
             ", ".join(cell.parents) or "-")
        )  # fmt: skip
    head = ("cell", "kind", "run id", "state", "commit", "seconds", "made on", "starts from")
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    intro = "Every number above is of a cell below; its folder holds the configuration, metrics and results."
    machines = "".join(paragraph(f"Made on {i}: {e}.") for i, e in enumerate(environments, 1))
    return paragraph(f"{intro} Report written {written}.") + machines + table(head, rows, (7,))
