"""Which cells train together: those of a kind that trains populations, and that differ in numbers
alone (`Cell.together`). One compiled program takes all of a population's steps.

Who trains with whom is a function of the study: it depends neither on the machine nor on what has
been interrupted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from rlhf_jax.study.cell import Cell
from rlhf_jax.study.graph import Study

# Of one population. Cells that fill a device by themselves gain nothing from company.
BYTES = 4 * 2**30


def populations(study: Study) -> dict[str, tuple[str, ...]]:
    """Cell name -> the cells that it trains with, itself included, in the study's order. Cells that
    train alone are left out; of cells that describe the same work the first one stands for all."""
    alike: dict[tuple, dict[Cell, Cell]] = defaultdict(dict)
    for cell in study.cells:
        if (shape := cell.together(study)) is not None:
            alike[cell.KIND, shape].setdefault(replace(cell, name="any"), cell)
    found: dict[str, tuple[str, ...]] = {}
    for members in alike.values():
        names, first = [c.name for c in members.values()], next(iter(members.values()))
        size = min(study.members, int(BYTES // first.cost(study).memory))
        if size < 2:
            continue
        for i in range(0, len(names), size):
            together = tuple(names[i : i + size])
            if len(together) > 1:
                found |= dict.fromkeys(together, together)
    return found
