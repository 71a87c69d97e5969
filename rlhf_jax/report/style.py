"""One look for every figure: SVG that follows the reader's light, dark or print colours.

Matplotlib draws in placeholder colours; `render` replaces them by CSS variables, which the report
defines once and a standalone SVG file carries itself. Text stays text.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rlhf_jax.study.files import write_text

# Placeholder -> (CSS variable, light, dark). Series colours are Okabe-Ito hues, which colour-blind
# readers can tell apart, darkened for white paper and lightened for a dark page.
FG, MUTED, GRID, PAGE = "#000101", "#000102", "#000103", "#000104"
SERIES = tuple(f"#0002{i:02x}" for i in range(6))
COLOURS = {
    FG: ("--fg", "#1f2328", "#e6e6e6"),
    MUTED: ("--muted", "#6a7178", "#9aa3ab"),
    GRID: ("--grid", "#e3e6e8", "#33393f"),
    PAGE: ("--page", "#ffffff", "#15181b"),
    SERIES[0]: ("--s0", "#0072b2", "#56b4e9"),
    SERIES[1]: ("--s1", "#c65400", "#ff9a4d"),
    SERIES[2]: ("--s2", "#00805d", "#3fd0a4"),
    SERIES[3]: ("--s3", "#b0558c", "#eaa3cd"),
    SERIES[4]: ("--s4", "#7a5c00", "#e8cf4a"),
    SERIES[5]: ("--s5", "#5b4fb3", "#b1a7ff"),
}
_RC: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": FG,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": FG,
    "axes.titlecolor": FG,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": FG,
    "ytick.labelcolor": FG,
    "lines.linewidth": 1.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
    "axes.formatter.useoffset": False,
}


styled = matplotlib.rc_context(_RC)  # decorates every function that draws


@dataclass
class Drawing:
    """A figure, which becomes SVG when that is first asked for."""

    figure: Figure
    name: str

    @cached_property
    def _svg(self) -> str:
        return _svg(self.figure, self.name)

    def __str__(self) -> str:
        return self._svg


@dataclass(frozen=True)
class Plot:
    """A figure. drawing: of `render`, or SVG. header, rows: the numbers behind it."""

    name: str
    drawing: Any
    header: tuple[str, ...]
    rows: list[tuple]
    caption: str

    MACRO: ClassVar[str] = "figure"

    @property
    def svg(self) -> str:
        return str(self.drawing)

    def markup(self) -> Markup:
        """For a page that defines the colours."""
        return Markup(self.svg)

    def write(self, folder: Path) -> None:
        """`NAME.svg`, readable on its own in light and dark, and `NAME.csv`."""
        style = f"<style>{css('svg')}</style>"
        svg = re.sub(r"(<svg[^>]*>)", lambda m: m[1] + style, self.svg, count=1)
        write_text(folder / f"{self.name}.svg", svg)
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(self.header)
        writer.writerows(self.rows)
        write_text(folder / f"{self.name}.csv", table.getvalue())


def css(selector: str) -> str:
    """The colour variables, light by default and in print, dark where the reader prefers it."""
    light = ";".join(f"{name}:{value}" for name, value, _ in COLOURS.values())
    dark = ";".join(f"{name}:{value}" for name, _, value in COLOURS.values())
    return (
        f"{selector}{{{light}}}"
        f"@media screen and (prefers-color-scheme: dark){{{selector}{{{dark}}}}}"
    )


def panels(rows: int = 1, columns: int = 1, width: float = 7.2, height: float = 4.0):
    """(figure, axes as a flat list), in inches."""
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def legend_above(figure: Figure, *axes: Axes) -> None:
    """One legend over all panels, in as many columns as fit; the figure grows by its lines."""
    found: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= {label: h for h, label in zip(handles, labels, strict=True) if label not in found}
    if not found:
        return
    inches = 0.6 + 0.075 * max(map(len, found))  # of a column
    columns = max(1, min(len(found), 4, int(figure.get_figwidth() / inches)))
    figure.set_figheight(figure.get_figheight() + 0.18 * (math.ceil(len(found) / columns) - 1))
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=columns)


def render(figure: Figure, name: str) -> Any:
    """The figure as inline SVG with colours as CSS variables."""
    return Drawing(figure, name)


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({**_RC, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    for placeholder, (variable, _, _) in COLOURS.items():
        svg = svg.replace(placeholder, f"var({variable})")
    # Ids must be unique on a page that holds many figures.
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', lambda m: f"{m[1]}{name}-", svg)
    # As wide as the page allows, up to the size it was drawn for.
    for side in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", svg, count=1)
    wide = 6.6 * figure.get_figwidth()
    return svg.replace("<svg", f'<svg style="width:100%;max-width:{wide:.1f}rem"', 1)


def log_axis(ax: Axes, which: str, label: str, form, most: int = 7) -> None:
    """A log axis with at most `most` ticks at round numbers, written by `form`."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    axis.set_major_locator(FixedLocator(_log_ticks(low, high, most)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: form(v)))
    (ax.set_xlabel if which == "x" else ax.set_ylabel)(label)


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """The densest of 1-2-5, 1-3 and 1 (then every second decade, ...) with at most `most` ticks."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    tried = [
        ((1, 2, 5), 1),
        ((1, 3), 1),
        *(((1,), stride) for stride in range(1, last - first + 2)),
    ]
    for subs, stride in tried:
        ticks = [s * 10.0**e for e in range(first, last + 1, stride) for s in subs]
        ticks = [t for t in ticks if low <= t <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 2:
        ticks = [t for t in MaxNLocator(most - 1).tick_values(low, high) if low <= t <= high]
    return ticks


def count(value: float | None) -> str:
    """1234567 -> 1.23M."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def power(value: float | None) -> str:
    """3e15 -> 3×10¹⁵."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return "-"
    digits, _, exponent = f"{value:.2e}".partition("e")
    head = f"{float(digits):g}"
    raised = str(int(exponent)).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"10{raised}" if head == "1" else f"{head}×10{raised}"
