"""Does a decay branch off a shared trunk tell the same exponent as a whole run a budget, and at
what cost?

    rlhf-jax run experiments/trunk_and_branch.py
    rlhf-jax run experiments/trunk_and_branch.py --tiny     the same code in a few minutes

Cost: 5e13 FLOPs, of which the runs at every second budget are those of experiments/chinchilla.py.
Seven budgets a factor of 1.5 apart, 2e11 to 2.3e12 FLOPs; at each the same sizes once as
independent cosine runs (`c*`), once as branches (`wsd-*`). By the formula the branches cost 0.497
of the whole runs, and did; a = 0.57 by whole runs, 0.55 by branches (results/trunk-and-branch).
"""

from __future__ import annotations

from small_models import CORPUS, ROWS, SHAPES, TINY, TRUNK_LR

from rlhf_jax.laws.sweep import grid_point, pretrain
from rlhf_jax.laws.trunk import trunk_and_branch
from rlhf_jax.study import Analysis, OptimConfig, Study
from rlhf_jax.study.cell import Cell

BUDGETS = tuple(2e11 * 1.5**j for j in range(7))
# Index of the ladder: the budgets that it trains, first to last.
SIZES = {0: (0, 2), 1: (0, 4), 2: (0, 6), 3: (0, 6), 4: (0, 6), 5: (1, 6), 6: (3, 6)}


def study(tiny: bool = False) -> Study:
    cells: list[Cell] = []
    for index, (first, last) in SIZES.items():
        budgets = [b / TINY if tiny else b for b in BUDGETS[first : last + 1]]
        points = [grid_point(b, SHAPES[index], CORPUS.seq_len, ROWS) for b in budgets]
        cells += [pretrain(point, f"{point.name}-s0") for point in points]
        trunk, branches = trunk_and_branch(
            f"wsd-d{SHAPES[index].width}",
            SHAPES[index],
            [p.tokens for p in points],
            ROWS,
            CORPUS.seq_len,
            OptimConfig(lr=TRUNK_LR * points[0].lr),
        )
        cells += [*trunk, *branches]
    return Study(
        name="trunk-and-branch-tiny" if tiny else "trunk-and-branch",
        title="Trunk and branch against whole runs",
        corpus=CORPUS,
        cells=tuple(cells),
        analyses=(
            Analysis("isoflop", ("c*-d*",), "whole cosine runs"),
            Analysis("isoflop", ("wsd-*-branch-*",), "branches off a trunk"),
        ),
    )
