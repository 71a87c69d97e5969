"""Figures of evaluations: gains over seeds, rewards before and after, modes and calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlhf_jax.kinds.evaluate.result import Evaluation, ModeShares
from rlhf_jax.report.families import by_family, strokes
from rlhf_jax.report.study_results import CellResult
from rlhf_jax.report.style import FG, MUTED, SERIES, Plot, legend_above, panels, render, styled

MODE_COLUMNS = 4
NO_MODE = "none"
FEW = 20  # tokens; a bin of fewer is not drawn


def _paired(found: Evaluation) -> list[tuple[float, float]]:
    """(before, after) gold rewards of all prompts, or of the shown samples where only those are
    kept."""
    if found.gold.keys() >= {"before", "after"}:
        return list(zip(found.gold["before"], found.gold["after"], strict=True))
    return [(sample.gold_before, sample.gold_after) for sample in found.samples]


@styled
def before_after(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Distribution of gold rewards of the prompts before and after: a panel a family of
    evaluations, its seeds together."""
    pairs = {
        family: [(c.name, "prompt", *p) for c in some for p in _paired(c.result.evaluation)]
        for family, some in by_family(cells).items()
    }
    pairs = {family: found for family, found in pairs.items() if found}
    if not pairs:
        return None
    columns = min(3, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    figure, axes = panels(lines, columns, width=max(4.6, 2.5 * columns), height=2.0 * lines + 0.8)
    everything = np.array([row[2:] for found in pairs.values() for row in found], float)
    edges, highest = np.linspace(everything.min(), everything.max() + 1e-9, 25), 0.0
    for ax, (family, found) in zip(axes, pairs.items(), strict=False):
        values = np.array([row[2:] for row in found], float)
        for column, label, line in ((0, "before", "--"), (1, "after", "-")):
            share = np.histogram(values[:, column], edges)[0] / len(values)
            ax.stairs(
                share, edges, color=SERIES[column], linestyle=line, linewidth=1.6, label=label
            )
        ax.set_title(family, fontsize=9.5)
        highest = max(highest, ax.get_ylim()[1])
    for ax in axes[: len(pairs)]:
        ax.set_ylim(0, highest)
    for ax in axes[len(pairs) :]:
        ax.set_visible(False)
    figure.supxlabel("gold reward", fontsize=9.5)
    figure.supylabel("share of prompts", fontsize=9.5)
    legend_above(figure, axes[0])
    rows = [row for found in pairs.values() for row in found]
    return Plot(
        name,
        render(figure, name),
        ("cell", "what", "gold_before", "gold_after"),
        rows,
        "Gold reward of held-out prompts before and after.",
    )


@styled
def gains(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Every evaluation's gold gain with its paired interval, a row a family, and the mean over
    seeds."""
    found = by_family(cells)
    if not found:
        return None
    figure, (ax,) = panels(width=7.2, height=1.2 + 0.45 * len(found))
    rows = []
    for y, (family, some) in enumerate(found.items()):
        places = y + 0.28 * np.linspace(-1, 1, len(some)) if len(some) > 1 else [y]
        for at, cell in zip(places, some, strict=True):
            gain, (low, high) = cell.result.evaluation.gain, cell.result.evaluation.gain_interval
            ax.plot([low, high], [at, at], color=SERIES[0], linewidth=1.1)
            ax.plot(gain, at, "o", color=SERIES[0], markersize=3.5)
            rows.append((family, cell.name, gain, low, high))
        ax.plot(
            np.mean([c.result.evaluation.gain for c in some]), y, "D", color=SERIES[1], markersize=6
        )
    ax.plot([], [], "o-", color=SERIES[0], markersize=3.5, label="an evaluation, 95% over prompts")
    ax.plot([], [], "D", color=SERIES[1], markersize=6, label="mean over seeds")
    ax.axvline(0, color=MUTED, linewidth=1, linestyle=":")
    ax.set_yticks(range(len(found)), list(found))
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlabel("gain in gold reward")
    legend_above(figure, ax)
    return Plot(
        name,
        render(figure, name),
        ("family", "cell", "gain", "low", "high"),
        rows,
        "Gain in gold reward of every evaluation, with paired intervals over prompts; diamonds are "
        "means over seeds.",
    )


@styled
def modes(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Share of responses in each mode before (outlined) and after, a panel a family, every seed a
    bar."""
    families = by_family([c for c in cells if c.result.evaluation.modes])
    if not families:
        return None
    columns = min(MODE_COLUMNS, len(families))
    lines = math.ceil(len(families) / columns)
    figure, axes = panels(lines, columns, width=max(4.2, 2.3 * columns), height=2.3 * lines + 0.6)
    shown = [c for some in families.values() for c in some]
    names = [*dict.fromkeys(n for c in shown for n in c.result.evaluation.modes.names), NO_MODE]
    rows = []
    for ax, (family, some) in zip(axes, families.items(), strict=False):
        width = 0.84 / len(some)
        for i, cell in enumerate(some):
            left = np.arange(len(names)) - 0.42 + i * width
            found = cell.result.evaluation.modes
            before, after = (_shares(side, names) for side in (found.before, found.after))
            bar = {"width": width, "align": "edge"}
            ax.bar(
                left,
                after,
                color=SERIES[0],
                edgecolor="none",
                linewidth=0,
                label="after" if not i else None,
                **bar,
            )
            ax.bar(
                left,
                before,
                facecolor="none",
                edgecolor=FG,
                linewidth=0.9,
                label="before" if not i else None,
                **bar,
            )
            rows += [(cell.name, *r) for r in zip(names, before, after, strict=True)]
        ax.set_xticks(range(len(names)), names, fontsize=8)
        ax.tick_params(axis="x", rotation=90 if len(names) > 8 else 0)
        ax.set_title(family, fontsize=9.5)
        ax.set_ylim(0, 1)
        ax.grid(axis="x", visible=False)
    for ax in axes[len(families) :]:
        ax.set_visible(False)
    figure.supxlabel("mode", fontsize=9.5)
    figure.supylabel("share of responses", fontsize=9.5)
    legend_above(figure, axes[0])
    return Plot(
        name,
        render(figure, name),
        ("cell", "mode", "before", "after"),
        rows,
        "Share of responses in each mode of the known distribution, before and after; a bar a "
        "seed.",
    )


def _shares(side: ModeShares, names: Sequence[str]) -> list[float]:
    return [side.none if n == NO_MODE else side.shares.get(n, 0.0) for n in names]


@styled
def next_word_calibration(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Accuracy against confidence of the likeliest next token of held-out text, before and
    after."""
    figure, axes = panels(1, 2, width=7.0, height=3.5)
    rows = []
    lines = strokes(cells)
    for ax, side in zip(axes, ("before", "after"), strict=True):
        for cell, stroke in zip(cells, lines, strict=True):
            found = getattr(cell.result.evaluation, side).calibration
            bins = [(b.confidence, b.accuracy, b.n) for b in found.bins if b.n >= FEW]
            if bins:
                x, y, _ = zip(*bins, strict=True)
                ax.plot(x, y, marker="o", markersize=3, **vars(stroke))
                rows += [(cell.name, side, *b) for b in bins]
        ax.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2, label="calibrated")
        ax.set_title(side)
        ax.set_xlabel("probability of the likeliest token")
    if not rows:
        return None
    axes[0].set_ylabel("how often it comes")
    legend_above(figure, axes[1])
    return Plot(
        name,
        render(figure, name),
        ("cell", "side", "confidence", "accuracy", "tokens"),
        rows,
        "Next-token probabilities on held-out text: how often the likeliest token comes, by the "
        "probability it was given. "
        f"Bins of fewer than {FEW} tokens are left out.",
    )
