"""Figures of a scaling sweep. Each takes tables and returns a `Plot`, or None with nothing to
draw."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.laws.published import FRONTIERS
from rlhf_jax.report.study_results import CellResult, is_number
from rlhf_jax.report.style import (
    FG,
    GRID,
    MUTED,
    SERIES,
    Plot,
    count,
    legend_above,
    log_axis,
    panels,
    power,
    render,
    styled,
)


@styled
def training_curves(cells: Sequence[CellResult], name: str) -> Plot | None:
    """Training loss against compute, the lower envelope, and each run's end point."""
    curves = []
    for cell in cells:
        curve = np.array([r for r in cell.column("flops", "loss") if r[0] > 0], float)
        if len(curve) > 1:
            shown = _some(len(curve))
            curves.append((cell.name, curve[shown, 0], _smooth(curve[:, 1])[shown]))
    if not curves:
        return None
    figure, (ax,) = panels()
    curves.sort(key=lambda curve: curve[1][-1])
    drawn = [curves[i] for i in _spread(len(curves))]
    for _, flops, loss in drawn:
        ax.plot(flops, loss, color=SERIES[0], alpha=0.35, linewidth=1.0)
    last = np.array([(flops[-1], loss[-1]) for _, flops, loss in drawn])
    ax.plot(*last.T, "o", color=SERIES[0], markersize=4)
    grid = np.geomspace(min(c[1][0] for c in curves), max(c[1][-1] for c in curves), 400)
    table = [np.interp(np.log(grid), np.log(f), v, left=np.inf, right=np.inf) for _, f, v in curves]
    envelope = np.minimum.accumulate(np.min(table, axis=0))  # least with at most this compute
    ax.plot(grid, envelope, color=SERIES[1], linewidth=2.2)
    ax.plot([], [], color=SERIES[0], alpha=0.5, label="one run (smoothed)")
    ax.plot([], [], "o", color=SERIES[0], markersize=4, label="its end")
    ax.plot([], [], color=SERIES[1], linewidth=2.2, label="envelope (drawn, not fitted)")
    ends = np.array([v[-1] for _, _, v in curves])
    starts = np.array([v[min(len(v) - 1, max(1, len(v) // 20))] for _, _, v in curves])
    ax.set_ylim(ends.min() - 0.05 * np.ptp([ends.min(), starts.max()]), starts.max())
    log_axis(ax, "x", "training compute (FLOPs)", power)
    ax.set_ylabel("training loss (nats/token)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    rows = [(n, float(f), float(v)) for n, fs, vs in drawn for f, v in zip(fs, vs, strict=True)]
    runs = "every run" if len(drawn) == len(curves) else f"{len(drawn)} of the {len(curves):,} runs"
    return Plot(
        name,
        render(figure, name),
        ("cell", "flops", "loss_smoothed"),
        rows,
        f"Smoothed training loss of {runs} of the sweep against its compute. Points before a run's "
        "end are inside its learning-rate schedule and not comparable: the fits use the ends "
        "alone.",
    )


@styled
def isoflop(fit: dict[str, Any], name: str) -> Plot | None:
    """Held-out loss against model size at each budget, with parabolas, minima and refusals."""
    budgets = fit["budgets"]
    if not budgets:
        return None
    figure, (ax,) = panels(height=4.6)
    rows, ends = [], []
    for i, budget in enumerate(budgets):
        refused = budget["refused"]
        colour = MUTED if refused else SERIES[i % len(SERIES)]
        _budget(ax, budget, colour)
        points = budget["points"]
        text = power(budget["flops"]) + (" " + _short(refused) if refused else "")
        if len(budgets) <= FEW or not refused:  # a table of irregular compute has dozens
            largest = max(p["params"] for p in points)
            ends.append((float(largest), float(points[-1]["loss"]), text, colour))
        rows += [
            (
                budget["flops"],
                p["label"],
                p["params"],
                p["tokens"],
                p["loss"],
                p["stderr"],
                refused or "",
            )
            for p in points
        ]
    ax.plot([], [], "D", color=FG, markersize=6, label="minimum, 95% interval")
    if lost := sum(bool(budget["refused"]) for budget in budgets):
        ax.plot(
            [],
            [],
            "--o",
            color=MUTED,
            markerfacecolor="none",
            label=f"{lost} of {len(budgets)} budgets refused: no minimum shown",
        )
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    low, high = ax.get_xlim()
    ax.set_xscale("log")
    low, high = min(p[2] for p in rows), max(p[2] for p in rows)
    ax.set_xlim(low / 1.15, high * (high / low) ** 0.36)
    log_axis(ax, "x", "model size N (parameters)", count)
    ax.set_ylabel("held-out loss (nats/token)")
    _label_ends(ax, ends)
    return Plot(
        name,
        render(figure, name),
        ("budget_flops", "cell", "params", "tokens", "loss", "stderr", "refused"),
        rows,
        "IsoFLOP curves (approach 2): held-out loss against size at equal compute, with the "
        "parabola in ln N of each budget. Bars are standard errors over held-out rows.",
    )


def _budget(ax: Any, budget: dict[str, Any], colour: str) -> None:
    """The losses at one budget, its parabola and its minimum."""
    points = budget["points"]
    n = np.array([p["params"] for p in points])
    loss = np.array([p["loss"] for p in points])
    stderr = np.array([p["stderr"] or 0.0 for p in points])
    refused = budget["refused"]
    ax.errorbar(
        n,
        loss,
        yerr=stderr,
        fmt="o",
        color=colour,
        markersize=4.5,
        elinewidth=1,
        markerfacecolor="none" if refused else colour,
    )
    if budget["parabola"]:
        grid = np.geomspace(n.min(), n.max(), 100)
        curve = np.polyval(budget["parabola"][::-1], np.log(grid) - budget["center"])
        ax.plot(grid, curve, "--" if refused else "-", color=colour, linewidth=1.4)
    if not refused:
        low, high = budget["intervals"].get("n_star", [budget["n_star"]] * 2)
        ax.plot([low, high], [budget["loss_star"]] * 2, color=FG, linewidth=2.5, alpha=0.55)
        ax.plot(budget["n_star"], budget["loss_star"], "D", color=FG, markersize=6, zorder=5)


@styled
def frontier(fits: Mapping[int, dict[str, Any]], name: str) -> Plot | None:
    """N* and D* against compute: every approach with its band, and published slopes.

    fits: by approach.
    """
    lines = {k: fit for k, fit in fits.items() if fit["frontier"]}
    if not lines:
        return None
    figure, axes = panels(1, 2, width=7.6, height=4.6)
    rows = []
    good = [b for b in (fits[2]["budgets"] if 2 in fits else []) if not b["refused"]]
    for ax, key, exponent in ((axes[0], "n_star", "a"), (axes[1], "d_star", "b")):
        for approach, fit in lines.items():
            line, label, colour = fit["frontier"], f"approach {approach}", SERIES[_COLOUR[approach]]
            c = [p["flops"] for p in line]
            ax.plot(
                c,
                [p[key] for p in line],
                color=colour,
                label=f"{label}: {exponent} = {fit[exponent]:.3f}",
            )
            bands = [(p.get("intervals") or {}).get(key) or [None, None] for p in line]
            if all(is_number(low) and is_number(high) for low, high in bands):
                ax.fill_between(c, *np.array(bands).T, color=colour, alpha=0.16, linewidth=0)
            rows += [(label, key, p["flops"], p[key], *b) for p, b in zip(line, bands, strict=True)]
        for b in good:
            interval = b["intervals"].get(key, [b[key]] * 2)
            ax.plot([b["flops"]] * 2, interval, color=SERIES[0], alpha=0.6)
            ax.plot(b["flops"], b[key], "o", color=SERIES[0], markersize=5)
            rows.append(("minimum", key, b["flops"], b[key], *interval))
        _published(ax, lines[min(lines, key=lambda k: k != 2)], good, key, exponent)
        name_of = "model size N* (parameters)" if key == "n_star" else "training tokens D*"
        log_axis(ax, "x", "training compute C (FLOPs)", power, most=4)
        log_axis(ax, "y", "", count)
        ax.set_title(f"{name_of} ∝ C{'ᵃ' if exponent == 'a' else 'ᵇ'}")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8.5)
    return Plot(
        name,
        render(figure, name),
        ("source", "quantity", "flops", "value", "low", "high"),
        rows,
        "Compute-optimal size and tokens. Bands are 95% bootstrap intervals; the right end is ten "
        "times the largest budget. Published slopes are drawn through the middle of our line. "
        "Approach 3 takes C = 6 N D.",
    )


_COLOUR = {2: 0, 3: 1, 1: 2}  # of the approaches, in SERIES
_DASHES = {"hoffmann-2": "--", "hoffmann-3": "-.", "kaplan": ":"}


def _published(ax, fit: dict[str, Any], good: list, key: str, exponent: str) -> None:
    line = fit["frontier"]
    c = np.array([p["flops"] for p in line])
    middle = (
        float(np.exp(np.mean(np.log([b["flops"] for b in good]))))
        if good
        else float(c[len(c) // 3])
    )
    anchor = float(np.exp(np.interp(np.log(middle), np.log(c), np.log([p[key] for p in line]))))
    for law, dash in _DASHES.items():
        slope = FRONTIERS[law].a if exponent == "a" else 1 - FRONTIERS[law].a
        ax.plot(
            c,
            anchor * (c / middle) ** slope,
            dash,
            color=MUTED,
            linewidth=1.3,
            label=f"{law}: {slope:.2f}",
        )


@styled
def residuals(fit: dict[str, Any], name: str) -> Plot | None:
    """Approach 3's residuals against size and tokens."""
    points = fit["residuals"]
    if not points:
        return None
    figure, axes = panels(1, 2, width=7.6, height=3.2)
    error = np.array([p["residual"] for p in points]) * 100
    limit = max(np.abs(error).max() * 1.15, 0.01)
    kept = set(fit["outliers"]["rows"])
    far = np.array([p["label"] in kept for p in points])
    for ax, key, label in (
        (axes[0], "params", "model size N (parameters)"),
        (axes[1], "tokens", "training tokens D"),
    ):
        x = np.array([p[key] for p in points])
        ax.axhline(0, color=MUTED, linewidth=1)
        ax.plot(x[~far], error[~far], "o", color=SERIES[0], markersize=4.5, alpha=0.8)
        ax.plot(
            x[far], error[far], "s", color=SERIES[1], markersize=5, label="beyond 3 sigma, kept"
        )
        ax.set_ylim(-limit, limit)
        log_axis(ax, "x", label, count, most=5)
    if far.any():
        axes[1].legend(loc="best")
    axes[0].set_ylabel("ln predicted - ln observed (%)")
    rows = [(p["label"], p["params"], p["tokens"], p["residual"]) for p in points]
    return Plot(
        name,
        render(figure, name),
        ("cell", "params", "tokens", "residual_ln"),
        rows,
        "Residuals of the parametric law (approach 3). A trend here means that the form is wrong.",
    )


@styled
def lr_check(check: dict[str, Any], name: str) -> Plot | None:
    """Held-out loss against peak learning rate at one size."""
    points = check["points"]
    if len(points) < 2:
        return None
    figure, (ax,) = panels(width=5.2, height=3.4)
    lr = [p["lr"] for p in points]
    ax.errorbar(
        lr,
        [p["loss"] for p in points],
        yerr=[p["stderr"] or 0 for p in points],
        fmt="o-",
        color=SERIES[0],
        markersize=5,
        elinewidth=1,
    )
    best = next((p for p in points if p["lr"] == check["best_lr"]), None)
    if best:
        ax.plot(best["lr"], best["loss"], "D", color=SERIES[1], markersize=8)
        word = "lowest" if check["interior"] else "lowest, at the edge"
        ax.annotate(
            f"{word}: {best['lr']:.3g}",
            (best["lr"], best["loss"]),
            (0, -18),
            textcoords="offset points",
            ha="center",
            color=FG,
        )
    ax.margins(x=0.18, y=0.2)
    log_axis(ax, "x", "peak learning rate", lambda v: f"{v:g}")
    ax.set_ylabel("held-out loss (nats/token)")
    rows = [(p["label"], p["lr"], p["loss"], p["stderr"]) for p in points]
    return Plot(
        name,
        render(figure, name),
        ("cell", "lr", "loss", "stderr"),
        rows,
        f"Learning-rate check: {check['reason']}.",
    )


@styled
def loss_curves(cells: Sequence[CellResult], name: str, what: str) -> Plot | None:
    """Training loss against tokens (or steps) of a few cells, each with its held-out end."""
    rows = []
    figure, (ax,) = panels(height=3.4)
    drawn = [cells[i] for i in _spread(len(cells), 2 * len(SERIES))]
    for i, cell in enumerate(drawn):
        key = "tokens" if cell.column("tokens", "loss") else "step"
        curve = np.array(cell.column(key, "loss"), float)
        if len(curve) < 2:
            continue
        colour = SERIES[i % len(SERIES)]
        shown, smoothed = _some(len(curve)), _smooth(curve[:, 1])
        curve = curve[shown]
        ax.plot(curve[:, 0], curve[:, 1], color=colour, alpha=0.25, linewidth=0.8)
        ax.plot(curve[:, 0], smoothed[shown], color=colour, label=cell.name)
        if cell.pretrained:
            ax.axhline(
                cell.pretrained.loss,
                color=colour,
                linestyle="--",
                linewidth=1.1,
                label=f"{cell.name}: held out {cell.pretrained.loss:.3f}",
            )
        rows += [(cell.name, *point) for point in curve.tolist()]
        ax.set_xlabel("training tokens" if key == "tokens" else "step")
    if not rows:
        return None
    ax.xaxis.set_major_formatter(lambda v, _: count(v) if v else "0")
    ax.set_ylabel(f"{what} loss (nats/token)")
    ax.set_xlim(left=0)
    legend_above(figure, ax)
    few = f" {len(drawn)} of the {len(cells):,} cells are drawn." if len(drawn) < len(cells) else ""
    return Plot(
        name,
        render(figure, name),
        ("cell", "x", "loss"),
        rows,
        f"{what.capitalize()} loss, raw (faint) and smoothed.{few}",
    )


FEW = 10  # budgets whose refusals are written beside their curves
MOST = 150  # points of a curve that a figure and its table hold
RUNS = 80  # curves of a figure


def _spread(n: int, most: int = RUNS) -> list[int]:
    """All of n indices, or `most` of them at equal distances, the first and the last included."""
    return list(range(n)) if n <= most else np.linspace(0, n - 1, most).round().astype(int).tolist()


def _some(n: int) -> np.ndarray:
    """At most `MOST` of n indices, denser at the start, where curves bend; the last one
    included."""
    return np.unique(np.geomspace(1, n, min(n, MOST)).round().astype(int)) - 1


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred running mean over 5% of the curve (clipped at its ends)."""
    half = max(0, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _short(reason: str) -> str:
    """The head of a refusal in short lines, to fit beside a curve."""
    return textwrap.fill("refused: " + reason.split(":")[0], 24)


def _label_ends(ax, ends: list[tuple[float, float, str, str]]) -> None:
    """Labels to the right of curves, pushed apart so that none covers another."""
    low, high = ax.get_ylim()
    gap = (high - low) * 0.052
    placed = -np.inf
    for x, y, text, colour in sorted(ends, key=lambda end: end[1]):
        half = gap * (text.count("\n") + 1) / 2
        placed = max(y, placed + half)
        ax.annotate(
            text,
            (x, y),
            (x * 1.12, placed),
            color=FG if colour == MUTED else colour,
            va="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": GRID} if placed > y else None,
        )
        placed += half
