"""Headline figures for the top of a page: small, and all drawn alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.report.style import MUTED, SERIES, Plot, log_axis, panels, render, styled

POINTS = 60  # more are drawn without their intervals


@dataclass(frozen=True)
class Series:
    """Points, or a line. low, high: ends of intervals of y."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    line: bool = False
    label: str = ""


@styled
def small(
    name: str,
    series: Sequence[Series],
    x: str,
    y: str,
    caption: str,
    x_form: Callable[[Any], str] | None = None,
    y_form: Callable[[Any], str] | None = None,
    level: float | None = None,
    from_zero: bool = False,
) -> Plot | None:
    """A figure for a headline; None where no series has a point.

    Args:
        x, y: axis labels. x_form, y_form: how numbers of a log axis are written; None: linear.
        level: where a dotted line is drawn, such as no gain. from_zero: x begins at 0.
    """
    series = [s for s in series if len(s.x)]
    if not series:
        return None
    figure, (ax,) = panels(width=3.3, height=2.35)
    rows: list[tuple[Any, ...]] = []
    for i, s in enumerate(series):
        colour = SERIES[i % len(SERIES)]
        nothing = [np.nan] * len(s.x)
        low, high = (nothing if ends is None else ends for ends in (s.low, s.high))
        if s.line:
            ax.plot(s.x, s.y, color=colour, linewidth=1.4, label=s.label)
            if s.low is not None and s.high is not None:
                ax.fill_between(s.x, s.low, s.high, color=colour, alpha=0.18, linewidth=0)
        else:
            if len(s.x) <= POINTS:
                ax.vlines(s.x, low, high, color=colour, linewidth=1)
            ax.plot(s.x, s.y, "o", color=colour, markersize=3.5, alpha=0.8, label=s.label)
        rows += [(s.label, *map(float, r)) for r in zip(s.x, s.y, low, high, strict=True)]
    if level is not None:
        ax.axhline(level, color=MUTED, linewidth=1, linestyle=":")
    if from_zero:
        ax.set_xlim(left=0, right=1.08 * max(x for s in series for x in s.x) or 1)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    for which, form, label in (("x", x_form, x), ("y", y_form, y)):
        if form:
            log_axis(ax, which, label, form, most=4)
    if any(s.label for s in series):
        ax.legend(fontsize=8, handlelength=1.2, borderaxespad=0.2)
    return Plot(name, render(figure, name), ("series", "x", "y", "low", "high"), rows, caption)
