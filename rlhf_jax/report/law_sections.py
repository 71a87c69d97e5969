"""The report's sections on learning rates, repeated data and predictions, and how any fit is put in
words."""

from __future__ import annotations

from typing import Any

from rlhf_jax.laws.learning_rate import B0, N0
from rlhf_jax.laws.named import law_of
from rlhf_jax.report import plots_laws, plots_scaling
from rlhf_jax.report.blocks import (
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
from rlhf_jax.report.study_results import (
    Analysed,
    is_number,
    unique_rows,
)
from rlhf_jax.report.style import count, power


def lr_law(analysis: Analysed, fit: dict[str, Any]) -> Section:
    name, title = analysis.name, analysis.titled("Learning-rate law")
    plot = plots_laws.lr_law(fit, name)
    if fit["refused"]:
        line = f"none. {sentence(fit['refused'])}"
        blocks = [plot, refusal(line), _rates(fit), *notes(fit)]
        return Section(title, blocks, cautions=[f"{title}: {line}"], anchor=name)
    line, groups = _rate_law(fit), [g for g in fit["groups"] if g["best_lr"] and not g["refused"]]
    lead = small(
        f"lead-{name}",
        [Series([g["params"] for g in groups], [g["best_lr"] for g in groups])],
        "parameters N",
        "best peak learning rate",
        "Best learning rate of every size and batch.",
        x_form=count,
        y_form=lambda v: f"{v:.1g}",
    )
    number = f"lr ∝ N^-{fit['n_power']:.2f} B^{fit['b_power']:.2f}"
    return Section(
        title,
        [plot, Paragraph(line), _rates(fit), *notes(fit)],
        [f"{title}: {line}"],
        leads=[Lead(title, number, lead)],
        anchor=name,
    )


def _rate_law(fit: dict[str, Any]) -> str:
    ends = fit["intervals"]
    return (
        f"lr = {fit['lr0']:.3g} (N / {N0:,.0f})^-{fit['n_power']:.2f} (B / "
        f"{B0:,})^{fit['b_power']:.2f}; 95% intervals {interval(ends['lr0'], 4)}, "
        f"{interval(ends['n_power'], 2)}, {interval(ends['b_power'], 2)}; residual of ln lr "
        f"{fit['residual_sd']:.2f}."
    )


def _rates(fit: dict[str, Any]) -> Table | None:
    return columns(
        fit["groups"],
        ("params N", lambda g: count(g["params"])),
        ("tokens a batch", lambda g: count(g["batch_tokens"])),
        ("best lr", lambda g: number(g["best_lr"], 3)),
        ("the law's", lambda g: number(g["predicted"], 3)),
        ("loss", lambda g: fixed(g["loss"], 4)),
        ("refused", lambda g: g["refused"] or "-"),
        text=(5,),
    )


def lr_check(analysis: Analysed, check: dict[str, Any]) -> Section:
    tried = columns(
        check["points"],
        ("cell", lambda p: p["label"]),
        ("run id", lambda p: Reference(p["run_id"], p["run_id"], code=True)),
        ("peak lr", lambda p: number(p["lr"])),
        ("held-out loss", lambda p: plus_minus(p["loss"], p["stderr"])),
    )
    title, line = analysis.titled("Learning-rate check"), sentence(check["reason"])
    shown = Paragraph(line) if check["interior"] else refusal(line)
    blocks = [plots_scaling.lr_check(check, analysis.name), shown, tried]
    named = [f"{title}: {check['reason']}."]
    said, cautions = (named, []) if check["interior"] else ([], named)
    return Section(title, blocks, said, cautions, anchor=analysis.name)


def repeated(analysis: Analysed, fit: dict[str, Any]) -> Section:
    name, title = analysis.name, analysis.titled("Repeated data")
    line = f"no law. {sentence(fit['refused'])}" if fit["refused"] else _repetition_line(fit)
    named = f"{title}: {line}"
    if not fit["parameters"]:
        return Section(title, [refusal(line)], cautions=[named], anchor=name)
    law, ends = law_of(fit), fit["intervals"]
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
        refusal(line) if fit["refused"] else Paragraph(line),
        coefficients,
        plots_laws.law(fit, f"{name}-law"),
        Paragraph(f"Held-out extrapolation: {ahead(fit)}."),
        *notes(fit),
    ]
    if fit["refused"]:
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


def _repetition_line(fit: dict[str, Any]) -> str:
    return (
        f"R_D* = {fit['parameters']['R_D']:.3g} repetitions, 95% interval "
        f"{interval(fit['intervals'].get('R_D'))} (Muennighoff 2023: 15.4)."
    )


def prediction(said: dict[str, Any]) -> Section:
    score = said["score"]
    seen = score["measured"]
    made = (
        f"Made at {said['made']} from {said['fitted']} runs of up to "
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
            "measured": seen[key],
            "measured_low": ends[0],
            "measured_high": ends[1],
            "error": score["approaches"].get(approach, {}).get(key),
        }
        for approach, of in said["approaches"].items()
        for key, label in named.items()
        if of.get(key)  # what it predicts
        for ends in [seen["intervals"].get(key, (None, None))]
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
        f"Approach {k}: {sentence(of['refused'])}"
        for k, of in said["approaches"].items()
        if of.get("refused")
    ]
    refused += [f"Measured: {sentence(seen['refused'])}"] if seen["refused"] else []
    lines = []
    if runs := score["runs"]:
        lines.append(
            f"Approach 3 also said the loss of each of the {runs['n']} runs: missed by "
            f"{100 * runs['rms_log_error']:.2f}% rms (mean {100 * runs['mean_log_error']:+.2f}%)."
        )
    drawn = plots_laws.predicted([r for r in found if r["measured"]], "prediction")
    blocks = [drawn, Paragraph(made), beside, *map(refusal, refused), *map(Paragraph, lines)]
    return Section("Predicted before it was run", blocks, lines, refused, anchor="prediction")


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def refusal(text: str) -> Paragraph:
    return Paragraph(text, "refused")


def ahead(fit: dict[str, Any]) -> str:
    """The score of a fit on what it was not fitted to, in words."""
    ahead = fit["extrapolation"]
    if is_number(ahead.get("rms_log_error")):
        error = f"{100 * ahead['rms_log_error']:.2f}% rms"
        return f"loss above {power(ahead['below'])} FLOPs missed by {error}"
    if is_number(ahead.get("n_log_error")):
        return (
            f"N* at {power(ahead['flops'])} FLOPs, from the runs up to {power(ahead['below'])}, "
            f"missed by {100 * ahead['n_log_error']:+.0f}% (ln)"
        )
    return str(ahead.get("refused") or "-")  # nothing was predicted


def notes(fit: dict[str, Any]) -> list[Paragraph]:
    return [Paragraph(sentence(note), "muted") for note in fit["notes"]]
