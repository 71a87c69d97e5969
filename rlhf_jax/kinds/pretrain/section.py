"""How the report shows pretrained models: those outside every analysis, or that others start
from."""

from __future__ import annotations

from rlhf_jax.kinds.pretrain.result import PretrainHeldOut
from rlhf_jax.report.blocks import Lead, Section, absent, columns, plus_minus, reference
from rlhf_jax.report.lead import Series, small
from rlhf_jax.report.plots_scaling import loss_curves
from rlhf_jax.report.study_results import CellResult, StudyResults
from rlhf_jax.report.style import count, power

MOST_NAMED = 20  # base models that the summary names one by one


def section(study: StudyResults) -> Section | None:
    cells = _bases(study)
    leads = _leads([h for c in study.cells if (h := c.pretrained)])
    if not cells:
        waiting = [c for c in study.of("pretrain", done=False) if not c.result]
        waiting = [c for c in waiting if c.name not in study.analysed]
        if not waiting and not leads:
            return None
        blocks = absent(waiting, "base model") if waiting else []
        anchor = "" if blocks else study.analyses()[0].name  # of the section that has these models
        return Section("Base model", blocks, leads=leads, anchor=anchor)
    found = columns(
        [(c, h) for c in cells if (h := c.pretrained)],
        ("cell", lambda of: reference(of[0])),
        ("params", lambda of: count(of[1].params)),
        ("training tokens", lambda of: count(of[1].train_tokens)),
        ("FLOPs (exact)", lambda of: power(of[1].flops["exact"])),
        ("held-out loss", lambda of: plus_minus(of[1].loss, of[1].stderr)),
        ("bits/byte", lambda of: plus_minus(of[1].bits_per_byte, of[1].bits_per_byte_stderr)),
    )
    curves = loss_curves(cells, "base-curve", "training")
    return Section("Base model", [found, curves], _said(cells), leads=leads)


def _bases(study: StudyResults) -> list[CellResult]:
    parents = {p for cell in study.cells for p in cell.parents}
    cells = [c for c in study.cells if c.pretrained]
    return [c for c in cells if c.name in parents or c.name not in study.analysed]


def _said(cells: list[CellResult]) -> list[str]:
    known = [(c, h) for c in cells if (h := c.pretrained)]
    lines = []
    if len(known) > MOST_NAMED:
        lines.append(f"Of {len(known):,} base models, the one of lowest held-out loss:")
        known = [min(known, key=lambda of: of[1].loss)]
    for cell, held in known:
        lines.append(
            f"{cell.name} ({count(held.params)} parameters): held-out loss "
            f"{plus_minus(held.loss, held.stderr)} nats/token, "
            f"{plus_minus(held.bits_per_byte, held.bits_per_byte_stderr)} bits/byte."
        )
    return lines


def _leads(found: list[PretrainHeldOut]) -> list[Lead]:
    """The lowest held-out loss, and the losses of all models against their compute."""
    if not found:
        return []
    best = min(found, key=lambda h: h.loss)
    plot = small(
        "lead-heldout",
        [
            Series(
                [h.flops["exact"] for h in found],
                [h.loss for h in found],
                [h.loss - 2 * h.stderr for h in found],
                [h.loss + 2 * h.stderr for h in found],
            )
        ],
        "training compute (FLOPs)",
        "held-out loss (nats/token)",
        "Held-out loss of every pretrained model against its compute; bars are two standard "
        "errors.",
        x_form=power,
    )
    what = "Held-out loss" if len(found) == 1 else f"Lowest held-out loss of {len(found)} models"
    number = f"{plus_minus(best.loss, best.stderr, 3)} nats/token"
    return [Lead(what, number, plot if len(found) > 2 else None)]
