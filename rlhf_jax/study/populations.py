"""Which cells train together: pretraining cells that differ in numbers alone (seed, and with it the
order of the data; peak learning rate; weight decay). One compiled program takes all of a
population's steps.

Who trains with whom is a function of the study: it depends neither on the machine nor on what has
been interrupted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields

from rlhf_jax.cost.memory import training_bytes
from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.study.config import Checked
from rlhf_jax.study.graph import Study

# Of one population. Cells that fill a device by themselves gain nothing from company.
BYTES = 4 * 2**30


def populations(study: Study) -> dict[str, tuple[str, ...]]:
    """Cell name -> the cells that it trains with, itself included, in the study's order. Cells that
    train alone are left out; of cells that describe the same work the first one stands for all."""
    alike: dict[tuple, dict[tuple, Pretrain]] = defaultdict(dict)
    for cell in study.cells:
        if isinstance(cell, Pretrain):
            alike[_shape(study, cell)].setdefault(_fields(cell, {"name"}), cell)
    found: dict[str, tuple[str, ...]] = {}
    for members in alike.values():
        names, first = [c.name for c in members.values()], next(iter(members.values()))
        each = training_bytes(first.model, first.batch, study.corpus.seq_len, trained=1)
        size = min(study.members, int(BYTES // each))
        if size < 2:
            continue
        for i in range(0, len(names), size):
            together = tuple(names[i : i + size])
            if len(together) > 1:
                found |= dict.fromkeys(together, together)
    return found


def _shape(study: Study, cell: Pretrain) -> tuple:
    """The cell without its numbers; of the one that it continues only the length counts."""
    start = study[cell.continues] if cell.continues else None
    seen = start.tokens if isinstance(start, Pretrain) else None
    numbers = _fields(cell.optim, {"lr", "weight_decay"})
    return (*_fields(cell, {"name", "seed", "optim", "continues"}), numbers, seen)


def _fields(config: Checked, without: set[str]) -> tuple:
    return tuple(getattr(config, f.name) for f in fields(config) if f.name not in without)  # type: ignore[arg-type]
