"""Figures of reward modelling, PPO and evaluation, from metrics and results files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.report.study_results import CellResult, is_number
from rlhf_jax.report.style import FG, MUTED, SERIES, Plot, panels, render, styled

PPO_PANELS = (
    ("reward_gold", "gold reward (never trained on)"),
    ("reward_proxy", "reward model's score"),
    ("kl", "KL to the start (nats/sequence)"),
    ("entropy", "entropy (nats/token)"),
    ("distinct_2", "distinct bigrams (share)"),
    ("response_length", "response length (tokens)"),
)


@styled
def reward_curves(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Ranking loss and pairwise accuracy over the steps of each reward model."""
    figure, axes = panels(1, 2, width=7.6, height=3.1)
    rows = []
    for ax, key, label in ((axes[0], "loss", "ranking loss (nats/comparison)"),
                           (axes[1], "accuracy", "pairwise accuracy")):  # fmt: skip
        for i, cell in enumerate(cells):
            curve = np.array(cell.column("step", key), float)
            if len(curve):
                ax.plot(*curve.T, color=SERIES[i % len(SERIES)], label=cell.name)
                rows += [(cell.name, key, *point) for point in curve.tolist()]
        ax.set_xlabel("step")
        ax.set_title(label)
    if not rows:
        return None
    axes[1].axhline(0.5, color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    axes[0].legend(*axes[1].get_legend_handles_labels(), loc="upper right")
    return Plot(name, render(figure, name), ("cell", "metric", "step", "value"), rows,
                "Reward models in training.")  # fmt: skip


def margins(report: dict[str, Any]) -> list[tuple[float, float, float | None, float | None]]:
    """(margin, accuracy, pairs, predicted accuracy) of `accuracy_by_margin`, whatever its keys:
    a margin, or the low and high end of a bin."""
    found = []
    for entry in report.get("accuracy_by_margin") or []:
        if isinstance(entry, list | tuple) and len(entry) >= 2:
            entry = dict(zip(("margin", "accuracy", "n", "predicted"), entry, strict=False))
        if not isinstance(entry, dict):
            continue
        ends = [entry[k] for k in ("low", "high") if is_number(entry.get(k))]
        margin = entry.get("margin", sum(ends) / len(ends) if ends else None)
        if isinstance(margin, list | tuple) and margin and all(map(is_number, margin)):
            margin = sum(margin) / len(margin)
        if is_number(margin) and is_number(entry.get("accuracy")):
            pairs = entry.get("n_pairs", entry.get("n", entry.get("count")))
            found.append((margin, entry["accuracy"], pairs, entry.get("predicted")))
    return sorted(found, key=lambda point: point[0])


@styled
def calibration(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Accuracy by margin, with binomial standard errors where the number of pairs is known."""
    figure, (ax,) = panels(width=5.2, height=3.4)
    rows = []
    for i, cell in enumerate(cells):
        points = margins(cell.results.get("report") or {})
        if not points:
            continue
        x, y = np.array([p[:2] for p in points], float).T
        n = np.array([p[2] if is_number(p[2]) and p[2] > 0 else np.inf for p in points])
        ax.errorbar(x, y, yerr=np.sqrt(y * (1 - y) / n), fmt="o-", color=SERIES[i % len(SERIES)],
                    markersize=5, elinewidth=1, label=cell.name)  # fmt: skip
        predicted = [(p[0], p[3]) for p in points if is_number(p[3])]
        if predicted:
            ax.plot(*np.array(predicted).T, "--", color=SERIES[i % len(SERIES)], linewidth=1.2,
                    label=f"{cell.name}: predicted")  # fmt: skip
        rows += [(cell.name, *p) for p in points]
    if not rows:
        return None
    ax.axhline(0.5, color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    ax.set_ylim(min(0.45, *(r[2] for r in rows)) - 0.03, 1.02)
    ax.set_xlabel("margin between the two completions")
    ax.set_ylabel("pairwise accuracy (held out)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return Plot(name, render(figure, name), ("cell", "margin", "accuracy", "pairs", "predicted"), rows,
                "Reward-model accuracy by margin; bars are binomial standard errors.")  # fmt: skip


@styled
def ppo_curves(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Reward, KL and diversity over PPO iterations, every seed."""
    figure, axes = panels(3, 2, width=7.6, height=7.4)
    rows = []
    for ax, (key, label) in zip(axes, PPO_PANELS, strict=True):
        for i, cell in enumerate(cells):
            curve = np.array(cell.column("step", key), float)
            if len(curve):
                ax.plot(*curve.T, color=SERIES[i % len(SERIES)], linewidth=1.4,
                        linestyle=("-", "--", ":")[i // len(SERIES) % 3], label=cell.name)  # fmt: skip
                rows += [(cell.name, key, *point) for point in curve.tolist()]
        ax.set_title(label)
    for ax in axes[-2:]:
        ax.set_xlabel("PPO iteration")
    if not rows:
        return None
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4) or 1)
    return Plot(name, render(figure, name), ("cell", "metric", "iteration", "value"), rows,
                "PPO, every seed: the score it climbs, the gold reward it never sees, how far it has "
                "moved, and what it costs in diversity.")  # fmt: skip


@styled
def before_after(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Gold reward before against after: per evaluation with its interval, and per shown prompt."""
    figure, axes = panels(1, 2, width=7.6, height=3.6)
    rows, shown = [], []
    for i, cell in enumerate(cells):
        result = cell.results.get("evaluation") or {}
        samples = result.get("samples") or []
        pairs = [
            (s.get("gold_before"), s.get("gold_after")) for s in samples if isinstance(s, dict)
        ]
        pairs = [pair for pair in pairs if all(map(is_number, pair))]
        colour = SERIES[i % len(SERIES)]
        for pair in pairs:
            rows.append((cell.name, "prompt", *pair))
        if pairs:
            axes[1].plot(*np.array(pairs).T, "o", color=colour, markersize=5, alpha=0.75)
        ends = (result.get("gold_before"), result.get("gold_after"))
        if all(map(is_number, ends)):
            gain = result.get("gain_interval")
            gain = (
                gain
                if isinstance(gain, list) and len(gain) == 2 and all(map(is_number, gain))
                else None
            )
            error = (
                [[max(0, ends[1] - ends[0] - gain[0])], [max(0, gain[1] - ends[1] + ends[0])]]
                if gain
                else None
            )
            axes[0].plot([0, 1], ends, color=colour, linewidth=1.4)
            axes[0].plot(0, ends[0], "o", color=colour, markersize=5)
            axes[0].errorbar(
                [1],
                [ends[1]],
                yerr=error,
                fmt="o",
                color=colour,
                markersize=5,
                capsize=3,
                label=cell.name,
            )
            rows.append((cell.name, "mean", *ends))
            shown.append(cell.name)
    if not rows:
        return None
    axes[0].set_xticks([0, 1], ["before", "after"])
    axes[0].set_xlim(-0.25, 1.25)
    axes[0].set_title("mean gold reward, 95% interval of the gain")
    if shown:
        axes[0].legend(loc="best")
    values = [v for row in rows if row[1] == "prompt" for v in row[2:]]
    if values:
        ends = [min(values), max(values)]
        axes[1].plot(ends, ends, color=FG, linewidth=1, linestyle=":")
        axes[1].set_xlabel("gold before")
        axes[1].set_ylabel("gold after")
        axes[1].set_title("shown samples; above the line is better")
    else:
        axes[1].set_visible(False)
    return Plot(name, render(figure, name), ("cell", "what", "gold_before", "gold_after"), rows,
                "Gold reward of held-out prompts before and after PPO.")  # fmt: skip
