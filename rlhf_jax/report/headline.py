"""The one result of a finished cell that is shown beside its name. Imports no matplotlib."""

from __future__ import annotations

from rlhf_jax.study import results
from rlhf_jax.study.cell import KNOWN
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.results import Headline


def headline(kind: str, folder: CellFolder) -> Headline | None:
    """The headline of a cell's results; None where it has none yet.

    Raises:
        Damaged: the results are not what the cell wrote.
    """
    return results.headline(KNOWN[kind].RESULT, folder) if kind in KNOWN else None
