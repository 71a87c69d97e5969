"""Compute-optimal size and tokens, by the three approaches of Hoffmann 2022 on the same runs.

    rlhf-jax run experiments/chinchilla.py --only 'c2e11*' 'c4_*' 'c1_01*' 'c2_28*' 'c5_*'
    rlhf-jax predict experiments/chinchilla.py --at 1.15330078125e13   (before the largest budget)
    rlhf-jax run experiments/chinchilla.py
    rlhf-jax run experiments/chinchilla.py --tiny                       the same code in two minutes

Cost: 1.5e14 FLOPs, a little over an hour on 2 CPU cores. Six budgets a factor of 2.25 apart, 2e11
to 1.15e13 FLOPs; one ladder of nine sizes, 14k to 1.07M parameters, each trained to at least three
horizons; two or three seeds at the budgets up to 1e12. No text is seen twice. Found: a = 0.60, 0.57
and 0.52 by the three approaches (N* ~ C^a), and N* of the largest budget to 1.3% from the smaller
ones (results/chinchilla).
"""

from __future__ import annotations

from small_models import CORPUS, ROWS, SHAPES, TINY

from rlhf_jax.laws.sweep import grid_point, pretrain
from rlhf_jax.study import Analysis, Study
from rlhf_jax.study.cell import Cell

# (budget in FLOPs, the sizes that it trains: first and last index of the ladder, seeds). The
# smallest and the largest sizes reach beyond what the minima need, so that every size has three
# horizons.
BUDGETS = (
    (2.0e11, (0, 5), 3),
    (4.5e11, (0, 5), 3),
    (1.0125e12, (0, 6), 2),
    (2.278125e12, (1, 8), 1),
    (5.12578125e12, (2, 8), 1),
    (1.15330078125e13, (3, 8), 1),
)


def sweep(budgets, tiny: bool) -> list[Cell]:
    """The runs of some of `BUDGETS`."""
    cells: list[Cell] = []
    for budget, (first, last), seeds in budgets:
        for model in SHAPES[first : last + 1]:
            point = grid_point(budget / TINY if tiny else budget, model, CORPUS.seq_len, ROWS)
            for seed in range(1 if tiny else seeds):
                cells.append(pretrain(point, f"{point.name}-s{seed}", seed=seed))
    return cells


def study(tiny: bool = False) -> Study:
    return Study(
        name="chinchilla-tiny" if tiny else "chinchilla",
        title="Compute-optimal models, three ways",
        corpus=CORPUS,
        members=2,  # of a population: as many as the cores that this was run on
        cells=tuple(sweep(BUDGETS[:4] if tiny else BUDGETS, tiny)),
        analyses=(Analysis("isoflop", ("c*-d*",), "compute-optimal size"),),
    )
