"""The report's sections on policies while they are optimised: PPO, DPO, and rounds of feedback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_jax.report import plots_policies
from rlhf_jax.report.families import ancestors, evaluated, result, rounds
from rlhf_jax.report.markup import absent, cell_link, fixed, number, paragraph, share, table
from rlhf_jax.report.study_results import CellResult, StudyResults, is_number
from rlhf_jax.report.style import Plot

Draw = Callable[[Plot | None], str]
# Metric and what is shown of it: the largest, or the last.
HEALTH = (
    ("max_ratio_error", max),
    ("max_logprob_gap", max),
    ("approx_kl", max),
    ("clip_frac", max),
    ("explained_variance", None),
    ("value_loss", None),
    ("stop_rate", None),
    ("kl_coef", None),
)


def ppo(study: StudyResults, draw: Draw) -> str:
    cells = study.of("ppo")
    if not cells:
        return absent(study, "ppo", "PPO cell")
    rows = []
    for cell in cells:
        last = []
        for key, _ in plots_policies.PPO_PANELS:
            values = [v for (v,) in cell.column(key)]
            last.append(f"{fixed(values[0])} → {fixed(values[-1])}" if values else "-")
        how = str(cell.config.get("algorithm", "ppo"))
        rows.append((cell_link(cell), how, number(cell.config.get("seed")), *last))
    titles = ("gold", "reward model", "KL", "entropy", "distinct-2", "length")
    body = paragraph("First and last iteration of every seed.")
    body += table(("cell", "algorithm", "seed", *titles), rows)
    body += draw(plots_policies.ppo_curves(cells, "ppo-curves"))
    return body + _health(cells)


def _health(cells: list[CellResult]) -> str:
    shown = [(key, of) for key, of in HEALTH if any(c.column(key) for c in cells)]
    if not shown:
        return ""
    rows: list[tuple[Any, ...]] = []
    for cell in cells:
        values = [[v for (v,) in cell.column(key)] for key, _ in shown]
        rows.append(
            (
                cell_link(cell),
                *(
                    number((of or _last)(v), 3) if v else "-"
                    for v, (_, of) in zip(values, shown, strict=True)
                ),
            )
        )
    body = "<h3>Health</h3>" + paragraph(
        "Before the first optimizer step of an iteration the ratio of new to old policy must be 1: "
        "max_ratio_error is its largest departure."
    )
    body += table(("cell", *(f"{key}, {'greatest' if of else 'last'}" for key, of in shown)), rows)
    found = [
        (cell_link(c), name, str(said))
        for c in cells
        for name, said in (result(c, "ppo").get("diagnoses") or {}).items()
    ]
    return body + (table(("cell", "diagnosis", "what was seen"), found, (2,)) if found else "")


def _last(values: list[float]) -> float:
    return values[-1]


def dpo(study: StudyResults) -> str:
    """A row a DPO cell: how well the implicit reward ranks held-out pairs."""
    rows = []
    for cell in study.of("dpo"):
        found = result(cell, "dpo")
        rows.append(
            (
                cell_link(cell),
                str(cell.config.get("loss", "dpo")),
                number(cell.config.get("beta")),
                number(cell.config.get("seed")),
                number(found.get("prompts")),
                fixed(found.get("loss")),
                share(found.get("accuracy")),
                fixed(found.get("margin")),
                fixed(found.get("chosen_log_ratio"), 2),
                fixed(found.get("rejected_log_ratio"), 2),
                fixed(cell.heldout.get("loss")),
            )
        )
    head = (
        "cell",
        "loss",
        "beta",
        "seed",
        "prompts",
        "held-out loss",
        "accuracy",
        "margin",
        "ln ratio, chosen",
        "ln ratio, rejected",
        "language loss",
    )
    body = paragraph(
        "Accuracy and margin are of the implicit reward, beta ln(policy / reference), on held-out "
        "comparisons."
    )
    return body + table(head, rows)


def by_round(study: StudyResults, draw: Draw) -> str:
    """Gold, proxy and KL of policies by round; empty where there is only one round."""
    steps = round_steps(study)
    if max((s.round for s in steps), default=0) < 2:
        return ""
    rows = [
        (
            s.round,
            s.cell,
            fixed(s.values.get("gold")),
            fixed(s.values.get("proxy")),
            fixed(s.values.get("kl"), 2),
        )
        for s in sorted(steps, key=lambda s: s.round)
    ]
    body = paragraph(
        "A policy's round is how many policies optimised against feedback it comes from, itself "
        "included."
    )
    body += draw(plots_policies.rounds(steps, "rounds"))
    return body + table(("round", "policy", "gold", "proxy", "KL"), rows, (1,))


def round_steps(study: StudyResults) -> list[plots_policies.Step]:
    """The policies of every round as their evaluations saw them; as PPO's last iteration did where
    no policy is evaluated."""
    of = rounds(study)
    seen: dict[str, dict[str, Any]] = {}
    for cell in study.of("evaluate"):
        after, e = evaluated(cell), result(cell, "evaluation")
        if after in of and after is not None:
            seen.setdefault(
                after,
                {"gold": e.get("gold_after"), "proxy": e.get("proxy_after"), "kl": e.get("kl")},
            )
    if not seen:
        for cell in study.of("ppo"):
            logged = cell.column("reward_gold", "reward_proxy", "kl")
            if logged:
                seen[cell.name] = dict(zip(("gold", "proxy", "kl"), logged[-1], strict=True))
    steps = []
    for name, values in seen.items():
        known = {k: v for k, v in values.items() if is_number(v)}
        earlier = [a for a in ancestors(study, name) if a in seen and of[a] == of[name] - 1]
        policy = study.cell(name)
        seed = str(policy.config.get("seed", "")) if policy else ""
        steps.append(
            plots_policies.Step(name, seed, of[name], known, earlier[0] if earlier else None)
        )
    return steps
