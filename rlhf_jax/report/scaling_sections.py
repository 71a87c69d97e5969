"""The report's sections on scaling: sweeps, the three approaches, learning rates, repeated data,
predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_jax.cost.flops import CONVENTIONS
from rlhf_jax.laws.published import FRONTIERS
from rlhf_jax.report import law_sections, plots_laws, plots_scaling
from rlhf_jax.report.blocks import (
    Block,
    Heading,
    Lead,
    Paragraph,
    Reference,
    Section,
    Table,
    columns,
    fixed,
    interval,
    number,
    plus_minus,
)
from rlhf_jax.report.families import ancestors
from rlhf_jax.report.lead import Series, small
from rlhf_jax.report.study_fits import Fits
from rlhf_jax.report.study_results import (
    Analysed,
    CellResult,
    StudyResults,
    is_number,
    sweep_table,
)
from rlhf_jax.report.style import count, power

TITLES = {1: "envelope", 2: "IsoFLOP", 3: "parametric"}


def _exponent_line(approach: int, analysis: Analysed, fit: dict[str, Any]) -> str:
    named = ", ".join(filter(None, (TITLES[approach], analysis.distinction)))
    head, ends = f"Approach {approach} ({named})", fit["intervals"]
    if fit["refused"]:
        return f"{head}: no exponent. {law_sections.sentence(fit['refused'])}"
    return (
        f"{head}: N* ∝ C^{fit['a']:.3f}, 95% interval {interval(ends.get('a'), 3)}; "
        f"D* ∝ C^{fit['b']:.3f} {interval(ends.get('b'), 3)}. Hoffmann 2022: "
        f"{FRONTIERS[f'hoffmann-{approach}'].a:.2f}."
    )


def sections(study: StudyResults, fits: Fits) -> list[Section]:
    """Every section on scaling that the study has."""
    found = [s for a in study.analyses("isoflop") for s in _isoflop(a, fits.approaches[a.name])]
    if sum(map(len, fits.approaches.values())) > 1:
        side = [
            (_side(a.label or a.name, approach, fits), fit)
            for a in study.analyses("isoflop")
            for approach, fit in fits.approaches[a.name].items()
        ]
        blocks = [plots_laws.exponents(side, "exponents"), *_side_by_side(study, side)]
        found.insert(0, Section("Exponents side by side", blocks, anchor="exponents"))
    if fits.prediction:
        found.append(law_sections.prediction(fits.prediction))
    for kind, show, made in (
        ("lr_law", law_sections.lr_law, fits.lr_law),
        ("data_constrained", law_sections.repeated, fits.data_constrained),
        ("lr_check", law_sections.lr_check, fits.lr_check),
    ):
        found += [show(analysis, made[analysis.name]) for analysis in study.analyses(kind)]
    return found


def _isoflop(analysis: Analysed, by_approach: dict[int, dict[str, Any]]) -> list[Section]:
    """The sweep, and the three approaches' fits to it."""
    name, cells = analysis.name, analysis.cells
    rows = sweep_table(cells, analysis.params, analysis.flops)
    none = Paragraph("None of its cells has a held-out loss yet.", "muted")
    curves = plots_scaling.training_curves([c for c in cells if c.done], f"{name}-curves")
    lines = {k: _exponent_line(k, analysis, fit) for k, fit in by_approach.items()}
    refused = [line for k, line in lines.items() if by_approach[k]["refused"]]
    said = [line for line in lines.values() if line not in refused]
    sweep = [curves, _accounting(analysis), _sweep_rows(rows) if rows else none]
    return [
        Section(analysis.titled("Scaling sweep"), sweep, anchor=name),
        Section(
            analysis.titled("Fits"),
            _fits(name, by_approach),
            said,
            refused,
            _lead(analysis, by_approach),
            f"{name}-fits",
        ),
    ]


