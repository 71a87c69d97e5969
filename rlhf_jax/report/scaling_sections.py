"""The report's sections on scaling: sweeps, the three approaches, learning rates, repeated data,
predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_jax.cost.flops import CONVENTIONS
from rlhf_jax.laws.learning_rate import B0, N0
from rlhf_jax.laws.named import LAWS
from rlhf_jax.laws.published import FRONTIERS
from rlhf_jax.report import plots_laws, plots_scaling
from rlhf_jax.report.markup import fixed, interval, number, paragraph, plus_minus, run_link, table
from rlhf_jax.report.study_fits import Fits
from rlhf_jax.report.study_results import (
    Analysed,
    CellResult,
    StudyResults,
    is_number,
    sweep_table,
    unique_rows,
)
from rlhf_jax.report.style import Plot, count, power

Draw = Callable[[Plot | None], str]
TITLES = {1: "envelope", 2: "IsoFLOP", 3: "parametric"}


def headlines(fits: Fits) -> list[str]:
    """One line a fit, for the summary."""
    lines = []
    for name, by_approach in fits.approaches.items():
        lines += [_exponent_line(approach, name, fit) for approach, fit in by_approach.items()]
    for name, fit in fits.lr_law.items():
        lines.append(f"Learning-rate law{_of(name)}: {_rate_law(fit)}")
    for name, check in fits.lr_check.items():
        lines.append(f"Learning-rate check{_of(name)}: {check['reason']}.")
    for name, fit in fits.data_constrained.items():
        lines.append(f"Repeated data{_of(name)}: {_repetition_line(fit)}")
    return lines


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


def sections(study: StudyResults, fits: Fits, draw: Draw) -> list[tuple[str, str, str]]:
    """(anchor, heading, markup) of every section on scaling that the study has."""
    found = []
    for analysis in study.analyses("isoflop"):
        name, cells, by_approach = analysis.name, analysis.cells, fits.approaches[analysis.name]
        rows = sweep_table(cells, analysis.params, analysis.flops)
        body = _accounting(analysis)
        body += (
            _sweep_rows(rows) if rows else paragraph("None of its cells has a held-out loss yet.")
        )
        body += draw(plots_scaling.training_curves([c for c in cells if c.done], f"{name}-curves"))
        found += [
            (name, "Scaling sweep" + _of(name), body),
            (f"{name}-fits", "Fits" + _of(name), _fits(name, by_approach, draw)),
        ]
    if sum(map(len, fits.approaches.values())) > 1:
        side = [
            (_side(a.label or a.name, approach, fits), fit)
            for a in study.analyses("isoflop")
            for approach, fit in fits.approaches[a.name].items()
        ]
        body = draw(plots_laws.exponents(side, "exponents")) + _side_by_side(study, side)
        found.insert(0, ("exponents", "Exponents side by side", body))
    if fits.prediction:
        found.append(
            ("prediction", "Predicted before it was run", _prediction(fits.prediction, draw))
        )
    for name, fit in fits.lr_law.items():
        body = paragraph(_rate_law(fit), "refused" if fit.get("refused") else "")
        body += _rates(fit) + draw(plots_laws.lr_law(fit, name)) + _notes(fit)
        found.append((name, "Learning-rate law" + _of(name), body))
    for analysis in study.analyses("data_constrained"):
        body = _repeated(fits.data_constrained[analysis.name], analysis, draw)
        found.append((analysis.name, "Repeated data" + _of(analysis.name), body))
    for name, check in fits.lr_check.items():
        tried = [
            (p["label"], run_link(p["run_id"]), number(p["lr"]), plus_minus(p["loss"], p["stderr"]))
            for p in check["points"]
        ]
        body = paragraph(_sentence(check["reason"]), "" if check["interior"] else "refused")
        body += table(("cell", "run id", "peak lr", "held-out loss"), tried) if tried else ""
        body += draw(plots_scaling.lr_check(check, name))
        found.append((name, "Learning-rate check" + _of(name), body))
    return found


def _accounting(analysis: Analysed) -> str:
    """What counts as N, C and loss, where that is not the default."""
    source = {
        "heldout": "",
        "ends": "Losses at equal compute are interpolated between each size's final held-out losses. ",
        "curve": "Losses at equal compute are read off each size's smoothed training loss. ",
    }[analysis.loss]
    if (analysis.params, analysis.flops, analysis.loss) == ("total", "exact", "heldout"):
        return ""
    n = "all parameters" if analysis.params == "total" else "parameters without embeddings"
    return paragraph(f"{source}N: {n}. C: {CONVENTIONS[analysis.flops]}.")


def _side(label: str, approach: int, fits: Fits) -> str:
    """A fit's name among those of the study."""
    if len(fits.approaches) == 1:
        return f"approach {approach}"
    return f"{label}, approach {approach}"


