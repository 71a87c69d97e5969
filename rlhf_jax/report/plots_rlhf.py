"""Figures of reward modelling, PPO and evaluation, from metrics and results files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from rlhf_jax.report.study_results import CellResult, is_number
from rlhf_jax.report.style import MUTED, SERIES, Plot, panels, render, styled

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
    for i, cell in enumerate(cells):
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
            ax.errorbar(x, y, yerr=np.sqrt(y * (1 - y) / n), fmt="o-", color=SERIES[i % len(SERIES)],
                        markersize=5, elinewidth=1, label=cell.name)  # fmt: skip
            rows += [(cell.name, what, *p) for p in found]
    if not rows:
        return None
    axes[0].axhline(0.5, color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    axes[1].plot([0.5, 1], [0.5, 1], color=MUTED, linestyle="--", linewidth=1.2, label="calibrated")
    for ax, what, label in ((axes[0], "margin", "gold margin of the pair"),
                            (axes[1], "confidence", "sigmoid(score margin)")):  # fmt: skip
        ax.set_xlabel(label)
        ax.set_visible(any(row[1] == what for row in rows))
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    axes[0].set_ylabel("pairwise accuracy (held out)")
    return Plot(name, render(figure, name), ("cell", "against", "x", "accuracy", "pairs"), rows,
                "Reward-model accuracy by gold margin, and its calibration; bars are binomial standard "
                "errors.")  # fmt: skip


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


def _paired(result: dict[str, Any]) -> list[tuple[float, float]]:
    """(before, after) gold rewards of all prompts, or of the shown samples where only those are kept."""
    gold = result.get("gold")
    if isinstance(gold, dict):
        pairs = list(zip(gold.get("before") or [], gold.get("after") or [], strict=False))
    else:
        samples = [s for s in result.get("samples") or [] if isinstance(s, dict)]
        pairs = [(s.get("gold_before"), s.get("gold_after")) for s in samples]
    return [pair for pair in pairs if all(map(is_number, pair))]


@styled
def before_after(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Mean gold reward before and after with the gain's interval, and its distribution."""
    figure, axes = panels(1, 2, width=7.6, height=3.4)
    means, pairs = [], []
    for i, cell in enumerate(cells):
        result = cell.results.get("evaluation") or {}
        pairs += [(cell.name, "prompt", *pair) for pair in _paired(result)]
        before, after = result.get("gold_before"), result.get("gold_after")
        if not (is_number(before) and is_number(after)):
            continue
        means.append((cell.name, "mean", before, after))
        gain = result.get("gain_interval")
        low, high = gain if _is_interval(gain) else (after - before, after - before)
        error = np.clip([[after - before - low], [high - after + before]], 0, None)
        x = 1 + 0.07 * (i - (len(cells) - 1) / 2)
        colour = SERIES[i % len(SERIES)]
        axes[0].plot([0, x], [before, after], "o-", color=colour, linewidth=1.3, markersize=5)
        axes[0].errorbar(
            [x], [after], yerr=error, fmt="o", color=colour, capsize=3, label=cell.name
        )
    if not means and not pairs:
        return None
    axes[0].set_xticks([0, 1], ["before", "after"])
    axes[0].set_xlim(-0.25, 1.4)
    axes[0].set_title("mean gold reward; bar: 95% of the gain")
    axes[0].legend(loc="best")
    axes[1].set_visible(bool(pairs))
    if pairs:
        values = np.array([row[2:] for row in pairs], float)
        edges = np.linspace(values.min(), values.max() + 1e-9, 25)
        for column, label, style in ((0, "before", "--"), (1, "after", "-")):
            share = np.histogram(values[:, column], edges)[0] / len(values)
            axes[1].stairs(
                share, edges, color=SERIES[column], linestyle=style, linewidth=1.7, label=label
            )
        axes[1].set_title("share of prompts, all evaluations")
        axes[1].set_xlabel("gold reward")
        axes[1].legend(loc="best")
    return Plot(name, render(figure, name), ("cell", "what", "gold_before", "gold_after"), means + pairs,
                "Gold reward of held-out prompts before and after PPO.")  # fmt: skip


def _is_interval(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
