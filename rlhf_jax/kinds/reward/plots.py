"""Figures of reward models, from metrics and results files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FixedLocator

from rlhf_jax.report.families import Proxy, family, strokes
from rlhf_jax.report.study_results import CellResult
from rlhf_jax.report.style import (
    MUTED,
    SERIES,
    Plot,
    count,
    legend_above,
    log_axis,
    panels,
    render,
    styled,
)


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


@styled
def calibration(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Accuracy by gold margin, and accuracy against the confidence sigmoid(score margin)."""
    figure, axes = panels(1, 2, width=7.6, height=3.4)
    rows = []
    for cell, stroke in zip(cells, strokes(cells), strict=True):
        report = cell.result.report
        points = {
            "margin": [(p.middle, p.accuracy, p.n) for p in report.accuracy_by_margin],
            "confidence": [(b.confidence, b.accuracy, b.n) for b in report.calibration.bins],
        }
        for ax, (what, found) in zip(axes, points.items(), strict=True):
            if not found:
                continue
            x, y, n = np.array(found, float).T
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


@styled
def reward_scaling(proxies: Sequence[Proxy], ceiling: float | None, name: str) -> Plot | None:
    """Held-out accuracy of reward models against labels, a line a size; every seed a point."""
    known = [p for p in proxies if p.params and p.labels and p.accuracy is not None]
    if len({(p.params, p.labels) for p in known}) < 2:
        return None
    figure, (ax,) = panels(width=5.6, height=3.8)
    rows = []
    for i, size in enumerate(sorted({p.params or 0 for p in known})):
        some = sorted((p for p in known if p.params == size), key=lambda p: p.labels or 0)
        labels = np.array([p.labels for p in some], float)
        accuracy = np.array([p.accuracy for p in some], float)
        at = np.unique(labels)
        mean = [accuracy[labels == n].mean() for n in at]
        colour = SERIES[i % len(SERIES)]
        ax.plot(labels, accuracy, "o", color=colour, markersize=4, alpha=0.6)
        ax.plot(at, mean, color=colour, label=f"{count(size)} parameters")
        rows += [(family(p.name), p.name, p.params, p.labels, p.accuracy) for p in some]
    ax.axhline(0.5, color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    if ceiling is not None:
        ax.axhline(
            ceiling, color=MUTED, linestyle="--", linewidth=1.2, label="the gold score itself"
        )
    log_axis(ax, "x", "labelled prompts", lambda v: f"{v:,.0f}")
    if len(places := sorted({p.labels or 0 for p in known})) <= 8:
        ax.xaxis.set_major_locator(FixedLocator(places))
    ax.set_ylabel("pairwise accuracy (held out)")
    legend_above(figure, ax)
    return Plot(
        name,
        render(figure, name),
        ("family", "cell", "params", "labels", "accuracy"),
        rows,
        "Held-out accuracy of reward models by labels and size; a point a model, lines through "
        "means over seeds.",
    )
