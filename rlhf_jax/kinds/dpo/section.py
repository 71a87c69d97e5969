"""How the report shows DPO: how well the implicit reward ranks held-out pairs."""

from __future__ import annotations

from rlhf_jax.kinds.dpo.result import DPOResult
from rlhf_jax.report.blocks import (
    Paragraph,
    Section,
    absent,
    columns,
    fixed,
    number,
    reference,
    share,
)
from rlhf_jax.report.study_results import StudyResults


def section(study: StudyResults) -> Section:
    cells = study.having(DPOResult)
    if not cells:
        return Section("DPO", absent(study.of("dpo", done=False), "DPO cell"))
    found = columns(
        [(c, c.config, c.result.dpo) for c in cells],
        ("cell", lambda of: reference(of[0])),
        ("loss", lambda of: of[1].get("loss", "dpo")),
        ("beta", lambda of: number(of[1].get("beta"))),
        ("seed", lambda of: number(of[1].get("seed"))),
        ("prompts", lambda of: number(of[2].prompts)),
        ("held-out loss", lambda of: fixed(of[2].loss)),
        ("accuracy", lambda of: share(of[2].accuracy)),
        ("margin", lambda of: fixed(of[2].margin)),
        ("ln ratio, chosen", lambda of: fixed(of[2].chosen_log_ratio, 2)),
        ("ln ratio, rejected", lambda of: fixed(of[2].rejected_log_ratio, 2)),
        ("language loss", lambda of: fixed(of[0].result.heldout.loss)),
    )
    said = Paragraph(
        "Accuracy and margin are of the implicit reward, beta ln(policy / reference), on held-out "
        "comparisons."
    )
    return Section("DPO", [said, found])
