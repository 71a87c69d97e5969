"""Figures of optimised policies: PPO's course, gains over seeds, modes, rounds and calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.report.families import by_family, result, strokes
from rlhf_jax.report.study_results import CellResult, is_interval, is_number
from rlhf_jax.report.style import FG, MUTED, SERIES, Plot, legend_above, panels, render, styled

PPO_PANELS = (
    ("reward_gold", "gold reward"),
    ("reward_proxy", "the score it climbs"),
    ("kl", "KL to the start (nats/sequence)"),
    ("entropy", "entropy (nats/token)"),
    ("distinct_2", "distinct bigrams (share)"),
    ("response_length", "response length (tokens)"),
)
MODE_COLUMNS = 4
NO_MODE = "none"


@styled
def ppo_curves(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Reward, KL and diversity over PPO iterations, every seed."""
    lines = strokes(cells)
    figure, axes = panels(3, 2, width=7.6, height=7.4)
    rows = []
    for ax, (key, label) in zip(axes, PPO_PANELS, strict=True):
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


def _paired(found: dict[str, Any]) -> list[tuple[float, float]]:
    """(before, after) gold rewards of all prompts, or of the shown samples where only those are
    kept."""
    gold = found.get("gold")
    if isinstance(gold, dict):
        pairs = list(zip(gold.get("before") or [], gold.get("after") or [], strict=False))
    else:
        samples = [s for s in found.get("samples") or [] if isinstance(s, dict)]
        pairs = [(s.get("gold_before"), s.get("gold_after")) for s in samples]
    return [pair for pair in pairs if all(map(is_number, pair))]


@styled
def before_after(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Distribution of gold rewards of the prompts before and after: a panel a family of
    evaluations, its seeds together."""
    pairs = {
        family: [(c.name, "prompt", *p) for c in some for p in _paired(result(c, "evaluation"))]
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
    found = {
        family: [
            (c.name, e["gain"], e.get("gain_interval"))
            for c in some
            if is_number((e := result(c, "evaluation")).get("gain"))
        ]
        for family, some in by_family(cells).items()
    }
    found = {family: some for family, some in found.items() if some}
    if not found:
        return None
    figure, (ax,) = panels(width=7.2, height=1.2 + 0.45 * len(found))
    rows = []
    for y, (family, some) in enumerate(found.items()):
        places = y + 0.28 * np.linspace(-1, 1, len(some)) if len(some) > 1 else [y]
        for at, (cell, gain, ends) in zip(places, some, strict=True):
            low, high = ends if is_interval(ends) else (gain, gain)
            ax.plot([low, high], [at, at], color=SERIES[0], linewidth=1.1)
            ax.plot(gain, at, "o", color=SERIES[0], markersize=3.5)
            rows.append((family, cell, gain, low, high))
        ax.plot(np.mean([gain for _, gain, _ in some]), y, "D", color=SERIES[1], markersize=6)
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
    reports = {c.name: result(c, "evaluation").get("modes") or {} for c in cells}
    families = {f: [c for c in some if reports[c.name]] for f, some in by_family(cells).items()}
    families = {f: some for f, some in families.items() if some}
    if not families:
        return None
    columns = min(MODE_COLUMNS, len(families))
    lines = math.ceil(len(families) / columns)
    figure, axes = panels(lines, columns, width=max(4.2, 2.3 * columns), height=2.3 * lines + 0.6)
    names = [*dict.fromkeys(n for r in reports.values() for n in r.get("names", [])), NO_MODE]
    rows = []
    for ax, (family, some) in zip(axes, families.items(), strict=False):
        width = 0.84 / len(some)
        for i, cell in enumerate(some):
            left = np.arange(len(names)) - 0.42 + i * width
            found = reports[cell.name]
            before, after = (_shares(found[side], names) for side in ("before", "after"))
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


def _shares(side: dict[str, Any], names: Sequence[str]) -> list[float]:
    shares = side.get("shares") or {}
    return [side.get("none", 0.0) if n == NO_MODE else shares.get(n, 0.0) for n in names]


@dataclass(frozen=True)
class Step:
    """A policy of a round: means of its evaluation, and the policy of the round before, or None."""

    cell: str
    seed: str
    round: int
    values: dict[str, float]
    before: str | None


@styled
def rounds(steps: Sequence[Step], name: str) -> Plot | None:
    """Gold, proxy and KL by round, every seed; lines follow who descends from whom. Policies of one
    round that no other descends from stand beside the rounds, hollow and out of the mean."""
    keys = [("gold", "gold reward"), ("proxy", "proxy score"), ("kl", "KL from `before` (nats)")]
    keys = [(k, label) for k, label in keys if any(k in s.values for s in steps)]
    if not keys:
        return None
    figure, axes = panels(1, len(keys), width=2.6 * len(keys), height=3.1)
    by_cell = {s.cell: s for s in steps}
    seeds = list(dict.fromkeys(s.seed for s in steps))
    followed = {s.before for s in steps}
    rows = []
    for ax, (key, label) in zip(axes, keys, strict=True):
        at: dict[int, list[float]] = {}
        for step in steps:
            if key not in step.values:
                continue
            colour = SERIES[seeds.index(step.seed) % len(SERIES)]
            last = by_cell.get(step.before or "")
            if last and key in last.values:
                ax.plot(
                    [last.round, step.round],
                    [last.values[key], step.values[key]],
                    color=colour,
                    linewidth=1,
                )
            alone = step.before is None and step.cell not in followed
            x = step.round - 0.15 if alone else step.round
            inside = "none" if alone else colour
            ax.plot(x, step.values[key], "o", color=colour, markerfacecolor=inside, markersize=4)
            if not alone:
                at.setdefault(step.round, []).append(step.values[key])
            rows.append((step.cell, step.round, key, step.values[key]))
        order = sorted(at)
        ax.plot(
            order,
            [np.mean(at[r]) for r in order],
            color=FG,
            linewidth=2,
            linestyle="--",
            label="mean",
        )
        ax.set_title(label)
        ax.set_xlabel("round")
        ax.set_xticks(sorted({s.round for s in steps}))
    legend_above(figure, axes[0])
    return Plot(
        name,
        render(figure, name),
        ("cell", "round", "metric", "value"),
        rows,
        "Rounds of feedback: every seed a colour, dashed the mean over seeds; hollow, policies of "
        "one round alone. Each round's proxy has its own scale.",
    )


@styled
def next_word_calibration(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Accuracy against confidence of the likeliest next token of held-out text, before and
    after."""
    figure, axes = panels(1, 2, width=7.0, height=3.5)
    rows = []
    lines = strokes(cells)
    for ax, side in zip(axes, ("before", "after"), strict=True):
        for cell, stroke in zip(cells, lines, strict=True):
            found = result(cell, "evaluation").get(f"calibration_{side}") or {}
            bins = [b for b in found.get("bins") or [] if b["n"] >= 20]
            if bins:
                x, y = ([b[k] for b in bins] for k in ("confidence", "accuracy"))
                ax.plot(x, y, marker="o", markersize=3, **vars(stroke))
                rows += [(cell.name, side, b["confidence"], b["accuracy"], b["n"]) for b in bins]
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
        "probability it was given. Bins of fewer than 20 tokens are left out.",
    )