def _lead(analysis: Analysed, by_approach: dict[int, dict[str, Any]]) -> list[Lead]:
    """The compute-optimal sizes with the law through them, of the IsoFLOP fit, or else of the first
    that gives an exponent."""
    order = [k for k in (2, 3, 1) if k in by_approach and not by_approach[k]["refused"]]
    if not order:
        return []
    fit = by_approach[order[0]]
    line, minima = fit["frontier"], [b for b in fit.get("budgets", ()) if not b["refused"]]
    ends = [(p.get("intervals") or {}).get("n_star") for p in line]
    low, high = zip(*ends, strict=True) if ends and all(ends) else (None, None)
    around = [b["intervals"].get("n_star", (b["n_star"],) * 2) for b in minima]
    plot = small(
        f"lead-{analysis.name}",
        [
            Series([p["flops"] for p in line], [p["n_star"] for p in line], low, high, True),
            Series(
                [b["flops"] for b in minima],
                [b["n_star"] for b in minima],
                [a[0] for a in around],
                [a[1] for a in around],
            ),
        ],
        "training compute C (FLOPs)",
        "optimal size N*",
        "Compute-optimal model size against compute, with the fitted law and its 95% band.",
        x_form=power,
        y_form=count,
    )
    number = f"N* ∝ C^{fit['a']:.2f} {interval(fit['intervals'].get('a'), 2)}"
    return [Lead(analysis.titled(f"Compute-optimal size, {TITLES[order[0]]}"), number, plot)]


def _accounting(analysis: Analysed) -> Paragraph | None:
    """What counts as N, C and loss, where that is not the default."""
    source = {
        "heldout": "",
        "ends": "Losses at equal compute are interpolated between each size's final held-out "
        "losses. ",
        "curve": "Losses at equal compute are read off each size's smoothed training loss. ",
    }[analysis.loss]
    if (analysis.params, analysis.flops, analysis.loss) == ("total", "exact", "heldout"):
        return None
    n = "all parameters" if analysis.params == "total" else "parameters without embeddings"
    return Paragraph(f"{source}N: {n}. C: {CONVENTIONS[analysis.flops]}.")


def _side(label: str, approach: int, fits: Fits) -> str:
    """A fit's name among those of the study."""
    if len(fits.approaches) == 1:
        return f"approach {approach}"
    return f"{label}, approach {approach}"


def _side_by_side(study: StudyResults, side: list[tuple[str, dict[str, Any]]]) -> list[Block]:
    found = columns(
        side,
        ("fit", lambda of: of[0]),
        ("runs", lambda of: number(of[1]["n"])),
        ("a (N*)", lambda of: fixed(of[1]["a"])),
        ("95%", lambda of: interval(of[1]["intervals"].get("a"), 3)),
        ("b (D*)", lambda of: fixed(of[1]["b"])),
        (
            "held-out extrapolation",
            lambda of: "-" if of[1]["refused"] else law_sections.ahead(of[1]),
        ),
        ("refused", lambda of: of[1]["refused"] or "-"),
        text=(5, 6),
    )
    blocks: list[Block] = [found]
    first = 0.0
    for analysis in study.analyses("isoflop"):
        spent = sum(_own_flops(c, study) for c in _with_parents(analysis.cells, study))
        first = first or spent
        share = f"; {spent / first:.2f} of the first" if first != spent else ""
        line = f"{power(spent)} FLOPs in all, the cells that it starts from included{share}."
        blocks.append(Paragraph(f"{analysis.label or 'The sweep'}: {line}"))
    return blocks


def _with_parents(cells: list[CellResult], study: StudyResults) -> list[CellResult]:
    names = {c.name for c in cells}.union(*(ancestors(study, c.name) for c in cells))
    return [c for c in study.cells if c.name in names]


def _own_flops(cell: CellResult, study: StudyResults) -> float:
    """Training FLOPs of a cell beyond those of the one that it continues."""

    def spent(c: CellResult) -> float:
        return float(c.pretrained.flops["exact"]) if c.pretrained else 0.0

    parents = [p for name in cell.parents if (p := study.cell(name)) is not None]
    return spent(cell) - sum(map(spent, parents))


def _fits(name: str, by_approach: dict[int, dict[str, Any]]) -> list[Block]:
    blocks: list[Block] = [
        plots_scaling.frontier(by_approach, f"{name}-frontier"),
        plots_scaling.isoflop(by_approach[2], f"{name}-parabolas"),
        Heading("Approach 2: IsoFLOP minima"),
        *_budgets(by_approach[2]),
    ]
    if three := by_approach.get(3):
        blocks += [
            *_law(three),
            plots_scaling.residuals(three, f"{name}-residuals"),
            plots_laws.extrapolation(three, f"{name}-extrapolation"),
        ]
    if one := by_approach.get(1):
        blocks += [Heading("Approach 1: the envelope"), *_exponents(one)]
        blocks.append(plots_laws.envelope(one, f"{name}-envelope"))
    return blocks


