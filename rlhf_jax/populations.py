"""Which cells train together: pretraining cells that differ in numbers alone (seed, and with it the order
of the data; peak learning rate; weight decay). One compiled program takes all of a population's steps.

Who trains with whom is a function of the study: it depends neither on the machine nor on what has been
interrupted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from rlhf_jax.cells import Pretrain
from rlhf_jax.memory import training_bytes
from rlhf_jax.study import Study

# Of one population. Cells that fill a device by themselves gain nothing from company.
BYTES = 4 * 2**30


def populations(study: Study) -> dict[str, tuple[str, ...]]:
    """Cell name -> the cells that it trains with, itself included, in the study's order. Cells that
    train alone are left out; of cells that describe the same work the first one stands for all."""
    alike: dict[Pretrain, dict[Pretrain, str]] = defaultdict(dict)
    for cell in study.cells:
        if isinstance(cell, Pretrain):
            alike[_shape(study, cell)].setdefault(replace(cell, name=""), cell.name)
    found: dict[str, tuple[str, ...]] = {}
    for shape, members in alike.items():
        names = list(members.values())
        each = training_bytes(shape.model, shape.batch, study.corpus.seq_len, trained=1)
        size = min(study.members, int(BYTES // each))
        if size < 2:
            continue
        for i in range(0, len(names), size):
            together = tuple(names[i : i + size])
            if len(together) > 1:
                found |= dict.fromkeys(together, together)
    return found


def _shape(study: Study, cell: Pretrain) -> Pretrain:
    """The cell without its numbers; of the one that it continues only the length counts."""
    optim = replace(cell.optim, lr=1.0, weight_decay=0.0)
    start = study[cell.continues] if cell.continues else None
    seen = str(start.tokens) if isinstance(start, Pretrain) else None
    return replace(cell, name="", seed=0, optim=optim, continues=seen)
