"""The report's section on rounds of feedback: policies, comparisons of them, and policies again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_jax.kinds.evaluate.result import EvaluateResult
from rlhf_jax.report.blocks import Paragraph, Section, columns, fixed
from rlhf_jax.report.families import ancestors, evaluated, rounds
from rlhf_jax.report.study_results import StudyResults, is_number
from rlhf_jax.report.style import FG, SERIES, Plot, legend_above, panels, render, styled


@dataclass(frozen=True)
class Step:
    """A policy of a round: means of its evaluation, and the policy of the round before, or None."""

    cell: str
    seed: str
    round: int
    values: dict[str, float]
    before: str | None


def section(study: StudyResults) -> Section | None:
    """Gold, proxy and KL of policies by round; None where there is only one round."""
    steps = round_steps(study)
    if max((s.round for s in steps), default=0) < 2:
        return None
    found = columns(
        sorted(steps, key=lambda s: s.round),
        ("round", lambda s: s.round),
        ("policy", lambda s: s.cell),
        ("gold", lambda s: fixed(s.values.get("gold"))),
        ("proxy", lambda s: fixed(s.values.get("proxy"))),
        ("KL", lambda s: fixed(s.values.get("kl"), 2)),
        text=(1,),
    )
    said = Paragraph(
        "A policy's round is how many policies optimised against feedback it comes from, itself "
        "included."
    )
    return Section("Rounds", [said, draw(steps, "rounds"), found], anchor="rounds")


def round_steps(study: StudyResults) -> list[Step]:
    """The policies of every round as their evaluations saw them; as their last iteration did where
    no policy is evaluated."""
    of = rounds(study)
    seen: dict[str, dict[str, float]] = {}
    for cell in study.having(EvaluateResult):
        after, e = evaluated(cell), cell.result.evaluation
        if after in of and after is not None:
            seen.setdefault(after, {"gold": e.after.gold, "proxy": e.after.proxy, "kl": e.kl})
    if not seen:
        for cell in study.cells:
            logged = cell.column("reward_gold", "reward_proxy", "kl") if cell.done else []
            if logged and cell.name in of:
                seen[cell.name] = dict(zip(("gold", "proxy", "kl"), logged[-1], strict=True))
    steps = []
    for name, values in seen.items():
        known = {k: v for k, v in values.items() if is_number(v)}
        earlier = [a for a in ancestors(study, name) if a in seen and of[a] == of[name] - 1]
        policy = study.cell(name)
        seed = str(policy.config.get("seed", "")) if policy else ""
        steps.append(Step(name, seed, of[name], known, earlier[0] if earlier else None))
    return steps


@styled
def draw(steps: Sequence[Step], name: str) -> Plot | None:
    """Gold, proxy and KL by round, every seed; lines follow who descends from whom. Policies of one
    round that no other descends from stand beside the rounds, hollow and out of the mean."""
    keys = [("gold", "gold reward"), ("proxy", "proxy score"), ("kl", "KL from `before` (nats)")]
    keys = [(k, label) for k, label in keys if any(k in s.values for s in steps)]
    if not keys:
        return None
    figure, axes = panels(1, len(keys), width=2.6 * len(keys), height=3.1)
    by_cell = {s.cell: s for s in steps}
    seeds = list(dict.fromkeys(s.seed for s in steps))
    followed = {s.before for s in steps}
    rows = []
    for ax, (key, label) in zip(axes, keys, strict=True):
        at: dict[int, list[float]] = {}
        for step in steps:
            if key not in step.values:
                continue
            colour = SERIES[seeds.index(step.seed) % len(SERIES)]
            last = by_cell.get(step.before or "")
            if last and key in last.values:
                ax.plot(
                    [last.round, step.round],
                    [last.values[key], step.values[key]],
                    color=colour,
                    linewidth=1,
                )
            alone = step.before is None and step.cell not in followed
            x = step.round - 0.15 if alone else step.round
            inside = "none" if alone else colour
            ax.plot(x, step.values[key], "o", color=colour, markerfacecolor=inside, markersize=4)
            if not alone:
                at.setdefault(step.round, []).append(step.values[key])
            rows.append((step.cell, step.round, key, step.values[key]))
        order = sorted(at)
        ax.plot(
            order,
            [np.mean(at[r]) for r in order],
            color=FG,
            linewidth=2,
            linestyle="--",
            label="mean",
        )
        ax.set_title(label)
        ax.set_xlabel("round")
        ax.set_xticks(sorted({s.round for s in steps}))
    legend_above(figure, axes[0])
    return Plot(
        name,
        render(figure, name),
        ("cell", "round", "metric", "value"),
        rows,
        "Rounds of feedback: every seed a colour, dashed the mean over seeds; hollow, policies of "
        "one round alone. Each round's proxy has its own scale.",
    )
