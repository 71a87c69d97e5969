"""How the report shows policies while they are optimised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.report.blocks import (
    Block,
    Heading,
    Lead,
    Paragraph,
    Section,
    Table,
    absent,
    change,
    columns,
    number,
    reference,
)
from rlhf_jax.report.families import by_family, strokes
from rlhf_jax.report.lead import Series, small
from rlhf_jax.report.study_results import CellResult, StudyResults
from rlhf_jax.report.style import Plot, legend_above, panels, render, styled

PANELS = (
    ("reward_gold", "gold reward"),
    ("reward_proxy", "the score it climbs"),
    ("kl", "KL to the start (nats/sequence)"),
    ("entropy", "entropy (nats/token)"),
    ("distinct_2", "distinct bigrams (share)"),
    ("response_length", "response length (tokens)"),
)
COLUMNS = ("gold", "reward model", "KL", "entropy", "distinct-2", "length")
# Metric and what is shown of it: the largest, or the last.
HEALTH: tuple[tuple[str, Callable[[list[Any]], Any] | None], ...] = (
    ("max_ratio_error", max),
    ("max_logprob_gap", max),
    ("approx_kl", max),
    ("clip_frac", max),
    ("explained_variance", None),
    ("value_loss", None),
    ("stop_rate", None),
    ("kl_coef", None),
)


def section(study: StudyResults) -> Section:
    cells = study.of("ppo")
    if not cells:
        return Section("PPO", absent(study.of("ppo", done=False), "PPO cell"))
    found = columns(
        cells,
        ("cell", reference),
        ("algorithm", lambda c: str(c.config.get("algorithm", "ppo"))),
        ("seed", lambda c: number(c.config.get("seed"))),
        *(
            (title, lambda c, key=key: _first_and_last(c, key))
            for title, (key, _) in zip(COLUMNS, PANELS, strict=True)
        ),
    )
    blocks = [
        ppo_curves(cells, "ppo-curves"),
        Paragraph("First and last iteration of every seed."),
        found,
        *_health(cells),
    ]
    return Section("PPO", blocks, leads=_leads(cells))


def _first_and_last(cell: CellResult, metric: str) -> str:
    values = [v for (v,) in cell.column(metric)]
    return change(values[0], values[-1]) if values else "-"


def _health(cells: list[CellResult]) -> list[Block]:
    shown = [(key, of) for key, of in HEALTH if any(c.column(key) for c in cells)]
    if not shown:
        return []

    def value(cell: CellResult, key: str, of: Callable[[list[Any]], Any] | None) -> str:
        values = [v for (v,) in cell.column(key)]
        return number(of(values) if of else values[-1], 3) if values else "-"

    found = columns(
        cells,
        ("cell", reference),
        *(
            (f"{k}, {'greatest' if of else 'last'}", lambda c, k=k, of=of: value(c, k, of))
            for k, of in shown
        ),
    )
    said = Paragraph(
        "Before the first optimizer step of an iteration the ratio of new to old policy must be 1: "
        "max_ratio_error is its largest departure."
    )
    seen = [
        (reference(c), name, text)
        for c in cells
        if c.result
        for name, text in c.result.ppo.diagnoses.items()
    ]
    diagnosed = Table(("cell", "diagnosis", "what was seen"), seen, (2,)) if seen else None
    return [Heading("Health"), said, found, diagnosed]


def _leads(cells: list[CellResult]) -> list[Lead]:
    """Gold reward against KL of the first family of cells, every seed a line."""
    name, some = next(iter(by_family(cells).items()))
    curves = [np.array(c.column("kl", "reward_gold"), float).reshape(-1, 2) for c in some]
    curves = [c for c in curves if len(c) > 1]
    if not curves:
        return []
    first, last = (np.mean([c[i, 1] for c in curves]) for i in (0, -1))
    kl = np.mean([c[-1, 0] for c in curves])
    seeds = f", {len(curves)} seeds" if len(curves) > 1 else ""
    plot = small(
        "lead-ppo",
        [Series(c[:, 0].tolist(), c[:, 1].tolist(), line=True) for c in curves],
        "KL to the start (nats/sequence)",
        "gold reward",
        f"Gold reward of the iterations of {name} against KL, every seed a line.",
    )
    return [Lead(f"{name}: gold reward{seeds}", f"{change(first, last)} at {kl:.3g} nats", plot)]


@styled
def ppo_curves(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Reward, KL and diversity over PPO iterations, every seed."""
    lines = strokes(cells)
    figure, axes = panels(3, 2, width=7.6, height=7.4)
    rows = []
    for ax, (key, label) in zip(axes, PANELS, strict=True):
        for cell, stroke in zip(cells, lines, strict=True):
            curve = np.array(cell.column("step", key), float)
            if len(curve):
                ax.plot(*curve.T, **vars(stroke))
                rows += [(cell.name, key, *point) for point in curve.tolist()]
        ax.set_title(label)
    if not rows:
        return None
    legend_above(figure, axes[0])
    return Plot(
        name,
        render(figure, name),
        ("cell", "metric", "iteration", "value"),
        rows,
        "PPO, every seed: the score it climbs, the gold reward it never sees, how far it has "
        "moved, and what it costs in diversity.",
    )
