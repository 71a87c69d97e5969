"""Sections of the report about reward models, PPO and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from rlhf_jax.report import plots_rlhf
from rlhf_jax.report.markup import cell_link, fixed, interval, number, paragraph, table
from rlhf_jax.report.study_results import CellResult, StudyResults, is_number
from rlhf_jax.report.style import Plot

Draw = Callable[[Plot | None], str]
CHECKS = ("approx_kl", "clip_frac", "max_ratio_error", "max_logprob_gap", "value_loss", "explained_variance", "stop_rate", "kl_coef")  # fmt: skip
SHOWN = 8  # samples of an evaluation


def absent(study: StudyResults, kind: str, what: str) -> str:
    """Why a section is empty: the study has no such cell, or they are not done."""
    waiting = study.of(kind, done=False)
    waiting = [cell for cell in waiting if not cell.done]
    if not waiting:
        return paragraph(f"This study has no {what}.", "muted")
    said = "; ".join(f"{cell.name}: {cell.state}" for cell in waiting)
    return paragraph(f"No {what} is done yet ({said}).", "muted")


def headlines(study: StudyResults) -> list[str]:
    """One sentence a reward model and an evaluation."""
    lines = []
    for cell in study.of("reward"):
        report = cell.results.get("report") or {}
        if is_number(report.get("accuracy")):
            n = report.get("n_pairs")
            lines.append(
                f"{cell.name}: {report['accuracy']:.1%} of {number(n)} held-out pairs ranked right."
            )
    for cell in study.of("evaluate"):
        e = cell.results.get("evaluation") or {}
        if is_number(e.get("gain")):
            lines.append(
                f"{cell.name}: gold reward {fixed(e.get('gold_before'))} to {fixed(e.get('gold_after'))}, "
                f"gain {e['gain']:+.3f} {interval(e.get('gain_interval'), 3)}; wins "
                f"{_share(e.get('win_rate'))} {interval(e.get('win_rate_interval'), 3)} of "
                f"{number(e.get('n_prompts'))} prompts, at {fixed(e.get('kl'), 2)} nats of KL."
            )
    results = [c.results.get("evaluation") or {} for c in study.of("evaluate")]
    gains = [e["gain"] for e in results if is_number(e.get("gain"))]
    if len(gains) > 1:
        lines.append(
            f"Over {len(gains)} evaluations the gain is {sum(gains) / len(gains):+.3f} on average, from "
            f"{min(gains):+.3f} to {max(gains):+.3f}."
        )
    return lines


def reward(study: StudyResults, draw: Draw) -> str:
    cells = study.of("reward")
    if not cells:
        return absent(study, "reward", "reward model")
    rows = []
    for cell in cells:
        report = cell.results.get("report") or {}
        rows.append(
            (
                cell_link(cell),
                "this model",
                _share(report.get("accuracy")),
                interval(report.get("accuracy_interval"), 3),
                number(report.get("n_pairs")),
            )
        )
        baselines = report.get("baselines")
        for name, value in baselines.items() if isinstance(baselines, dict) else ():
            rows.append((cell_link(cell), name, _share(value), "", number(report.get("n_pairs"))))
    body = table(("cell", "ranker", "accuracy", "95%", "held-out pairs"), rows)
    body += draw(plots_rlhf.reward_curves(cells, "reward-curves"))
    points = [(cell_link(c), number(p[0]), _share(p[1]), number(p[2]))
              for c in cells for p in plots_rlhf.margins(c.results.get("report") or {})]  # fmt: skip
    if points:
        body += "<h3>Accuracy by margin</h3>"
        body += table(("cell", "gold margin (middle)", "accuracy", "pairs"), points)
    lengths = [(cell_link(c), str(x.get("winner")), _share(x.get("accuracy")), number(x.get("n")))
            for c in cells for x in (c.results.get("report") or {}).get("accuracy_by_length") or []]  # fmt: skip
    if lengths:
        body += "<h3>Accuracy by which completion is longer</h3>"
        body += table(("cell", "the better one is", "accuracy", "pairs"), lengths)
    return body + draw(plots_rlhf.calibration(cells, "reward-calibration"))


def ppo(study: StudyResults, draw: Draw) -> str:
    cells = study.of("ppo")
    if not cells:
        return absent(study, "ppo", "PPO cell")
    rows = []
    for cell in cells:
        last = []
        for key, _ in plots_rlhf.PPO_PANELS:
            values = [v for (v,) in cell.column(key)]
            last.append(f"{fixed(values[0])} → {fixed(values[-1])}" if values else "-")
        rows.append((cell_link(cell), number(cell.config.get("seed")), *last))
    titles = ("gold", "reward model", "KL", "entropy", "distinct-2", "length")
    body = paragraph("First and last iteration of every seed.")
    body += table(("cell", "seed", *titles), rows) + draw(
        plots_rlhf.ppo_curves(cells, "ppo-curves")
    )
    rows = []
    for cell in cells:
        for key in CHECKS:
            values = [v for (v,) in cell.column(key)]
            if values:
                rows.append(
                    (
                        cell_link(cell),
                        key,
                        number(min(values)),
                        number(max(values)),
                        number(values[-1]),
                    )
                )
    if rows:
        body += "<h3>Health</h3>"
        body += paragraph(
            "Before the first optimizer step of an iteration the ratio of new to old policy must be 1: "
            "max_ratio_error is its largest departure."
        )
        body += table(("cell", "metric", "least", "greatest", "last"), rows)
    return body


def evaluation(study: StudyResults, draw: Draw) -> str:
    cells = [c for c in study.of("evaluate") if isinstance(c.results.get("evaluation"), dict)]
    if not cells:
        return absent(study, "evaluate", "evaluation")
    rows = []
    for cell in cells:
        e = cell.results["evaluation"]
        rows += [
            (
                cell_link(cell),
                "gold reward",
                fixed(e.get("gold_before")),
                fixed(e.get("gold_after")),
                "",
            ),
            (
                cell_link(cell),
                "gain",
                "",
                fixed(e.get("gain")),
                interval(e.get("gain_interval"), 3),
            ),
            (
                cell_link(cell),
                "win rate",
                "",
                _share(e.get("win_rate")),
                interval(e.get("win_rate_interval"), 3),
            ),
            (
                cell_link(cell),
                "KL (nats/sequence)",
                "",
                fixed(e.get("kl")),
                interval(e.get("kl_interval"), 3),
            ),
        ]
        for key in ("proxy", "entropy", "distinct_1", "distinct_2", "length", "perplexity"):
            before, after = e.get(f"{key}_before"), e.get(f"{key}_after")
            if is_number(before) or is_number(after):
                rows.append(
                    (cell_link(cell), key.replace("_", "-"), fixed(before), fixed(after), "")
                )
    body = table(("evaluation", "quantity", "before", "after", "95% interval"), rows)
    for cell in cells:
        e = cell.results["evaluation"]
        body += paragraph(
            f"{cell.name}: {number(e.get('n_prompts'))} held-out prompts at temperature "
            f"{number(e.get('temperature'))}; seed {number(cell.config.get('seed'))}."
        )
    body += draw(plots_rlhf.before_after(cells, "before-after"))
    return body + "".join(_samples(cell) + _next_words(cell) for cell in cells)


def _samples(cell: CellResult) -> str:
    samples = cell.results["evaluation"].get("samples")
    samples = [s for s in samples if isinstance(s, dict)] if isinstance(samples, list) else []
    if not samples:
        return ""
    rows = [
        (
            *(str(s.get(k, "")) for k in ("prompt", "before", "after")),
            fixed(s.get("gold_before"), 2),
            fixed(s.get("gold_after"), 2),
        )
        for s in samples[:SHOWN]
    ]
    head = ("prompt", "before", "after", "gold before", "gold after")
    return f"<h3>Samples ({escape(cell.name)})</h3>" + table(head, rows, (0, 1, 2))


def _next_words(cell: CellResult) -> str:
    """The most likely next tokens of a few prompts, before and after."""
    found = cell.results["evaluation"].get("next_words")
    if not isinstance(found, dict) or not {"before", "after"} <= set(found):
        return ""

    def words(side: str, prompt: str) -> str:
        return ", ".join(f"{word!r} {p:.1%}" for word, p in found[side].get(prompt, []))

    rows = [(f"{p} …", words("before", p), words("after", p)) for p in found["before"]]
    head = ("prompt", "most likely next, before", "after")
    return f"<h3>Next tokens ({escape(cell.name)})</h3>" + table(head, rows, (0, 1, 2))


def scalars(results: dict[str, Any]) -> list[tuple[str, float]]:
    """Top-level numbers of results files, as (file.key, value)."""
    return [
        (f"{stem}.{key}", value)
        for stem, content in results.items()
        if isinstance(content, dict)
        for key, value in content.items()
        if is_number(value)
    ]


def _share(value: Any) -> str:
    return f"{value:.1%}" if is_number(value) else "-"
