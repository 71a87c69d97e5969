"""Figures of proxies: gold and proxy scores as policies move away, and accuracy by size and
labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.report.style import (
    FG,
    MUTED,
    SERIES,
    Plot,
    legend_above,
    panels,
    render,
    styled,
)

COLUMNS = 4
GOLD, PROXY = SERIES[0], SERIES[1]


@dataclass(frozen=True)
class Seen:
    """One run's points: d = sqrt(KL), mean gold and proxy scores, each (m,)."""

    name: str
    d: np.ndarray
    gold: np.ndarray
    proxy: np.ndarray


@dataclass(frozen=True)
class Facet:
    """A proxy's panel. fit: of `fit_overoptimization`, or a refusal."""

    title: str
    runs: Sequence[Seen]
    fit: dict[str, Any]


def gains(fit: dict[str, Any], run: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Gold and proxy above the start: the fit's, or the run's first point."""
    start = fit["gold_at_0"]
    if start is None or fit["form"] == "best_of_n":
        start = run.gold[0]
    return run.gold - start, run.proxy - run.proxy[0]


@styled
def curves(facets: Sequence[Facet], how: str, name: str) -> Plot | None:
    """Gold and proxy gain against sqrt(KL), a panel a proxy, every run, with the fits and their
    bands."""
    facets = [
        Facet(f.title, kept, f.fit) for f in facets if (kept := [r for r in f.runs if len(r.d)])
    ]
    if not facets:
        return None
    columns = min(COLUMNS, len(facets))
    lines = math.ceil(len(facets) / columns)
    figure, axes = panels(
        lines, columns, width=max(4.6, 2.3 * columns + 0.8), height=2.5 * lines + 0.7
    )
    gained = [[gains(f.fit, r) for r in f.runs] for f in facets]
    seen = [np.concatenate([g[k] for of in gained for g in of]) for k in (0, 1)]
    fitted = [np.array(f.fit["band"]["gain"] if f.fit["band"] else [0.0], float) for f in facets]
    limits = _limits(np.concatenate([seen[0], *fitted]), seen[1])
    rows = []
    for i, (ax, facet) in enumerate(zip(axes, facets, strict=False)):
        other = ax.twinx()
        thin = len(facet.runs) > 1
        style: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.6} if thin else {"linewidth": 1.2}
        mark = {"marker": "o", "markersize": 3} if len(facet.runs[0].d) < 20 else {}
        for run, (gold, proxy) in zip(facet.runs, gained[i], strict=True):
            ax.plot(run.d, gold, color=GOLD, **style, **mark)
            other.plot(run.d, proxy, color=PROXY, linestyle="--", **style, **mark)
            rows += [
                (facet.title.split("\n")[0], run.name, *p)
                for p in zip(run.d.tolist(), gold.tolist(), proxy.tolist(), strict=True)
            ]
        _draw_fit(ax, facet.fit)
        ax.set_title(facet.title, fontsize=8.5)
        ax.axhline(0, color=MUTED, linewidth=0.7)
        ax.set_ylim(limits[0])
        other.set_ylim(limits[1])
        other.grid(False)
        ax.set_zorder(other.get_zorder() + 1)
        ax.patch.set_visible(False)
        first, last = i % columns == 0, (i + 1) % columns == 0 or i == len(facets) - 1
        ax.tick_params(axis="y", labelcolor=GOLD, labelleft=first)
        other.tick_params(axis="y", labelcolor=PROXY, labelright=last, length=0)
        if first:
            ax.set_ylabel("gold gain", color=GOLD)
        if last:
            other.set_ylabel("proxy gain", color=PROXY)
        if i + columns >= len(facets):
            ax.set_xlabel("sqrt(KL)")
    for ax in axes[len(facets) :]:
        ax.set_visible(False)
    _name_lines(axes[0])
    legend_above(figure, axes[0])
    return Plot(
        name,
        render(figure, name),
        ("proxy", "cell", "d", "gold_gain", "proxy_gain"),
        rows,
        f"Gold score (left axis) and proxy score (right axis) above their start, against the "
        f"square root of the KL, as {how} goes on; every run, one panel a proxy. Bands: 95%.",
    )


def _limits(*values: np.ndarray) -> list[tuple[float, float]]:
    """Limits of axes that have their zeros at the same height."""
    ends = [(min(v.min(), 0.0), max(v.max(), 0.0)) for v in (x[np.isfinite(x)] for x in values)]
    spans = [max(high - low, 1e-9) for low, high in ends]
    below = max(-low / span for (low, _), span in zip(ends, spans, strict=True))
    above = max(high / span for (_, high), span in zip(ends, spans, strict=True))
    return [(-span * (below + 0.05), span * (above + 0.05)) for span in spans]


def _draw_fit(ax: Any, fit: dict[str, Any]) -> None:
    band = fit["band"]
    if not band:
        return
    ax.fill_between(band["d"], band["low"], band["high"], color=FG, alpha=0.12, linewidth=0)
    ax.plot(band["d"], band["gain"], color=FG, linewidth=1.4)
    peak = fit["peak"]
    if peak and not peak["beyond"]:
        ax.plot(peak["d"], peak["gain"], "v", color=FG, markersize=6)


def _name_lines(ax: Any) -> None:
    """What the legend says."""
    ax.plot([], [], color=GOLD, label="gold")
    ax.plot([], [], color=PROXY, linestyle="--", label="proxy")
    ax.plot([], [], color=FG, linewidth=1.4, label="fit to gold")
    ax.plot([], [], "v", color=FG, linestyle="", label="its peak")
