"""The report's sections on scaling: sweeps, the three approaches, learning rates, repeated data,
predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_jax.cost.flops import CONVENTIONS
from rlhf_jax.laws.forms import LAWS
from rlhf_jax.laws.learning_rate import B0, N0
from rlhf_jax.laws.published import FRONTIERS
from rlhf_jax.report import plots_laws, plots_scaling
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
from rlhf_jax.report.lead import Series, small
from rlhf_jax.report.study_fits import Fits
from rlhf_jax.report.study_results import (
    Analysed,
    CellResult,
    StudyResults,
    is_number,
    sweep_table,
    unique_rows,
)
from rlhf_jax.report.style import count, power

TITLES = {1: "envelope", 2: "IsoFLOP", 3: "parametric"}


def _exponent_line(approach: int, name: str, fit: dict[str, Any]) -> str:
    head = f"Approach {approach} ({TITLES[approach]}){_of(name)}"
    if fit.get("refused"):
        return f"{head}: no exponent. {_sentence(fit['refused'])}"
    ends = fit.get("intervals", {})
    return (
        f"{head}: N* ∝ C^{fit['a']:.3f}, 95% interval {interval(ends.get('a'), 3)}; "
        f"D* ∝ C^{fit['b']:.3f} {interval(ends.get('b'), 3)}. Hoffmann 2022: "
        f"{FRONTIERS[f'hoffmann-{approach}'].a:.2f}."
    )


def _rate_law(fit: dict[str, Any]) -> str:
    if fit.get("refused"):
        return "none. " + _sentence(fit["refused"])
    ends = fit["intervals"]
    return (
        f"lr = {fit['lr0']:.3g} (N / {N0:,.0f})^-{fit['n_power']:.2f} (B / "
        f"{B0:,})^{fit['b_power']:.2f}; 95% intervals {interval(ends['lr0'], 4)}, "
        f"{interval(ends['n_power'], 2)}, {interval(ends['b_power'], 2)}; residual of ln lr "
        f"{fit['residual_sd']:.2f}."
    )


def _repetition_line(fit: dict[str, Any]) -> str:
    if fit.get("refused") or "parameters" not in fit:
        return "no law. " + _sentence(fit.get("refused") or "nothing was fitted")
    return (
        f"R_D* = {fit['parameters']['R_D']:.3g} repetitions, 95% interval "
        f"{interval(fit['intervals'].get('R_D'))} (Muennighoff 2023: 15.4)."
    )


def _of(name: str) -> str:
    """` (label)` of an analysis that has one."""
    label = name.removeprefix("isoflop").removeprefix("lr_check").strip("-")
    return f" ({label.replace('-', ' ')})" if label else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _refused(sentence: str) -> Paragraph:
    return Paragraph(sentence, "refused")


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
        found.append(_prediction(fits.prediction))
    found += [_lr_law(name, fit) for name, fit in fits.lr_law.items()]
    found += [
        _repeated(a, fits.data_constrained[a.name]) for a in study.analyses("data_constrained")
    ]
    return found + [_lr_check(name, check) for name, check in fits.lr_check.items()]


def _isoflop(analysis: Analysed, by_approach: dict[int, dict[str, Any]]) -> list[Section]:
    """The sweep, and the three approaches' fits to it."""
    name, cells = analysis.name, analysis.cells
    rows = sweep_table(cells, analysis.params, analysis.flops)
    none = Paragraph("None of its cells has a held-out loss yet.", "muted")
    curves = plots_scaling.training_curves([c for c in cells if c.done], f"{name}-curves")
    lines = {k: _exponent_line(k, name, fit) for k, fit in by_approach.items()}
    refused = [line for k, line in lines.items() if by_approach[k].get("refused")]
    said = [line for line in lines.values() if line not in refused]
    sweep = [curves, _accounting(analysis), _sweep_rows(rows) if rows else none]
    return [
        Section("Scaling sweep" + _of(name), sweep, anchor=name),
        Section(
            "Fits" + _of(name),
            _fits(name, by_approach),
            said,
            refused,
            _lead(name, by_approach),
            f"{name}-fits",
        ),
    ]