def _exponents(fit: dict[str, Any]) -> list[Block]:
    """a and b with intervals, or the refusal, and the notes."""
    if fit["refused"]:
        return [
            law_sections.refusal("No exponent: " + law_sections.sentence(fit["refused"])),
            *law_sections.notes(fit),
        ]
    ends = fit["intervals"]
    said = (
        f"a = {fit['a']:.4f} {interval(ends.get('a'), 3)}, b = {fit['b']:.4f} "
        f"{interval(ends.get('b'), 3)} (95%, {fit['resamples']} bootstrap resamples). Held-out "
        f"extrapolation: {law_sections.ahead(fit)}."
    )
    return [Paragraph(said), *law_sections.notes(fit)]


def _sweep_rows(rows: Sequence[dict[str, Any]]) -> Table | None:
    def tokens_per_param(row: dict[str, Any]) -> str:
        return number(row["tokens"] / row["params"], 3) if row["params"] else "-"

    return columns(
        sorted(rows, key=lambda r: (float(f"{r['flops'] or 0:.1e}"), r["params"] or 0)),
        ("cell", lambda r: r["label"]),
        ("run id", lambda r: Reference(r["run_id"], r["run_id"], code=True)),
        ("params N", lambda r: count(r["params"])),
        ("tokens D", lambda r: count(r["tokens"])),
        ("D/N", tokens_per_param),
        ("FLOPs (exact)", lambda r: power(r["flops"])),
        ("loss (nats/token)", lambda r: plus_minus(r["loss"], r["stderr"])),
        ("bits/byte", lambda r: fixed(r["bits_per_byte"], 4)),
        ("peak lr", lambda r: number(r["lr"], 3)),
    )


def _budgets(fit: dict[str, Any]) -> list[Block]:
    def verdict(b: dict[str, Any]) -> str:
        return (
            f"refused: {b['refused']}" if b["refused"] else "; ".join(b["warnings"]) or "resolved"
        )

    found = columns(
        fit["budgets"],
        ("budget", lambda b: power(b["flops"])),
        ("runs", lambda b: len(b["points"])),
        ("N*", lambda b: count(b["n_star"])),
        ("95%", lambda b: interval(b["intervals"].get("n_star"), form=count)),
        ("D*", lambda b: count(b["d_star"])),
        ("95%", lambda b: interval(b["intervals"].get("d_star"), form=count)),
        ("L*", lambda b: fixed(b["loss_star"], 4)),
        ("95%", lambda b: interval(b["intervals"].get("loss_star"), 4)),
        ("verdict", verdict),
        text=(8,),
    )
    return [found, *_exponents(fit)]


def _law(fit: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = [Heading("Approach 3: L(N, D) = E + A / N^alpha + B / D^beta")]
    refused = [
        law_sections.refusal("No compute-optimal split: " + law_sections.sentence(said))
        for said in filter(None, [fit["refused"]])
    ]
    if fit["E"] is None:
        return [*blocks, *refused]
    blocks.append(
        columns(
            ("E", "A", "B", "alpha", "beta", "a", "b"),
            ("coefficient", str),
            ("value", lambda key: number(fit[key], 6)),
            ("95%", lambda key: interval(fit["intervals"].get(key))),
        )
    )
    ahead = fit["extrapolation"]
    lines = [
        f"{fit['n']} runs; objective {number(fit['objective'], 6)}; {fit['hit_rate']:.0%} of 243 "
        f"starts reach this optimum; condition number {number(fit['condition'], 3)}.",
        f"Outliers: {fit['outliers']['policy']}.",
    ]
    if is_number(ahead.get("rms_log_error")):
        lines.append(
            f"Extrapolation: fitted to the {ahead['fitted']} runs up to {power(ahead['below'])} "
            f"FLOPs, the law misses the other {ahead['scored']} by "
            f"{100 * ahead['rms_log_error']:.2f}% rms (mean {100 * ahead['mean_log_error']:+.2f}%)."
        )
    else:
        lines.append(f"Extrapolation not scored: {ahead.get('refused', 'no finite error')}.")
    return [*blocks, *map(Paragraph, lines), *refused, *law_sections.notes(fit)]
