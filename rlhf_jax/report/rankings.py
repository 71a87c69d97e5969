"""The table that kinds share whose results hold a report on rankings."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_jax.report.blocks import (
    Paragraph,
    Table,
    columns,
    fixed,
    interval,
    number,
    reference,
    share,
)
from rlhf_jax.report.families import proxy
from rlhf_jax.report.study_results import CellResult, StudyResults
from rlhf_jax.report.style import count


def accuracies(study: StudyResults, cells: Sequence[CellResult]) -> Table | None:
    """Held-out accuracy, calibration, and what to compare them with."""
    names = dict.fromkeys(name for c in cells for name in c.result.report.baselines)
    return columns(
        [(c, c.result.report, proxy(study, c)) for c in cells],
        ("cell", lambda of: reference(of[0])),
        ("params", lambda of: count(of[2].params)),
        ("labelled prompts", lambda of: number(of[2].labels)),
        ("accuracy", lambda of: share(of[1].accuracy)),
        ("95%", lambda of: interval(of[1].accuracy_interval, 3)),
        ("held-out pairs", lambda of: number(of[1].n_pairs)),
        ("calibration error", lambda of: fixed(of[1].calibration.expected_calibration_error)),
        *((name, lambda of, name=name: share(of[1].baselines.get(name))) for name in names),
    )


def notes(cells: Sequence[CellResult]) -> list[Paragraph]:
    return [Paragraph(f"{c.name}: {note}.") for c in cells for note in c.result.report.notes]
