"""How the report shows reward models: accuracy, where it comes from, calibration, and scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_jax.kinds.reward.plots import calibration, reward_curves, reward_scaling
from rlhf_jax.kinds.reward.result import RewardReport, RewardResult
from rlhf_jax.report.blocks import (
    Block,
    Heading,
    Lead,
    Section,
    absent,
    columns,
    interval,
    number,
    reference,
    share,
)
from rlhf_jax.report.families import Proxy, family, proxy
from rlhf_jax.report.lead import Series, small
from rlhf_jax.report.rankings import accuracies, notes
from rlhf_jax.report.study_results import CellResult, StudyResults
from rlhf_jax.report.style import Plot, count

CEILING = "gold score (label ceiling)"
IN_WORDS = 6  # reward models that the summary names one by one


def section(study: StudyResults) -> Section:
    cells = study.having(RewardResult)
    if not cells:
        return Section("Reward model", absent(study.of("reward", done=False), "reward model"))
    proxies = [proxy(study, cell) for cell in cells]
    blocks = [
        calibration(cells, "reward-calibration"),
        accuracies(study, cells),
        *notes(cells),
        *_scaling(cells, proxies),
        reward_curves(cells, "reward-curves"),
        *_part(
            cells,
            "margin",
            "gold margin (middle)",
            lambda r: r.accuracy_by_margin,
            lambda part: number(part.middle),
        ),
        *_part(
            cells,
            "which completion is longer",
            "the better one is",
            lambda r: r.accuracy_by_length,
            lambda part: part.winner,
        ),
        *_part(
            cells,
            "difference in rank",
            "ranks apart",
            lambda r: r.accuracy_by_rank_difference,
            lambda part: str(part.ranks),
        ),
    ]
    return Section("Reward model", blocks, _said(cells), leads=[_lead(cells, proxies)])


def _part(
    cells: list[CellResult],
    title: str,
    first: str,
    parts: Callable[[RewardReport], tuple[Any, ...]],
    name: Callable[[Any], str],
) -> list[Block]:
    """A table of one of the reports' breakdowns."""
    found = columns(
        [(c, part) for c in cells for part in parts(c.result.report)],
        ("cell", lambda of: reference(of[0])),
        (first, lambda of: name(of[1])),
        ("accuracy", lambda of: share(of[1].accuracy)),
        ("pairs", lambda of: number(of[1].n)),
    )
    return [Heading(f"Accuracy by {title}"), found] if found else []


def _said(cells: list[CellResult]) -> list[str]:
    """One sentence a reward model; one for all where there are many."""
    if len(cells) > IN_WORDS:
        ordered = sorted(cells, key=lambda c: c.result.report.accuracy)
        worst, best = (
            f"{share(c.result.report.accuracy)} ({c.name})" for c in (ordered[0], ordered[-1])
        )
        return [f"{len(cells)} reward models rank held-out pairs right, from {worst} to {best}."]
    return [
        f"{c.name}: {share(c.result.report.accuracy)} of {number(c.result.report.n_pairs)} "
        "held-out pairs ranked right."
        for c in cells
    ]


def _lead(cells: list[CellResult], proxies: list[Proxy]) -> Lead:
    """Accuracy against labels, where these differ; else of every model."""
    best = max((c.result.report for c in cells), key=lambda r: r.accuracy)
    said = f"{share(best.accuracy)} {interval(best.accuracy_interval, form=share)}"
    what = "Reward model: held-out accuracy" + (f", best of {len(cells)}" if len(cells) > 1 else "")
    by_size: dict[int, list[tuple[int, float]]] = {}
    for known in proxies:
        if known.params and known.labels and known.accuracy is not None:
            by_size.setdefault(known.params, []).append((known.labels, known.accuracy))
    if len({labels for some in by_size.values() for labels, _ in some}) < 2:
        return Lead(what, said, _by_margin(best))
    plot = small(
        "lead-reward",
        [
            Series([n for n, _ in some], [accuracy for _, accuracy in some], label=count(size))
            for size, some in sorted(by_size.items())
        ],
        "labelled prompts",
        "held-out accuracy",
        "Held-out accuracy of every reward model by labels, a colour a size.",
        x_form=count,
        level=0.5,
    )
    return Lead(what, said, plot)


def _by_margin(report: RewardReport) -> Plot | None:
    """Accuracy by gold margin of one report."""
    parts = report.accuracy_by_margin
    return small(
        "lead-reward",
        [Series([p.middle for p in parts], [p.accuracy for p in parts])],
        "gold margin of the pair",
        "held-out accuracy",
        "Held-out accuracy of the reward model by the gold margin of a pair; dotted: chance.",
        level=0.5,
    )


def _scaling(cells: list[CellResult], proxies: list[Proxy]) -> list[Block]:
    """Accuracy against labels and size, where these differ."""
    ceilings = [v for c in cells if (v := c.result.report.baselines.get(CEILING)) is not None]
    ceiling = sum(ceilings) / len(ceilings) if ceilings else None
    plot = reward_scaling(proxies, ceiling, "reward-scaling")
    if plot is None:
        return []
    by_family: dict[str, list[Proxy]] = {}
    for known in proxies:
        by_family.setdefault(family(known.name), []).append(known)
    accuracy = {
        n: [p.accuracy for p in some if p.accuracy is not None] for n, some in by_family.items()
    }
    found = columns(
        [(name, some[0], accuracy[name]) for name, some in by_family.items()],
        ("reward model", lambda of: of[0]),
        ("params", lambda of: count(of[1].params)),
        ("labelled prompts", lambda of: number(of[1].labels)),
        ("seeds", lambda of: len(of[2])),
        ("mean accuracy", lambda of: share(sum(of[2]) / len(of[2]))),
        ("range", lambda of: f"{share(min(of[2]))} to {share(max(of[2]))}"),
    )
    return [Heading("Size and labels"), plot, found]
