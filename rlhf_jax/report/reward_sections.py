"""The report's section on reward models and ensembles of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_jax.report import plots_overoptimization, plots_rewards
from rlhf_jax.report.families import family, proxy, result
from rlhf_jax.report.markup import (
    absent,
    cell_link,
    fixed,
    interval,
    number,
    paragraph,
    share,
    table,
)
from rlhf_jax.report.study_results import CellResult, StudyResults, is_number
from rlhf_jax.report.style import Plot, count

Draw = Callable[[Plot | None], str]
CEILING = "gold score (label ceiling)"
IN_WORDS = 6  # reward models that the summary names one by one


def headlines(study: StudyResults) -> list[str]:
    """One sentence a reward model; one for all where there are many."""
    cells = [c for c in study.of("reward") if is_number(result(c, "report").get("accuracy"))]
    if len(cells) > IN_WORDS:
        ordered = sorted(cells, key=lambda c: c.results["report"]["accuracy"])
        ends = [
            f"{c.results['report']['accuracy']:.1%} ({c.name})" for c in (ordered[0], ordered[-1])
        ]
        return [
            f"{len(cells)} reward models rank held-out pairs right, from {ends[0]} to {ends[1]}."
        ]
    return [
        f"{c.name}: {c.results['report']['accuracy']:.1%} of "
        f"{number(c.results['report'].get('n_pairs'))} held-out pairs ranked right."
        for c in cells
    ]


def reward(study: StudyResults, draw: Draw) -> str:
    """Accuracy, baselines, training curves, where accuracy comes from, calibration, and scaling."""
    cells = study.of("reward")
    if not cells:
        return absent(study, "reward", "reward model")
    body = _accuracies(study, cells + study.of("ensemble"))
    for cell in cells + study.of("ensemble"):
        for note in result(cell, "report").get("notes") or []:
            body += paragraph(f"{cell.name}: {note}.")
    body += _scaling(study, cells, draw)
    body += draw(plots_rewards.reward_curves(cells, "reward-curves"))
    for key, title, first, column in (
        ("accuracy_by_margin", "Accuracy by margin", "gold margin (middle)", None),
        (
            "accuracy_by_length",
            "Accuracy by which completion is longer",
            "the better one is",
            "winner",
        ),
        ("accuracy_by_rank_difference", "Accuracy by difference in rank", "ranks apart", "ranks"),
    ):
        body += _broken_down(cells, key, title, first, column)
    return body + draw(plots_rewards.calibration(cells, "reward-calibration"))


def _accuracies(study: StudyResults, cells: list[CellResult]) -> str:
    baselines = list(dict.fromkeys(name for c in cells for name in _baselines(c)))
    rows = []
    for cell in cells:
        report, known = result(cell, "report"), proxy(study, cell)
        members = report.get("members")
        error = (report.get("calibration") or {}).get("expected_calibration_error")
        rows.append(
            (
                cell_link(cell),
                count(known.params),
                number(known.labels),
                share(report.get("accuracy")),
                interval(report.get("accuracy_interval"), 3),
                number(report.get("n_pairs")),
                fixed(error),
                *(share(_baselines(cell).get(name)) for name in baselines),
                ", ".join(map(share, members.values())) if isinstance(members, dict) else "",
            )
        )
    head = (
        "cell",
        "params",
        "labelled prompts",
        "accuracy",
        "95%",
        "held-out pairs",
        "calibration error",
        *baselines,
        "members",
    )
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return table(head, rows)


def _baselines(cell: CellResult) -> dict[str, Any]:
    found = result(cell, "report").get("baselines")
    return found if isinstance(found, dict) else {}


def _broken_down(
    cells: list[CellResult], key: str, title: str, first: str, column: str | None
) -> str:
    """A table of one of the reports' breakdowns. column: what names a row; None: a margin."""
    rows = []
    for cell in cells:
        report = result(cell, "report")
        found: list[tuple[str, Any, Any]]
        if column is None:
            found = [(number(p[0]), p[1], p[2]) for p in plots_rewards.margins(report)]
        else:
            parts = [x for x in report.get(key) or [] if isinstance(x, dict)]
            found = [(str(x.get(column)), x.get("accuracy"), x.get("n")) for x in parts]
        rows += [(cell_link(cell), name, share(accuracy), number(n)) for name, accuracy, n in found]
    if not rows:
        return ""
    return f"<h3>{title}</h3>" + table(("cell", first, "accuracy", "pairs"), rows)


def _scaling(study: StudyResults, cells: list[CellResult], draw: Draw) -> str:
    """Accuracy against labels and size, where these differ."""
    proxies = [proxy(study, cell) for cell in cells]
    ceilings = [v for c in cells if is_number(v := _baselines(c).get(CEILING))]
    ceiling = sum(ceilings) / len(ceilings) if ceilings else None
    plot = plots_overoptimization.reward_scaling(proxies, ceiling, "reward-scaling")
    if plot is None:
        return ""
    by_family: dict[str, list[Any]] = {}
    for known in proxies:
        if known.accuracy is not None:
            by_family.setdefault(family(known.name), []).append(known)
    rows = []
    for name, some in by_family.items():
        accuracies = [p.accuracy for p in some]
        rows.append(
            (
                name,
                count(some[0].params),
                number(some[0].labels),
                len(some),
                share(sum(accuracies) / len(some)),
                f"{share(min(accuracies))} to {share(max(accuracies))}",
            )
        )
    head = ("reward model", "params", "labelled prompts", "seeds", "mean accuracy", "range")
    return "<h3>Size and labels</h3>" + draw(plot) + table(head, rows)