def _side_by_side(study: StudyResults, side: list[tuple[str, dict[str, Any]]]) -> str:
    rows = [
        (
            label,
            fit.get("n", "-"),
            fixed(fit.get("a")),
            interval((fit.get("intervals") or {}).get("a"), 3),
            fixed(fit.get("b")),
            _ahead(fit),
            fit.get("refused") or "-",
        )
        for label, fit in side
    ]
    body = table(
        ("fit", "runs", "a (N*)", "95%", "b (D*)", "held-out extrapolation", "refused"),
        rows,
        (5, 6),
    )
    first = 0.0
    for analysis in study.analyses("isoflop"):
        spent = sum(_own_flops(c, study) for c in _with_parents(analysis.cells, study))
        first = first or spent
        share = f"; {spent / first:.2f} of the first" if first != spent else ""
        body += paragraph(
            f"{analysis.label or 'The sweep'}: {power(spent)} FLOPs in all, the cells that it "
            f"starts from included{share}."
        )
    return body


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
        flops = c.heldout.get("flops")
        return float(flops["exact"]) if isinstance(flops, dict) else 0.0

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


def _fits(name: str, by_approach: dict[int, dict[str, Any]], draw: Draw) -> str:
    one, two, three = (by_approach.get(k, {}) for k in (1, 2, 3))
    body = ""
    if one:
        body += "<h3>Approach 1: the envelope</h3>" + _exponents(one)
        body += draw(plots_laws.envelope(one, f"{name}-envelope"))
    body += _budgets(two) + draw(plots_scaling.isoflop(two, f"{name}-parabolas"))
    body += draw(plots_scaling.frontier(by_approach, f"{name}-frontier"))
    if three:
        body += _law(three) + draw(plots_scaling.residuals(three, f"{name}-residuals"))
        body += draw(plots_laws.extrapolation(three, f"{name}-extrapolation"))
    return body


def _exponents(fit: dict[str, Any]) -> str:
    """a and b with intervals, or the refusal, and the notes."""
    if fit.get("refused"):
        return paragraph("No exponent: " + _sentence(fit["refused"]), "refused") + _notes(fit)
    ends = fit["intervals"]
    return paragraph(
        f"a = {fit['a']:.4f} {interval(ends.get('a'), 3)}, b = {fit['b']:.4f} "
        f"{interval(ends.get('b'), 3)} (95%, {fit['resamples']} bootstrap resamples). Held-out "
        f"extrapolation: {_ahead(fit)}."
    ) + _notes(fit)


def _rates(fit: dict[str, Any]) -> str:
    rows = [
        (
            count(g["params"]),
            count(g["batch_tokens"]),
            number(g["best_lr"], 3),
            number(g.get("predicted"), 3),
            fixed(g["loss"], 4),
            g["refused"] or "-",
        )
        for g in fit.get("groups") or []
    ]
    head = ("params N", "tokens a batch", "best lr", "the law's", "loss", "refused")
    return table(head, rows, (5,)) if rows else ""


def _repeated(fit: dict[str, Any], analysis: Analysed, draw: Draw) -> str:
    body = paragraph(_repetition_line(fit), "refused" if fit.get("refused") else "")
    if "parameters" not in fit:
        return body
    law = LAWS[fit["law"]](**fit["parameters"])
    body += table(
        ("coefficient", "value", "95%"),
        [
            (k, number(v, 5), interval(fit["intervals"].get(k)))
            for k, v in fit["parameters"].items()
        ],
    )
    body += draw(plots_laws.repetition(law.predict, unique_rows(analysis.cells), analysis.name))
    body += draw(plots_laws.law(fit, f"{analysis.name}-law"))
    body += paragraph(f"Held-out extrapolation: {_ahead(fit)}.")
    return body + _notes(fit)


