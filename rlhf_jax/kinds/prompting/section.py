"""How the report shows prompting: with and without worked examples, before and after tuning."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.kinds.prompting.result import Answered, PromptingResult, Rates
from rlhf_jax.report.blocks import (
    Block,
    Heading,
    Lead,
    Paragraph,
    Section,
    Table,
    absent,
    interval,
    share,
)
from rlhf_jax.report.families import ancestors, family
from rlhf_jax.report.lead import Series, small
from rlhf_jax.report.study_results import CellResult, StudyResults
from rlhf_jax.report.style import MUTED, SERIES, Plot, legend_above, panels, render, styled

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

    def rows(self, part: str, **where: Any) -> list[Any]:
        """The rows of `part` (types or groups) of every seed in which the fields of `where` have
        these values."""
        return [
            row
            for cell in self.cells
            for row in getattr(_of(cell), part)
            if all(getattr(row, key) == value for key, value in where.items())
        ]


def _of(cell: CellResult) -> Answered:
    answered: Answered = cell.result.prompting
    return answered


def asked(study: StudyResults) -> list[Asked]:
    """The prompting cells that are done by model and template, those before tuning first."""
    cells = study.having(PromptingResult)
    above = set().union(*(ancestors(study, c.parents[0]) for c in cells), set())
    found: dict[tuple[bool, str, str], list[CellResult]] = {}
    for cell in cells:
        policy = cell.parents[0]
        key = (policy not in above, family(policy), _of(cell).template)
        found.setdefault(key, []).append(cell)
    return [
        Asked(f"{model}, {template}", not after, some)
        for (after, model, template), some in sorted(found.items(), key=lambda kv: kv[0][0])
    ]


def _said(series: Sequence[Asked]) -> list[str]:
    """A sentence a group of types: every model and template, with as few worked examples as were
    asked."""
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


def section(study: StudyResults) -> Section:
    series = asked(study)
    if not series:
        return Section("Prompting", absent(study.of("prompting", done=False), "prompting cell"))
    said = Paragraph(
        "Right choice: the answer has a higher log-probability a token than every distractor. "
        "Exact match: the greedy completion, up to a newline or EOS, is the answer. Items are of "
        "the test split, worked examples of the training split and of the item's own type."
    )
    blocks: list[Block] = [by_shots(series, "prompting"), said, *_by_group(series)]
    blocks += [*_by_type(series), *_lengths(series), *_samples(series)]
    return Section("Prompting", blocks, _said(series), leads=_leads(series))


def _leads(series: Sequence[Asked]) -> list[Lead]:
    """Right choices of the first group of items by worked examples, a colour a model."""
    group, shots = _groups(series)[0], _shots(series)

    def rate(s: Asked, n: int) -> float:
        return statistics.fmean(row.choice for row in s.rows("groups", group=group, shots=n))

    found = [(s, [n for n in shots if s.rows("groups", group=group, shots=n)]) for s in series]
    best = max(
        series,
        key=lambda s: max(rate(s, n) for n in shots if s.rows("groups", group=group, shots=n)),
    )
    at = max(
        (n for n in shots if best.rows("groups", group=group, shots=n)), key=lambda n: rate(best, n)
    )
    plot = small(
        "lead-prompting",
        [Series(known, [rate(s, n) for n in known], line=True) for s, known in found],
        "worked examples in the prompt",
        "right choices",
        f"Right choices on {group} by worked examples, a colour a model and template.",
    )
    what = f"{best.label}: right choices, {group}"
    return [Lead(what, f"{share(rate(best, at))} with {at} worked examples", plot)]


def _by_group(series: Sequence[Asked]) -> list[Block]:
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
                            f"{statistics.fmean(r.margin for r in found):+.2f}",
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
    said = Paragraph(
        "From, to: over seeds; of one seed, the 95% interval over items. Majority: exact match of "
        "a model that always gives a type's most frequent answer. Margin: of the answer over the "
        "likeliest distractor."
    )
    return [said, Table(head, rows)]


def _by_type(series: Sequence[Asked]) -> list[Block]:
    kinds = list(dict.fromkeys((r.group, r.type) for s in series for r in s.rows("types")))
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
    said = Paragraph("Right choices, in brackets exact matches; means over seeds.")
    head = ("items", "type", "shots", "chance", *labels)
    return [Heading("By type"), said, Table(head, rows)] if rows else []


def _lengths(series: Sequence[Asked]) -> list[Block]:
    """How long the prompts are, where some are longer than a training row."""
    rows, seen = [], 0
    for s in series:
        found = _of(s.cells[0])
        seen = found.seen
        rows += [
            (s.label, shots, f"{t.mean:.0f}", t.longest)
            for shots, t in found.tokens.items()
            if t.longest > seen
        ]
    if not rows:
        return []
    said = Paragraph(
        f"Rows of training have {seen} tokens, so the end of a longer prompt stands at positions "
        f"that the model has not been trained at:"
    )
    return [said, Table(("model, template", "shots", "tokens on average", "longest"), rows)]


def _samples(series: Sequence[Asked]) -> list[Block]:
    """The first items of each type with what each model says, without worked examples if that was
    asked."""
    shots = min(_shots(series))
    said: dict[tuple[str, str, str, str], dict[str, str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for s in series:
        for row in _of(s.cells[0]).shown:
            key = (row.group, row.type, row.text, row.answer)
            if row.shots != shots:
                continue
            if key not in said:
                counts[key[:2]] = counts.get(key[:2], 0) + 1
                if counts[key[:2]] > SAMPLES:
                    continue
            said.setdefault(key, {})[s.label] = row.completion
    rows = [
        (group, kind, text, answer, *(found.get(s.label, "-") or "(nothing)" for s in series))
        for (group, kind, text, answer), found in said.items()
    ]
    labels = [f"{s.label}, {s.cells[0].name}" if len(s.cells) > 1 else s.label for s in series]
    head = ("items", "type", "asked", "answer", *labels)
    free = tuple(range(2, len(head)))
    title = Heading(f"Completions, {shots} shots", quotes=True)
    return [title, Table(head, rows, free, quotes=True)] if rows else []


def _shots(series: Sequence[Asked]) -> list[int]:
    return sorted({n for s in series for c in s.cells for n in _of(c).shots})


def _groups(series: Sequence[Asked]) -> list[str]:
    return list(dict.fromkeys(row.group for s in series for row in s.rows("groups")))


def _when(s: Asked, series: Sequence[Asked]) -> str:
    """Before or after, if there is something to compare."""
    if not any(other.before for other in series):
        return ""
    return "before" if s.before else "after"


def _rate(rows: Sequence[Rates], key: str) -> str:
    return share(statistics.fmean(getattr(row, key) for row in rows)) if rows else "-"


def _spread(rows: Sequence[Rates], key: str) -> str:
    if len(rows) == 1:
        return interval(getattr(rows[0], f"{key}_interval"), form=share)
    values = [getattr(row, key) for row in rows]
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
            known = [
                getattr(row, FLOORS[key]) for s in series for row in s.rows("groups", group=group)
            ]
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
        points = sorted((row.shots, getattr(row, key)) for row in alone)
        ax.plot([shots.index(n) for n, _ in points], [y for _, y in points], linewidth=0.7, **style)
        rows += [(s.label, when, cell.name, group, key, *point) for point in points]
        for n, y in points:
            at.setdefault(n, []).append(y)
    means = [(shots.index(n), statistics.fmean(ys)) for n, ys in sorted(at.items())]
    label = f"{when}: {s.label}" if when else s.label
    ax.plot(*zip(*means, strict=True), linewidth=2, marker="o", markersize=4, label=label, **style)
    return rows
