"""How the report shows best-of-n sampling."""

from __future__ import annotations

from rlhf_jax.kinds.best_of_n.result import BestOfNResult
from rlhf_jax.report.blocks import (
    Paragraph,
    Section,
    absent,
    columns,
    fixed,
    interval,
    number,
    reference,
)
from rlhf_jax.report.families import proxy_of
from rlhf_jax.report.study_results import StudyResults


def section(study: StudyResults) -> Section:
    cells = study.having(BestOfNResult)
    if not cells:
        return Section("Best of n", absent(study.of("best_of_n", done=False), "best-of-n cell"))
    found = columns(
        [(c, c.result.best_of_n, c.result.best_of_n.curve) for c in cells],
        ("cell", lambda of: reference(of[0])),
        ("reward", lambda of: proxy_of(study, of[0]).name),
        ("prompts", lambda of: number(of[1].prompts)),
        ("n", lambda of: number(of[1].n)),
        ("gold of one", lambda of: fixed(of[2][0].gold)),
        ("gain at n", lambda of: fixed(of[2][-1].gold_gain)),
        ("95%", lambda of: interval(of[2][-1].gold_gain_interval, 3)),
        ("best n", lambda of: number(max(of[2], key=lambda best: best.gold_gain).n)),
        ("KL at most", lambda of: fixed(of[2][-1].kl, 2)),
        ("distinct", lambda of: fixed(of[1].distinct, 2)),
        ("demonstrations", lambda of: number(of[1].demonstrations)),
        text=(1,),
    )
    said = Paragraph(
        "Gains are of the best of n samples by the reward over one sample, from all subsets of the "
        "samples (unbiased); intervals are over prompts. The KL bound is loose where samples "
        "repeat: `distinct` is the share of different samples of a prompt."
    )
    notes = [Paragraph(f"{c.name}: {note}.") for c in cells for note in c.result.best_of_n.notes]
    return Section("Best of n", [said, found, *notes])
