"""Figures of laws beside the IsoFLOP ones: exponents side by side, learning rates, repeated data,
predictions. Each takes tables and returns a `Plot`, or None with nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.laws.named import law_of
from rlhf_jax.laws.published import FRONTIERS
from rlhf_jax.report.style import (
    FG,
    GRID,
    MUTED,
    SERIES,
    Plot,
    count,
    log_axis,
    panels,
    power,
    render,
    styled,
)


@styled
def exponents(fits: Sequence[tuple[str, dict[str, Any]]], name: str) -> Plot | None:
    """The exponent a of N* ~ C^a of several fits with their intervals, published ones as lines.

    fits: (label, fit) with `a` and `intervals`; those without an exponent are listed as refused.
    """
    if not any(fit["a"] is not None for _, fit in fits):
        return None
    figure, (ax,) = panels(width=7.2, height=1.3 + 0.36 * len(fits))
    rows = []
    for y, (label, fit) in enumerate(reversed(fits)):
        a = fit["a"]
        if a is None:
            ax.text(0.5, y, "refused", color=MUTED, va="center", ha="center")
            rows.append((label, "", "", "", fit["refused"]))
            continue
        low, high = fit["intervals"].get("a") or (a, a)
        ax.plot([low, high], [y, y], color=SERIES[0], linewidth=2.4, alpha=0.55)
        ax.plot(a, y, "o", color=SERIES[0], markersize=6)
        ax.annotate(
            f"{a:.2f}", (a, y), (0, 6), textcoords="offset points", ha="center", fontsize=8.5
        )
        rows.append((label, a, low, high, ""))
    for (key, label), dash in zip(
        {"hoffmann-2": "Hoffmann 2022", "kaplan": "Kaplan 2020"}.items(), ("--", ":"), strict=True
    ):
        a = FRONTIERS[key].a
        ax.axvline(a, color=MUTED, linestyle=dash, linewidth=1.3, label=f"{label}: {a:.2f}")
    ax.set_yticks(range(len(fits)), [label for label, _ in reversed(fits)])
    ax.set_ylim(-0.6, len(fits) - 0.3)
    ax.set_xlabel("exponent a of N* ∝ Cᵃ, 95% interval")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return Plot(
        name,
        render(figure, name),
        ("fit", "a", "low", "high", "refused"),
        rows[::-1],
        "Exponents of compute-optimal size side by side. Bars are 95% bootstrap intervals.",
    )


@styled
def lr_law(fit: dict[str, Any], name: str) -> Plot | None:
    """Loss against learning rate of every (size, batch), and the best rates with the fitted law."""
    groups = fit["groups"]
    if not groups:
        return None
    figure, axes = panels(1, 2, width=7.8, height=4.2)
    batches = sorted({g["batch_tokens"] for g in groups})
    markers = ("o", "s", "^", "v", "D")
    sizes = sorted({g["params"] for g in groups})
    rows = []
    for g in groups:
        colour = SERIES[sizes.index(g["params"]) % len(SERIES)]
        marker = markers[batches.index(g["batch_tokens"]) % len(markers)]
        tried = [p for p in g["points"] if p["loss"] is not None]
        axes[0].plot(
            [p["lr"] for p in tried],
            [p["loss"] for p in tried],
            "-" + marker,
            color=colour,
            markersize=4,
            linewidth=1,
            alpha=0.8,
        )
        if g["best_lr"]:
            axes[0].plot(g["best_lr"], g["loss"], "*", color=FG, markersize=8, zorder=5)
            axes[1].plot(g["params"], g["best_lr"], marker, color=colour, markersize=6)
        rows += [
            (g["params"], g["batch_tokens"], p["lr"], p["loss"], g["best_lr"], g["predicted"])
            for p in g["points"]
        ]
    if not fit["refused"]:
        grid = np.geomspace(sizes[0] / 1.5, sizes[-1] * 1.5, 50)
        for i, b in enumerate(batches):
            line = np.exp(np.interp(np.log(grid), *_law_line(fit, groups, b, sizes)))
            axes[1].plot(grid, line, ("-", "--", ":", "-.")[i % 4], color=MUTED, linewidth=1.3)
    for i, b in enumerate(batches):
        axes[1].plot(
            [],
            [],
            markers[i % 5] + ("-", "--", ":", "-.")[i % 4],
            color=MUTED,
            label=f"{count(b)} tokens a batch",
        )
    for i, n in enumerate(sizes):
        axes[0].plot([], [], color=SERIES[i % len(SERIES)], label=f"{count(n)} parameters")
    axes[0].plot([], [], "*", color=FG, linestyle="", label="minimum of the parabola")
    log_axis(axes[0], "x", "peak learning rate", lambda v: f"{v:g}", most=5)
    axes[0].set_ylabel("held-out loss (nats/token)")
    log_axis(axes[1], "x", "model size N (parameters)", count, most=4)
    log_axis(axes[1], "y", "best learning rate", lambda v: f"{v:g}", most=5)
    for ax in axes:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8.5)
    return Plot(
        name,
        render(figure, name),
        ("params", "batch_tokens", "lr", "loss", "best_lr", "predicted_lr"),
        rows,
        "Left: loss against peak learning rate at every size and batch. Right: the best rates and "
        "the law through them.",
    )


def _law_line(fit: dict, groups: list, batch: float, sizes: list) -> tuple[np.ndarray, np.ndarray]:
    """ln lr of the law at the ends of the sizes, widened, for one batch."""
    anchor = groups[0]
    ends = np.log([sizes[0] / 2, sizes[-1] * 2])
    shift = fit["b_power"] * np.log(batch / anchor["batch_tokens"])
    line = np.log(anchor["predicted"]) - fit["n_power"] * (ends - np.log(anchor["params"])) + shift
    return ends, line


@styled
def repetition(predict, rows: Sequence[Mapping[str, Any]], name: str) -> Plot | None:
    """Loss against tokens seen, a line a unique subset, with the data-constrained law.

    predict: (params, tokens, unique_tokens) -> loss, of the fitted law. rows: params, tokens,
    unique_tokens, loss, stderr, label.
    """
    sizes = sorted({row["params"] for row in rows})
    if not sizes:
        return None
    figure, axes = panels(1, len(sizes), width=7.8, height=4.2)
    subsets = sorted({r["unique_tokens"] for r in rows if r["unique_tokens"] < r["tokens"]})
    table = []
    for ax, n in zip(axes, sizes, strict=True):
        for i, unique in enumerate([*subsets, None]):
            mine = sorted(
                (
                    r
                    for r in rows
                    if r["params"] == n
                    and (
                        r["unique_tokens"] == unique
                        if unique
                        else r["unique_tokens"] >= r["tokens"]
                    )
                ),
                key=lambda r: r["tokens"],
            )
            if not mine:
                continue
            colour = SERIES[i % len(SERIES)] if unique else FG
            d = np.array([r["tokens"] for r in mine])
            label = f"{count(unique)} unique tokens" if unique else "no repeats"
            ax.plot(d, [r["loss"] for r in mine], "o", color=colour, markersize=4.5, label=label)
            grid = np.geomspace(d[0], d[-1], 60)
            u = np.minimum(unique, grid) if unique else grid
            ax.plot(
                grid, predict(params=n, tokens=grid, unique_tokens=u), color=colour, linewidth=1.3
            )
            table += [
                (r["label"], n, r["tokens"], r["unique_tokens"], r["loss"], r["stderr"])
                for r in mine
            ]
        log_axis(ax, "x", "training tokens seen", count, most=5)
        ax.set_title(f"{count(n)} parameters")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8.5)
    axes[0].set_ylabel("held-out loss (nats/token)")
    return Plot(
        name,
        render(figure, name),
        ("cell", "params", "tokens", "unique_tokens", "loss", "stderr"),
        table,
        "Held-out loss when unique subsets of the corpus are repeated; lines are the fitted law.",
    )


@styled
def extrapolation(fit: Mapping[str, Any], name: str) -> Plot | None:
    """A law fitted below C0 beside the runs above it: losses against compute, and the errors."""
    ahead = fit["extrapolation"]
    runs = ahead.get("runs") or []
    if not runs:
        return None
    figure, axes = panels(1, 2, width=7.6, height=3.4)
    c, seen, said = (np.array([r[key] for r in runs]) for key in ("flops", "observed", "predicted"))
    for ax in axes:
        ax.axvline(ahead["below"], color=MUTED, linestyle="--", linewidth=1.1)
    for point in fit["points"]:
        if point["flops"] <= 1.05 * ahead["below"]:
            axes[0].plot(point["flops"], point["loss"], ".", color=MUTED, markersize=4)
    axes[0].plot(np.stack([c, c]), np.stack([seen, said]), color=GRID, linewidth=1)
    axes[0].plot(c, seen, "o", color=SERIES[0], markersize=4.5, label="observed")
    axes[0].plot(
        c,
        said,
        "x",
        color=SERIES[1],
        markersize=5,
        label=f"predicted from below {power(ahead['below'])}",
    )
    axes[0].set_ylabel("held-out loss (nats/token)")
    axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    axes[1].axhline(0, color=MUTED, linewidth=1)
    axes[1].plot(c, 100 * np.log(said / seen), "o", color=SERIES[1], markersize=4.5)
    axes[1].set_ylabel("ln predicted - ln observed (%)")
    for ax in axes:
        log_axis(ax, "x", "training compute C (FLOPs)", power, most=4)
    rows = [(r["label"], r["flops"], r["observed"], r["predicted"]) for r in runs]
    return Plot(
        name,
        render(figure, name),
        ("run", "flops", "observed", "predicted"),
        rows,
        "Held-out extrapolation: the law of the runs left of the dashed line, and the runs right "
        "of it.",
    )


@styled
def law(fit: Mapping[str, Any], name: str) -> Plot | None:
    """Any law of `rlhf_jax.laws.named`: what it says against what was observed, and its residuals
    against each input.

    fit: `LawFit.to_json()`.
    """
    rows = fit["residuals"]
    if not rows:
        return None
    law = law_of(fit)
    inputs = {key: np.array([row[key] for row in rows]) for key in fit["inputs"]}
    said = law.predict(**inputs)
    error = np.array([row["residual"] for row in rows])
    observed = said * np.exp(-error) if fit["target"] == "loss" else said - error
    figure, axes = panels(1, 1 + len(inputs), width=2.9 * (1 + len(inputs)), height=3.4)
    ends = [min(said.min(), observed.min()), max(said.max(), observed.max())]
    axes[0].plot(ends, ends, color=MUTED, linewidth=1)
    axes[0].plot(said, observed, "o", color=SERIES[0], markersize=4, alpha=0.7)
    axes[0].set_xlabel(f"{fit['target']} by the law")
    axes[0].set_ylabel(f"{fit['target']} observed")
    for ax, (key, values) in zip(axes[1:], inputs.items(), strict=True):
        ax.axhline(0, color=MUTED, linewidth=1)
        ax.plot(values, error, "o", color=SERIES[1], markersize=4, alpha=0.7)
        if values.max() > 3 * values.min():
            log_axis(ax, "x", key.replace("_", " "), count, most=4)
        else:
            ax.set_xlabel(key.replace("_", " "))
        ax.set_title("residual (predicted - observed)" if ax is axes[1] else "")
    table = [
        (row["label"], *(row[k] for k in inputs), o, p)
        for row, o, p in zip(rows, observed, said, strict=True)
    ]
    return Plot(
        name,
        render(figure, name),
        ("run", *inputs, "observed", "predicted"),
        table,
        f"{fit['source']}: the law against the runs it was fitted to.",
    )


@styled
def predicted(rows: Sequence[Mapping[str, Any]], name: str) -> Plot | None:
    """Predictions made before the runs, beside what the runs gave.

    rows: {quantity, law, predicted, low, high, measured, measured_low, measured_high}.
    """
    quantities = list(dict.fromkeys(row["quantity"] for row in rows))
    if not quantities:
        return None
    figure, axes = panels(1, len(quantities), width=7.8, height=3.4)
    for ax, quantity in zip(axes, quantities, strict=True):
        mine = [row for row in rows if row["quantity"] == quantity]
        for x, row in enumerate(mine):
            if row["low"] is not None:
                ax.plot(
                    [x, x], [row["low"], row["high"]], color=SERIES[0], linewidth=2.4, alpha=0.5
                )
            ax.plot(x, row["predicted"], "o", color=SERIES[0], markersize=6)
        seen = mine[0]
        ax.axhline(seen["measured"], color=SERIES[1], linewidth=1.5)
        if seen["measured_low"] is not None:
            ax.axhspan(
                seen["measured_low"],
                seen["measured_high"],
                color=SERIES[1],
                alpha=0.15,
                linewidth=0,
            )
        ax.set_xticks(range(len(mine)), [row["law"] for row in mine])
        ax.set_xlim(-0.6, len(mine) - 0.4)
        ax.set_title(quantity)
        if mine[0]["predicted"] > 1000:
            ax.yaxis.set_major_formatter(lambda v, _: count(v))
    axes[0].plot([], [], "o", color=SERIES[0], label="predicted")
    axes[0].plot([], [], color=SERIES[1], label="measured")
    axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2)
    keys = (
        "quantity",
        "law",
        "predicted",
        "low",
        "high",
        "measured",
        "measured_low",
        "measured_high",
    )
    return Plot(
        name,
        render(figure, name),
        keys,
        [tuple(row[k] for k in keys) for row in rows],
        "What the smaller budgets predicted of the largest, and what it gave.",
    )


@styled
def envelope(fit: dict[str, Any], name: str) -> Plot | None:
    """Approach 1: final losses of each size between its horizons, and which size holds the
    least."""
    points = fit["envelope"]
    if not points:
        return None
    figure, axes = panels(1, 2, width=7.8, height=3.8)
    size = {p["label"]: p["params"] for p in points}
    holders = sorted(size, key=size.__getitem__)
    for i, label in enumerate(holders):
        mine = [p for p in points if p["label"] == label]
        colour = SERIES[i % len(SERIES)]
        for kept, alpha in ((True, 1.0), (False, 0.3)):
            part = [p for p in mine if p["kept"] == kept]
            for ax, key in ((axes[0], "loss"), (axes[1], "params")):
                ax.plot(
                    [p["flops"] for p in part],
                    [p[key] for p in part],
                    ".",
                    color=colour,
                    alpha=alpha,
                    markersize=4,
                    label=f"{count(size[label])} parameters" if ax is axes[0] and kept else None,
                )
    if fit["a"] is not None:
        c = np.array([p["flops"] for p in points if p["kept"]])
        axes[1].plot(
            c, fit["k_n"] * c ** fit["a"], color=FG, linewidth=1.5, label=f"a = {fit['a']:.2f}"
        )
        axes[1].legend(loc="best")
    if len(holders) <= 6:
        axes[0].legend(loc="upper right", markerscale=2)
    log_axis(axes[0], "x", "training compute C (FLOPs)", power, most=4)
    axes[0].set_ylabel("least final loss (nats/token)")
    log_axis(axes[1], "x", "training compute C (FLOPs)", power, most=4)
    log_axis(axes[1], "y", "size that holds it (parameters)", count, most=5)
    rows = [
        (p["flops"], p["params"], p["tokens"], p["loss"], p["label"], p["kept"]) for p in points
    ]
    return Plot(
        name,
        render(figure, name),
        ("flops", "params", "tokens", "loss", "holder", "kept"),
        rows,
        "Approach 1: the lower envelope of final losses over compute, coloured by the size that "
        "holds it. Faint: held by the smallest or largest size that reaches it, and not fitted.",
    )
