"""The learning rate of the scaling studies: the best one at several sizes N and batches B, and the
law lr(N, B) = k N^-p B^q through them, which `rlhf_jax.laws.sweep` then uses.

    rlhf-jax run experiments/learning_rate.py           about 20 minutes on 2 CPU cores
    rlhf-jax run experiments/learning_rate.py --tiny    the same code in a minute

Cost: 5e13 FLOPs. At each (N, B) five learning rates a factor of 2.2 apart, on about as many tokens
as are compute-optimal for N. Two groups more ask what a trunk of constant learning rate wants
(schedule "wsd").
"""

from __future__ import annotations

from typing import Literal

from small_models import CORPUS, SHAPES

from rlhf_jax.cost.flops import param_counts
from rlhf_jax.kinds import Pretrain
from rlhf_jax.study import Analysis, OptimConfig, Study
from rlhf_jax.study.cell import Cell

Schedule = Literal["cosine", "wsd"]

# (index of the shape, tokens, batches in rows, schedule)
GROUPS: tuple[tuple[int, int, tuple[int, ...], Schedule], ...] = (
    (1, 600_000, (4, 8, 16), "cosine"),
    (3, 1_600_000, (4, 8, 16), "cosine"),
    (5, 1_600_000, (8, 16), "cosine"),
    (7, 800_000, (8,), "cosine"),
    (3, 1_600_000, (8,), "wsd"),
)
FACTORS = (0.21, 0.45, 1.0, 2.2, 4.8)


def study(tiny: bool = False) -> Study:
    cells: list[Cell] = []
    for shape, tokens, batches, schedule in GROUPS:
        model = SHAPES[shape]
        params = param_counts(model)["total"]
        middle = 2e-2 * (params / 1e5) ** -0.6
        for rows in batches:
            for i, factor in enumerate(FACTORS if params < 5e5 else FACTORS[:4]):
                optim = OptimConfig(lr=float(f"{middle * factor:.3g}"), schedule=schedule)
                count = tokens // 20 if tiny else tokens
                cells.append(
                    Pretrain(
                        f"{schedule}-d{model.width}-b{rows}-lr{i}",
                        model=model,
                        tokens=count,
                        batch=rows,
                        optim=optim,
                    )
                )
    return Study(
        name="learning-rate-tiny" if tiny else "learning-rate",
        title="The learning rate as a law of model size and batch",
        corpus=CORPUS,
        cells=tuple(cells),
        analyses=(
            Analysis("lr_law", ("cosine-*",), "cosine schedule"),
            Analysis("lr_check", ("wsd-*",), "a trunk of 80k parameters"),
        ),
    )
