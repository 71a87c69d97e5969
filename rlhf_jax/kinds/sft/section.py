"""How the report shows fine-tuned models."""

from __future__ import annotations

from rlhf_jax.kinds.sft.result import SFTResult
from rlhf_jax.report.blocks import (
    Heading,
    Paragraph,
    Section,
    absent,
    columns,
    fixed,
    number,
    plus_minus,
    reference,
    share,
)
from rlhf_jax.report.plots_scaling import loss_curves
from rlhf_jax.report.study_results import StudyResults


def section(study: StudyResults) -> Section:
    cells = study.having(SFTResult)
    if not cells:
        blocks = absent(study.of("sft", done=False), "fine-tuning cell")
        return Section("Supervised fine-tuning", blocks)
    from_records = (
        ("examples of records", lambda of: number(of[2].examples)),
        ("cut", lambda of: number(of[2].cut)),
    )
    found = columns(
        [(c, c.result.heldout, c.result.sft) for c in cells],
        ("cell", lambda of: reference(of[0])),
        ("held-out loss", lambda of: plus_minus(of[1].loss, of[1].stderr)),
        ("bits/byte", lambda of: plus_minus(of[1].bits_per_byte, of[1].bits_per_byte_stderr)),
        ("demonstrations", lambda of: number(of[2].demonstrations)),
        *(from_records if any(c.result.sft.examples for c in cells) else ()),
        ("steps", lambda of: number(of[2].steps)),
    )
    judges = [(c, c.result.judge) for c in cells if c.result.judge]
    judged = columns(
        [
            (cell, split, of)
            for cell, judge in judges
            for split, of in (("training", judge.train), ("held out", judge.heldout))
            if of
        ],
        ("cell", lambda of: reference(of[0])),
        ("verdicts", lambda of: of[1]),
        ("n", lambda of: number(of[2].n)),
        ("good", lambda of: share(of[2].good)),
        ("accuracy", lambda of: share(of[2].accuracy)),
        ("majority", lambda of: share(of[2].majority)),
        ("area under ROC", lambda of: fixed(of[2].ranking)),
        ("of one prompt", lambda of: fixed(of[2].ranking_same_prompt)),
    )
    blocks = [
        found,
        loss_curves(cells, "sft-curve", "fine-tuning"),
        Heading("Verdicts") if judged else None,
        judged,
        *(Paragraph(f"{c.name}: {note}.") for c, judge in judges for note in judge.notes),
    ]
    return Section("Supervised fine-tuning", blocks)
