"""Figures of reward models, from metrics and results files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.report.families import strokes
from rlhf_jax.report.study_results import CellResult, is_number
from rlhf_jax.report.style import MUTED, Plot, legend_above, panels, render, styled


@styled
def reward_curves(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Ranking loss and pairwise accuracy over the steps of each reward model."""
    figure, axes = panels(1, 2, width=7.6, height=3.1)
    rows = []
    for ax, key, label in (
        (axes[0], "loss", "ranking loss (nats/comparison)"),
        (axes[1], "accuracy", "pairwise accuracy"),
    ):
        for cell, stroke in zip(cells, strokes(cells), strict=True):
            curve = np.array(cell.column("step", key), float)
            if len(curve):
                ax.plot(*curve.T, **vars(stroke))
                rows += [(cell.name, key, *point) for point in curve.tolist()]
        ax.set_xlabel("step")
        ax.set_title(label)
    if not rows:
        return None
    axes[1].axhline(0.5, color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    legend_above(figure, axes[1])
    return Plot(
        name,
        render(figure, name),
        ("cell", "metric", "step", "value"),
        rows,
        "Reward models in training.",
    )


def margins(report: dict[str, Any]) -> list[tuple[float, float, float | None, float | None]]:
    """(margin, accuracy, pairs, predicted accuracy) of `accuracy_by_margin`, whatever its keys:
    a margin, or the low and high end of a bin."""
    found: list[tuple[Any, Any, Any, Any]] = []
    for entry in report.get("accuracy_by_margin") or []:
        if isinstance(entry, list | tuple) and len(entry) >= 2:
            entry = dict(zip(("margin", "accuracy", "n", "predicted"), entry, strict=False))
        if not isinstance(entry, dict):
            continue
        ends = [entry[k] for k in ("from", "to", "low", "high") if is_number(entry.get(k))]
        margin = entry.get("margin", sum(ends) / len(ends) if ends else None)
        if isinstance(margin, list | tuple) and margin and all(map(is_number, margin)):
            margin = sum(margin) / len(margin)
        if is_number(margin) and is_number(entry.get("accuracy")):
            pairs = entry.get("n_pairs", entry.get("n", entry.get("count")))
            found.append((margin, entry["accuracy"], pairs, entry.get("predicted")))
    return sorted(found, key=lambda point: point[0])


@styled
def calibration(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Accuracy by gold margin, and accuracy against the confidence sigmoid(score margin)."""
    figure, axes = panels(1, 2, width=7.6, height=3.4)
    rows = []
    for cell, stroke in zip(cells, strokes(cells), strict=True):
        report = cell.results.get("report") or {}
        bins = (report.get("calibration") or {}).get("bins") or []
        points = {
            "margin": [p[:3] for p in margins(report)],
            "confidence": [(b.get("confidence"), b.get("accuracy"), b.get("n")) for b in bins],
        }
        for ax, (what, found) in zip(axes, points.items(), strict=True):
            found = [p for p in found if is_number(p[0]) and is_number(p[1])]
            if not found:
                continue
            x, y = np.array([p[:2] for p in found], float).T
            n = np.array([p[2] if is_number(p[2]) and p[2] > 0 else np.inf for p in found])
            error = np.sqrt(y * (1 - y) / n) if len(cells) <= 6 else None
            ax.errorbar(x, y, yerr=error, marker="o", markersize=4, elinewidth=0.8, **vars(stroke))
            rows += [(cell.name, what, *p) for p in found]
    if not rows:
        return None
    axes[0].axhline(0.5, color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    axes[1].plot([0.5, 1], [0.5, 1], color=MUTED, linestyle="--", linewidth=1.2, label="calibrated")
    for ax, what, label in (
        (axes[0], "margin", "gold margin of the pair"),
        (axes[1], "confidence", "sigmoid(score margin)"),
    ):
        ax.set_xlabel(label)
        ax.set_visible(any(row[1] == what for row in rows))
    axes[0].set_ylabel("pairwise accuracy (held out)")
    legend_above(figure, *axes)
    return Plot(
        name,
        render(figure, name),
        ("cell", "against", "x", "accuracy", "pairs"),
        rows,
        "Reward-model accuracy by gold margin, and its calibration; bars, of up to six models, are "
        "binomial standard errors.",
    )
