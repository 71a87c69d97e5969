"""The report's section on prompting: with and without worked examples, before and after tuning."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.report.families import ancestors, family, result
from rlhf_jax.report.markup import absent, interval, paragraph, share, table
from rlhf_jax.report.study_results import CellResult, StudyResults
from rlhf_jax.report.style import MUTED, SERIES, Plot, legend_above, panels, render, styled

Draw = Callable[[Plot | None], str]
MEASURES = (("choice", "right choice"), ("exact", "exact match"))
FLOORS = {"choice": "chance", "exact": "majority"}  # what a model scores that guesses blindly
SAMPLES = 1  # of each type


@dataclass(frozen=True)
class Asked:
    """Seeds of one model, asked in one template.

    Attributes:
        label: what it is called. before: whether another model that was asked comes from it.
        cells: one a seed.
    """

    label: str
    before: bool
    cells: Sequence[CellResult]

    def rows(self, part: str, **where: Any) -> list[dict[str, Any]]:
        """The rows of `part` (types or groups) of every seed in which the fields of `where` are
        so."""
        return [
            row
            for cell in self.cells
            for row in result(cell, "prompting")[part]
            if all(row.get(key) == value for key, value in where.items())
        ]


def asked(study: StudyResults) -> list[Asked]:
    """The prompting cells that are done by model and template, those before tuning first."""
    cells = [c for c in study.of("prompting") if result(c, "prompting")]
    above = set().union(*(ancestors(study, c.parents[0]) for c in cells), set())
    found: dict[tuple[bool, str, str], list[CellResult]] = {}
    for cell in cells:
        policy = cell.parents[0]
        key = (policy not in above, family(policy), result(cell, "prompting")["template"])
        found.setdefault(key, []).append(cell)
    return [
        Asked(f"{model}, {template}", not after, some)
        for (after, model, template), some in sorted(found.items(), key=lambda kv: kv[0][0])
    ]


def headlines(study: StudyResults) -> list[str]:
    """A sentence a group of types: every model and template, with as few worked examples as were
    asked."""
    series = asked(study)
    if not series:
        return []
    shots, groups = min(_shots(series)), _groups(series)
    lines = []
    for group in groups:
        said = [
            f"{s.label} {_rate(rows, 'choice')} ({_rate(rows, 'exact')} exact)"
            for s in series
            if (rows := s.rows("groups", group=group, shots=shots))
        ]
        floor = _rate([r for s in series for r in s.rows("groups", group=group)], "chance")
        lines.append(f"Right choices, {group}, {shots} shots: {'; '.join(said)}; chance {floor}.")
    return lines


def prompting(study: StudyResults, draw: Draw) -> str:
    series = asked(study)
    if not series:
        return absent(study, "prompting", "prompting cell")
    body = paragraph(
        "Right choice: the answer has a higher log-probability a token than every distractor. "
        "Exact match: the greedy completion, up to a newline or EOS, is the answer. Items are of "
        "the test split, worked examples of the training split and of the item's own type."
    )
    body += _by_group(series) + draw(by_shots(series, "prompting")) + _by_type(series)
    return body + _lengths(series) + _samples(series)


def _by_group(series: Sequence[Asked]) -> str:
    rows = []
    for group in _groups(series):
        for shots in _shots(series):
            for s in series:
                if found := s.rows("groups", group=group, shots=shots):
                    rows.append(
                        (
                            group,
                            shots,
                            _when(s, series),
                            s.label,
                            len(found),
                            _rate(found, "choice"),
                            _spread(found, "choice"),
                            _rate(found, "chance"),
                            _rate(found, "exact"),
                            _spread(found, "exact"),
                            _rate(found, "majority"),
                            f"{statistics.fmean(r['margin'] for r in found):+.2f}",
                        )
                    )
    head = (
        "items",
        "shots",
        "when",
        "model, template",
        "seeds",
        "right choice",
        "from, to",
        "chance",
        "exact match",
        "from, to",
        "majority",
        "margin (nats/token)",
    )
    said = paragraph(
        "From, to: over seeds; of one seed, the 95% interval over items. Majority: exact match of "
        "a model that always gives a type's most frequent answer. Margin: of the answer over the "
        "likeliest distractor."
    )
    return said + table(head, rows)


def _by_type(series: Sequence[Asked]) -> str:
    kinds = list(dict.fromkeys((r["group"], r["type"]) for s in series for r in s.rows("types")))
    rows = []
    for group, kind in kinds:
        for shots in _shots(series):
            where = {"group": group, "type": kind, "shots": shots}
            found = [s.rows("types", **where) for s in series]
            known = [r for of_series in found for r in of_series]
            if known:
                cells = [f"{_rate(f, 'choice')} ({_rate(f, 'exact')})" for f in found]
                rows.append((group, kind, shots, _rate(known, "chance"), *cells))
    labels = [" ".join(filter(None, (_when(s, series), s.label))) for s in series]
    said = paragraph("Right choices, in brackets exact matches; means over seeds.")
    head = ("items", "type", "shots", "chance", *labels)
    return "<h3>By type</h3>" + said + table(head, rows)


def _lengths(series: Sequence[Asked]) -> str:
    """How long the prompts are, where some are longer than a training row."""
    rows, seen = [], 0
    for s in series:
        found = result(s.cells[0], "prompting")
        seen = found["seen"]
        rows += [
            (s.label, shots, f"{t['mean']:.0f}", t["longest"])
            for shots, t in found["tokens"].items()
            if t["longest"] > seen
        ]
    if not rows:
        return ""
    said = paragraph(
        f"Rows of training have {seen} tokens, so the end of a longer prompt stands at positions "
        f"that the model has not been trained at:"
    )
    return said + table(("model, template", "shots", "tokens on average", "longest"), rows)


def _samples(series: Sequence[Asked]) -> str:
    """The first items of each type with what each model says, without worked examples if that was
    asked."""
    shots = min(_shots(series))
    said: dict[tuple[str, str, str, str], dict[str, str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for s in series:
        for row in result(s.cells[0], "prompting")["shown"]:
            key = (row["group"], row["type"], row["text"], row["answer"])
            if row["shots"] != shots:
                continue
            if key not in said:
                counts[key[:2]] = counts.get(key[:2], 0) + 1
                if counts[key[:2]] > SAMPLES:
                    continue
            said.setdefault(key, {})[s.label] = row["completion"]
    rows = [
        (group, kind, text, answer, *(found.get(s.label, "-") or "(nothing)" for s in series))
        for (group, kind, text, answer), found in said.items()
    ]
    labels = [f"{s.label}, {s.cells[0].name}" if len(s.cells) > 1 else s.label for s in series]
    head = ("items", "type", "asked", "answer", *labels)
    free = tuple(range(2, len(head)))
    return f"<h3>Completions, {shots} shots</h3>" + table(head, rows, free)


def _shots(series: Sequence[Asked]) -> list[int]:
    return sorted({n for s in series for c in s.cells for n in result(c, "prompting")["shots"]})


def _groups(series: Sequence[Asked]) -> list[str]:
    return list(dict.fromkeys(row["group"] for s in series for row in s.rows("groups")))


def _when(s: Asked, series: Sequence[Asked]) -> str:
    """Before or after, if there is something to compare."""
    if not any(other.before for other in series):
        return ""
    return "before" if s.before else "after"


def _rate(rows: Sequence[dict[str, Any]], key: str) -> str:
    return share(statistics.fmean(row[key] for row in rows)) if rows else "-"


def _spread(rows: Sequence[dict[str, Any]], key: str) -> str:
    if len(rows) == 1:
        return interval(rows[0][f"{key}_interval"], form=share)
    values = [row[key] for row in rows]
    return interval([min(values), max(values)], form=share)


@styled
def by_shots(series: Sequence[Asked], name: str) -> Plot | None:
    """Accuracy by worked examples, a panel a measure and group: every seed thin, means over seeds
    thick, models before tuning dashed, blind guesses dotted."""
    shots, groups = _shots(series), _groups(series)
    if not groups:
        return None
    figure, axes = panels(len(MEASURES), len(groups), width=max(4.6, 2.7 * len(groups)), height=5.4)
    rows: list[tuple[Any, ...]] = []
    for i, (key, title) in enumerate(MEASURES):
        for j, group in enumerate(groups):
            ax = axes[i * len(groups) + j]
            for number, s in enumerate(series):
                rows += _lines(ax, s, _when(s, series), number, group, key, shots)
            known = [row[FLOORS[key]] for s in series for row in s.rows("groups", group=group)]
            ax.axhline(
                statistics.fmean(known),
                color=MUTED,
                linewidth=1,
                linestyle=":",
                label="blind guess",
            )
            ax.set_xticks(range(len(shots)), list(map(str, shots)))
            ax.set_ylim(-0.02, 1.02)
            ax.set_title(group if i == 0 else "", fontsize=9.5)
            ax.set_ylabel(title if j == 0 else "")
    figure.supxlabel("worked examples in the prompt", fontsize=9.5)
    legend_above(figure, axes[0], axes[-1])
    head = ("model_and_template", "when", "cell", "items", "measure", "shots", "rate")
    return Plot(
        name,
        render(figure, name),
        head,
        rows,
        "Answers by the number of worked examples in front; every seed thin, means over seeds "
        "thick, models before tuning dashed. A blind guess picks a choice at random, or always "
        "says a type's most frequent answer.",
    )


def _lines(
    ax: Any, s: Asked, when: str, number: int, group: str, key: str, shots: Sequence[int]
) -> list[tuple[Any, ...]]:
    """Draws the seeds of one model and their mean; returns the numbers."""
    style = {"color": SERIES[number % len(SERIES)], "linestyle": "--" if s.before else "-"}
    at: dict[int, list[float]] = {}
    rows = []
    for cell in s.cells:
        alone = Asked(s.label, s.before, [cell]).rows("groups", group=group)
        points = sorted((row["shots"], row[key]) for row in alone)
        ax.plot([shots.index(n) for n, _ in points], [y for _, y in points], linewidth=0.7, **style)
        rows += [(s.label, when, cell.name, group, key, *point) for point in points]
        for n, y in points:
            at.setdefault(n, []).append(y)
    means = [(shots.index(n), statistics.fmean(ys)) for n, ys in sorted(at.items())]
    label = f"{when}: {s.label}" if when else s.label
    ax.plot(*zip(*means, strict=True), linewidth=2, marker="o", markersize=4, label=label, **style)
    return rows
