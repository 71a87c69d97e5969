"""Which choices of accounting and training move our own exponent from Chinchilla's towards
Kaplan's, after Porian 2024: embeddings, the last layer, a long warmup, a learning rate that does
not decay to the budget.

    rlhf-jax run experiments/kaplan_vs_chinchilla.py
    rlhf-jax run experiments/kaplan_vs_chinchilla.py --tiny     the same code in a few minutes

Cost: 1e13 FLOPs of its own (one run a size at a constant learning rate after a long warmup, read at
every compute on its way, as Kaplan 2020 did); the trunks with a short warmup are those of
trunk_and_branch.py, the cosine runs those of chinchilla.py. Found: a = 0.65, 0.62, 0.51, 0.56 on
the way from Kaplan's choices to Chinchilla's (results/kaplan-vs-chinchilla).
"""

from __future__ import annotations

from dataclasses import replace

import chinchilla
import trunk_and_branch
from small_models import CORPUS, TINY

from rlhf_jax.kinds import Pretrain
from rlhf_jax.study import Analysis, Study
from rlhf_jax.study.cell import Cell

WARMUP = 300_000  # tokens, for every size: longer than some sizes train at the smallest budgets


def study(tiny: bool = False) -> Study:
    cells: list[Cell] = chinchilla.sweep(chinchilla.BUDGETS[:4], tiny)  # as far as the trunks go
    for cell in trunk_and_branch.study(tiny).cells:
        if isinstance(cell, Pretrain) and "-trunk-" in cell.name:
            cells.append(cell)
    ends = {c.model: c for c in cells if isinstance(c, Pretrain) and "-trunk-" in c.name}
    for model, last in ends.items():  # the last trunk cell of each size
        share = min(1.0, WARMUP / (TINY if tiny else 1) / last.tokens)
        optim = replace(last.optim, warmup=share)
        cells.append(replace(last, name=f"long-d{model.width}", optim=optim, continues=None))
    return Study(
        name="kaplan-vs-chinchilla-tiny" if tiny else "kaplan-vs-chinchilla",
        title="From Kaplan's exponent to Chinchilla's",
        corpus=CORPUS,
        cells=tuple(cells),
        analyses=(
            Analysis(
                "isoflop",
                ("long-*",),
                "Kaplan",
                params="non_embedding",
                flops="kaplan",
                loss="curve",
            ),
            Analysis("isoflop", ("long-*",), "and the last layer", flops="exact", loss="curve"),
            Analysis("isoflop", ("wsd-*-trunk-*",), "and a short warmup", loss="curve"),
            Analysis("isoflop", ("c*-d*",), "and decay to the budget"),
            Analysis(
                "isoflop",
                ("c*-d*",),
                "decay, but Kaplan's counting",
                params="non_embedding",
                flops="kaplan",
                loss="ends",
            ),
        ),
    )
