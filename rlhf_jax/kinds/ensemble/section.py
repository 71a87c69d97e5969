"""How the report shows ensembles of reward models."""

from __future__ import annotations

from rlhf_jax.kinds.ensemble.result import EnsembleResult
from rlhf_jax.report.blocks import Paragraph, Section, absent, columns, fixed, reference, share
from rlhf_jax.report.rankings import accuracies, notes
from rlhf_jax.report.study_results import StudyResults


def section(study: StudyResults) -> Section:
    cells = study.having(EnsembleResult)
    if not cells:
        return Section("Reward ensembles", absent(study.of("ensemble", done=False), "ensemble"))
    found = columns(
        [(c, c.result.report) for c in cells],
        ("cell", lambda of: reference(of[0])),
        ("members", lambda of: ", ".join(map(share, of[1].members.values()))),
        ("disagreement", lambda of: fixed(of[1].disagreement)),
        ("unanimous", lambda of: share(of[1].unanimous)),
        text=(1,),
    )
    said = Paragraph(
        "Members: held-out accuracy of each. Disagreement: standard deviation of the members' "
        "normalised scores of a completion. Unanimous: share of pairs that all rank alike."
    )
    return Section("Reward ensembles", [accuracies(study, cells), *notes(cells), said, found])