def _prediction(said: dict[str, Any], draw: Draw) -> str:
    seen = said.get("score", {}).get("measured", {})
    body = paragraph(
        f"Made at {said.get('made', '?')} from {said['fitted']} runs of up to "
        f"{power(said['below'])} FLOPs, for {power(said['flops'])} FLOPs."
    )
    named = {"n_star": "N*", "d_star": "D*", "loss_star": "loss"}
    rows, drawn = [], []
    for approach, of in said["approaches"].items():
        for key, label in named.items():
            if not of.get(key):
                continue
            low, high = of["intervals"].get(key, (None, None))
            wanted, ends = seen.get(key), (seen.get("intervals") or {}).get(key, (None, None))
            error = said.get("score", {}).get("approaches", {}).get(approach, {}).get(key)
            rows.append(
                (
                    f"approach {approach}",
                    label,
                    number(of[key], 4),
                    interval((low, high)),
                    number(wanted, 4),
                    interval(ends),
                    f"{100 * error:+.1f}%" if error is not None else "-",
                )
            )
            if wanted:
                drawn.append(
                    {
                        "quantity": label,
                        "law": f"A{approach}",
                        "predicted": of[key],
                        "low": low,
                        "high": high,
                        "measured": wanted,
                        "measured_low": ends[0],
                        "measured_high": ends[1],
                    }
                )
        if of.get("refused"):
            body += paragraph(f"Approach {approach}: {_sentence(of['refused'])}", "refused")
    body += table(
        ("from", "quantity", "predicted", "95%", "measured", "95%", "ln error"), rows, (0, 1)
    )
    if seen.get("refused"):
        body += paragraph("Measured: " + _sentence(seen["refused"]), "refused")
    runs = said.get("score", {}).get("runs")
    if runs:
        body += paragraph(
            f"Approach 3 also said the loss of each of the {runs['n']} runs: missed by "
            f"{100 * runs['rms_log_error']:.2f}% rms (mean {100 * runs['mean_log_error']:+.2f}%)."
        )
    return body + draw(plots_laws.predicted(drawn, "prediction"))


def _sweep_rows(rows: list[dict[str, Any]]) -> str:
    rows = sorted(rows, key=lambda row: (float(f"{row['flops'] or 0:.1e}"), row["params"] or 0))
    return table(
        (
            "cell",
            "run id",
            "params N",
            "tokens D",
            "D/N",
            "FLOPs (exact)",
            "loss (nats/token)",
            "bits/byte",
            "peak lr",
        ),
        [
            (
                row["label"],
                run_link(row["run_id"]),
                count(row["params"]),
                count(row["tokens"]),
                number(row["tokens"] / row["params"], 3)
                if row["params"] and row["tokens"]
                else "-",
                power(row["flops"]) if row["flops"] else "-",
                plus_minus(row["loss"], row["stderr"]),
                fixed(row["bits_per_byte"], 4),
                number(row["lr"], 3),
            )
            for row in rows
        ],
    )


def _budgets(fit: dict[str, Any]) -> str:
    body = "<h3>Approach 2: IsoFLOP minima</h3>"
    rows = []
    for b in fit.get("budgets") or []:
        ends, said = b["intervals"], b["refused"] or "; ".join(b["warnings"]) or "resolved"
        verdict = f"refused: {said}" if b["refused"] else said
        rows.append(
            (
                power(b["flops"]),
                len(b["points"]),
                count(b["n_star"]),
                interval(ends.get("n_star"), form=count),
                count(b["d_star"]),
                interval(ends.get("d_star"), form=count),
                fixed(b["loss_star"], 4),
                interval(ends.get("loss_star"), 4),
                verdict,
            )
        )
    if rows:
        body += table(
            ("budget", "runs", "N*", "95%", "D*", "95%", "L*", "95%", "verdict"), rows, (8,)
        )
    return body + _exponents(fit)


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
        f"{fit['n']} runs; objective {number(fit['objective'], 6)}; {fit['hit_rate']:.0%} of 243 "
        f"starts reach this optimum; condition number {number(fit['condition'], 3)}.",
        f"Outliers: {fit['outliers']['policy']}.",
    ]
    if "rms_log_error" in ahead and is_number(ahead["rms_log_error"]):
        lines.append(
            f"Extrapolation: fitted to the {ahead['fitted']} runs up to {power(ahead['below'])} "
            f"FLOPs, the law misses the other {ahead['scored']} by "
            f"{100 * ahead['rms_log_error']:.2f}% rms (mean {100 * ahead['mean_log_error']:+.2f}%)."
        )
    else:
        lines.append(f"Extrapolation not scored: {ahead.get('refused', 'no finite error')}.")
    return body + "".join(map(paragraph, lines)) + _notes(fit)


def _notes(fit: dict[str, Any]) -> str:
    return "".join(paragraph(_sentence(note), "muted") for note in fit.get("notes", []))
