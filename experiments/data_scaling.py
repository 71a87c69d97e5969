"""How much a repeated token is worth: pretraining on unique subsets of the corpus for many epochs,
and the data-constrained law of Muennighoff 2023 fitted to it.

    rlhf-jax run experiments/data_scaling.py            about a quarter of an hour on 2 CPU cores
    rlhf-jax run experiments/data_scaling.py --tiny     the same code in a few minutes

Cost: 3e13 FLOPs. Two sizes; 0.5M to 4.2M tokens drawn from 66k to 1M unique ones (up to 64 epochs),
and from the whole corpus (no repeats). Subsets are nested, and the held-out set is that of every
other study.
"""

from __future__ import annotations

from small_models import CORPUS, ROWS, SHAPES, TINY

from rlhf_jax.cost.flops import param_counts
from rlhf_jax.kinds import Pretrain
from rlhf_jax.laws.learning_rate import learning_rate
from rlhf_jax.study import Analysis, OptimConfig, Study
from rlhf_jax.study.cell import Cell

TOKENS = (2**19, 2**20, 2**21, 2**22)
# Index of the ladder: how many of TOKENS it trains on, and unique tokens, None for the whole
# corpus.
RUNS: dict[int, tuple[int, tuple[int | None, ...]]] = {
    2: (4, (2**16, 2**17, 2**18, 2**19, 2**20, None)),
    4: (3, (2**16, 2**17, 2**18, 2**20, None)),
}


def study(tiny: bool = False) -> Study:
    cells: list[Cell] = []
    for index, (horizons, subsets) in RUNS.items():
        model = SHAPES[index]
        rate = learning_rate(param_counts(model)["total"], ROWS * CORPUS.seq_len)
        for unique in subsets:
            for tokens in TOKENS[:horizons]:
                if unique and unique > tokens:
                    continue
                shrink = TINY if tiny else 1
                name = f"d{model.width}-u{unique // 1024}k" if unique else f"d{model.width}-all"
                cells.append(
                    Pretrain(
                        f"{name}-t{tokens // 1024}k",
                        model=model,
                        tokens=tokens // shrink,
                        batch=ROWS,
                        optim=OptimConfig(lr=rate),
                        unique_tokens=unique and unique // shrink,
                        repeat=unique is not None,
                    )
                )
    return Study(
        name="data-scaling-tiny" if tiny else "data-scaling",
        title="What a repeated token is worth",
        corpus=CORPUS,
        cells=tuple(cells),
        analyses=(Analysis("data_constrained", ("d*",), "repeated tokens"),),
    )