def _lead(name: str, by_approach: dict[int, dict[str, Any]]) -> list[Lead]:
    """The compute-optimal sizes with the law through them, of the IsoFLOP fit, or else of the first
    that gives an exponent."""
    order = [k for k in (2, 3, 1) if not by_approach.get(k, {"refused": True}).get("refused")]
    if not order:
        return []
    fit = by_approach[order[0]]
    line, minima = fit["frontier"], [b for b in fit.get("budgets") or [] if not b["refused"]]
    ends = [(p.get("intervals") or {}).get("n_star") for p in line]
    low, high = zip(*ends, strict=True) if ends and all(ends) else (None, None)
    around = [b["intervals"].get("n_star", (b["n_star"],) * 2) for b in minima]
    plot = small(
        f"lead-{name}",
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
    return [Lead(f"Compute-optimal size, {TITLES[order[0]]}{_of(name)}", number, plot)]


def _lr_law(name: str, fit: dict[str, Any]) -> Section:
    line = _rate_law(fit)
    named = f"Learning-rate law{_of(name)}: {line}"
    refused = bool(fit.get("refused"))
    groups = [g for g in fit.get("groups") or [] if g["best_lr"] and not g["refused"]]
    plot = small(
        f"lead-{name}",
        [Series([g["params"] for g in groups], [g["best_lr"] for g in groups])],
        "parameters N",
        "best peak learning rate",
        "Best learning rate of every size and batch.",
        x_form=count,
        y_form=lambda v: f"{v:.1g}",
    )
    power_of_n = "" if refused else f"lr ∝ N^-{fit['n_power']:.2f} B^{fit['b_power']:.2f}"
    return Section(
        "Learning-rate law" + _of(name),
        [
            plots_laws.lr_law(fit, name),
            _refused(line) if refused else Paragraph(line),
            _rates(fit),
            *_notes(fit),
        ],
        [] if refused else [named],
        [named] if refused else [],
        [] if refused else [Lead("Learning-rate law", power_of_n, plot)],
        name,
    )


def _lr_check(name: str, check: dict[str, Any]) -> Section:
    tried = columns(
        check["points"],
        ("cell", lambda p: p["label"]),
        ("run id", lambda p: Reference(p["run_id"], p["run_id"], code=True)),
        ("peak lr", lambda p: number(p["lr"])),
        ("held-out loss", lambda p: plus_minus(p["loss"], p["stderr"])),
    )
    kind = "" if check["interior"] else "refused"
    line = f"Learning-rate check{_of(name)}: {check['reason']}."
    blocks = [
        plots_scaling.lr_check(check, name),
        Paragraph(_sentence(check["reason"]), kind),
        tried,
    ]
    said, cautions = ([line], []) if check["interior"] else ([], [line])
    return Section("Learning-rate check" + _of(name), blocks, said, cautions, anchor=name)


def _accounting(analysis: Analysed) -> Paragraph | None:
    """What counts as N, C and loss, where that is not the default."""
    source = {
        "heldout": "",
        "ends": "Losses at equal compute are interpolated between each size's final held-out losses. ",
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
        ("runs", lambda of: of[1].get("n", "-")),
        ("a (N*)", lambda of: fixed(of[1].get("a"))),
        ("95%", lambda of: interval((of[1].get("intervals") or {}).get("a"), 3)),
        ("b (D*)", lambda of: fixed(of[1].get("b"))),
        ("held-out extrapolation", lambda of: _ahead(of[1])),
        ("refused", lambda of: of[1].get("refused") or "-"),
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
    by_name, found = {c.name: c for c in study.cells}, {}
    queue = list(cells)
    while queue:
        cell = queue.pop()
        if cell.name not in found:
            found[cell.name] = cell
            queue += [by_name[p] for p in cell.parents if p in by_name]
    return list(found.values())


def _own_flops(cell: CellResult, study: StudyResults) -> float:
    """Training FLOPs of a cell beyond those of the one that it continues."""

    def spent(c: CellResult) -> float:
        return float(c.pretrained.flops["exact"]) if c.pretrained else 0.0

    parents = [p for name in cell.parents if (p := study.cell(name)) is not None]
    return spent(cell) - sum(map(spent, parents))


def _ahead(fit: dict[str, Any]) -> str:
    """The score of a fit on what it was not fitted to, in words."""
    ahead = fit.get("extrapolation") or {}
    if is_number(ahead.get("rms_log_error")):
        return f"loss above {power(ahead['below'])} FLOPs missed by {100 * ahead['rms_log_error']:.2f}% rms"
    if is_number(ahead.get("n_log_error")):
        return (
            f"N* at {power(ahead['flops'])} FLOPs, from the runs up to {power(ahead['below'])}, "
            f"missed by {100 * ahead['n_log_error']:+.0f}% (ln)"
        )
    return str(ahead.get("refused") or "-")


def _fits(name: str, by_approach: dict[int, dict[str, Any]]) -> list[Block]:
    one, two, three = (by_approach.get(k, {}) for k in (1, 2, 3))
    blocks: list[Block] = [
        plots_scaling.frontier(by_approach, f"{name}-frontier"),
        plots_scaling.isoflop(two, f"{name}-parabolas"),
        Heading("Approach 2: IsoFLOP minima"),
        *_budgets(two),
    ]
    if three:
        blocks += [
            *_law(three),
            plots_scaling.residuals(three, f"{name}-residuals"),
            plots_laws.extrapolation(three, f"{name}-extrapolation"),
        ]
    if one:
        blocks += [Heading("Approach 1: the envelope"), *_exponents(one)]
        blocks.append(plots_laws.envelope(one, f"{name}-envelope"))
    return blocks


def _exponents(fit: dict[str, Any]) -> list[Block]:
    """a and b with intervals, or the refusal, and the notes."""
    if fit.get("refused"):
        return [_refused("No exponent: " + _sentence(fit["refused"])), *_notes(fit)]
    ends = fit["intervals"]
    said = (
        f"a = {fit['a']:.4f} {interval(ends.get('a'), 3)}, b = {fit['b']:.4f} "
        f"{interval(ends.get('b'), 3)} (95%, {fit['resamples']} bootstrap resamples). Held-out "
        f"extrapolation: {_ahead(fit)}."
    )
    return [Paragraph(said), *_notes(fit)]


def _rates(fit: dict[str, Any]) -> Table | None:
    return columns(
        fit.get("groups") or [],
        ("params N", lambda g: count(g["params"])),
        ("tokens a batch", lambda g: count(g["batch_tokens"])),
        ("best lr", lambda g: number(g["best_lr"], 3)),
        ("the law's", lambda g: number(g.get("predicted"), 3)),
        ("loss", lambda g: fixed(g["loss"], 4)),
        ("refused", lambda g: g["refused"] or "-"),
        text=(5,),
    )


def _repeated(analysis: Analysed, fit: dict[str, Any]) -> Section:
    name, line = analysis.name, _repetition_line(fit)
    title, named = "Repeated data" + _of(name), f"Repeated data{_of(name)}: {line}"
    if "parameters" not in fit:
        return Section(title, [_refused(line)], cautions=[named], anchor=name)
    law, ends = LAWS[fit["law"]](**fit["parameters"]), fit["intervals"]
    coefficients = columns(
        fit["parameters"].items(),
        ("coefficient", lambda of: of[0]),
        ("value", lambda of: number(of[1], 5)),
        ("95%", lambda of: interval(ends.get(of[0]))),
    )
    rows = unique_rows(analysis.cells)
    drawn = plots_laws.repetition(law.predict, rows, name)
    blocks = [
        drawn,
        _refused(line) if fit.get("refused") else Paragraph(line),
        coefficients,
        plots_laws.law(fit, f"{name}-law"),
        Paragraph(f"Held-out extrapolation: {_ahead(fit)}."),
        *_notes(fit),
    ]
    if fit.get("refused"):
        return Section(title, blocks, cautions=[named], anchor=name)
    plot = small(
        f"lead-{name}",
        [Series([r["tokens"] / r["unique_tokens"] for r in rows], [r["loss"] for r in rows])],
        "epochs of the data",
        "held-out loss (nats/token)",
        "Held-out loss of every run against the number of epochs.",
        x_form=count,
    )
    said = f"R_D* = {fit['parameters']['R_D']:.3g} {interval(ends.get('R_D'))}"
    lead = Lead("Repetitions until repeated tokens lose most of their value", said, plot)
    return Section(title, blocks, [named], leads=[lead], anchor=name)


def _prediction(said: dict[str, Any]) -> Section:
    score = said.get("score", {})
    seen = score.get("measured", {})
    made = (
        f"Made at {said.get('made', '?')} from {said['fitted']} runs of up to "
        f"{power(said['below'])} FLOPs, for {power(said['flops'])} FLOPs."
    )
    named = {"n_star": "N*", "d_star": "D*", "loss_star": "loss"}
    found = [
        {
            "quantity": label,
            "law": f"A{approach}",
            "approach": approach,
            "predicted": of[key],
            "low": of["intervals"].get(key, (None, None))[0],
            "high": of["intervals"].get(key, (None, None))[1],
            "measured": seen.get(key),
            "measured_low": ends[0],
            "measured_high": ends[1],
            "error": score.get("approaches", {}).get(approach, {}).get(key),
        }
        for approach, of in said["approaches"].items()
        for key, label in named.items()
        if of.get(key)
        for ends in [(seen.get("intervals") or {}).get(key, (None, None))]
    ]
    beside = columns(
        found,
        ("from", lambda r: f"approach {r['approach']}"),
        ("quantity", lambda r: r["quantity"]),
        ("predicted", lambda r: number(r["predicted"], 4)),
        ("95%", lambda r: interval((r["low"], r["high"]))),
        ("measured", lambda r: number(r["measured"], 4)),
        ("95%", lambda r: interval((r["measured_low"], r["measured_high"]))),
        ("ln error", lambda r: "-" if r["error"] is None else f"{100 * r['error']:+.1f}%"),
        text=(0, 1),
    )
    refused = [
        f"Approach {k}: {_sentence(of['refused'])}"
        for k, of in said["approaches"].items()
        if of.get("refused")
    ]
    refused += [f"Measured: {_sentence(seen['refused'])}"] if seen.get("refused") else []
    lines = []
    if runs := score.get("runs"):
        lines.append(
            f"Approach 3 also said the loss of each of the {runs['n']} runs: missed by "
            f"{100 * runs['rms_log_error']:.2f}% rms (mean {100 * runs['mean_log_error']:+.2f}%)."
        )
    drawn = plots_laws.predicted([r for r in found if r["measured"]], "prediction")
    blocks = [drawn, Paragraph(made), beside, *map(_refused, refused), *map(Paragraph, lines)]
    return Section("Predicted before it was run", blocks, lines, refused, anchor="prediction")


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
        fit.get("budgets") or [],
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
    refusal = fit.get("refused")
    refused = [_refused("No compute-optimal split: " + _sentence(refusal))] if refusal else []
    if "E" not in fit:
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
    return [*blocks, *map(Paragraph, lines), *refused, *_notes(fit)]


def _notes(fit: dict[str, Any]) -> list[Paragraph]:
    return [Paragraph(_sentence(note), "muted") for note in fit.get("notes", [])]
