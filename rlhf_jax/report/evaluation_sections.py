"""The report's section on policies before and after, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from html import escape
from typing import Any

from scipy.stats import t as student

from rlhf_jax.report import plots_policies
from rlhf_jax.report.families import by_family, result
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
from rlhf_jax.report.style import Plot

Draw = Callable[[Plot | None], str]
SHOWN = 8  # samples of an evaluation
IN_FULL = 8  # evaluations that have a headline and samples each; of more, each family's first
DIVERSITY = (
    ("entropy", "entropy"),
    ("distinct_1", "distinct-1"),
    ("distinct_2", "distinct-2"),
    ("similarity", "similarity"),
    ("similarity_same_prompt", "same prompt"),
    ("length", "length"),
    ("stop_rate", "stop rate"),
)


def headlines(study: StudyResults) -> list[str]:
    """One sentence an evaluation, or a family of many, and one for all."""
    cells = [c for c in study.of("evaluate") if is_number(result(c, "evaluation").get("gain"))]
    lines = []
    if len(cells) <= IN_FULL:
        for cell in cells:
            e = cell.results["evaluation"]
            lines.append(
                f"{cell.name}: gold reward {fixed(e.get('gold_before'))} to "
                f"{fixed(e.get('gold_after'))}, gain {e['gain']:+.3f} "
                f"{interval(e.get('gain_interval'), 3)}; wins {share(e.get('win_rate'))} "
                f"{interval(e.get('win_rate_interval'), 3)} of {number(e.get('n_prompts'))} "
                f"prompts, at {fixed(e.get('kl'), 2)} nats of KL."
            )
    else:
        for family, some in by_family(cells).items():
            found = [c.results["evaluation"]["gain"] for c in some]
            lines.append(f"{family}: gain {_over(found)}.")
    gains = [c.results["evaluation"]["gain"] for c in cells]
    if len(gains) > 1:
        lines.append(
            f"Over {len(gains)} evaluations the gain is {sum(gains) / len(gains):+.3f} on average, "
            f"from {min(gains):+.3f} to {max(gains):+.3f}."
        )
    return lines


def _over(values: list[float]) -> str:
    """A mean over seeds in words."""
    if len(values) == 1:
        return f"{values[0]:+.3f}"
    ends = interval(over_seeds(values)[1], 3)
    return f"{statistics.fmean(values):+.3f} {ends} over {len(values)} seeds"


def over_seeds(values: list[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean over seeds and Student's 95% interval; None for one seed."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, None
    half = float(student.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return mean, (mean - half, mean + half)


def evaluation(study: StudyResults, draw: Draw) -> str:
    cells = [c for c in study.of("evaluate") if result(c, "evaluation")]
    if not cells:
        return absent(study, "evaluate", "evaluation")
    asked = {number(result(c, "evaluation").get("n_prompts")) for c in cells}
    warmth = {number(result(c, "evaluation").get("temperature")) for c in cells}
    body = paragraph(
        f"{' or '.join(sorted(asked))} held-out prompts at temperature "
        f"{' or '.join(sorted(warmth))}. Intervals are 95%, over prompts, paired."
    )
    body += _rewards(cells) + draw(plots_policies.gains(cells, "gains")) + _seeds(cells)
    body += draw(plots_policies.before_after(cells, "before-after")) + _at_equal_length(cells)
    body += _diversity(cells) + _modes(cells, draw) + _text(cells, draw)
    shown = cells if len(cells) <= IN_FULL else [some[0] for some in by_family(cells).values()]
    if len(shown) < len(cells):
        body += paragraph("Samples and next tokens are of the first evaluation of each family.")
    return body + "".join(_samples(cell) + _next_words(cell) for cell in shown)


def _rewards(cells: list[CellResult]) -> str:
    rows = []
    for cell in cells:
        e = result(cell, "evaluation")
        rows.append(
            (
                cell_link(cell),
                fixed(e.get("gold_before")),
                fixed(e.get("gold_after")),
                fixed(e.get("gain")),
                interval(e.get("gain_interval"), 3),
                share(e.get("win_rate")),
                interval(e.get("win_rate_interval"), 3),
                fixed(e.get("proxy_before")),
                fixed(e.get("proxy_after")),
                fixed(e.get("kl"), 2),
                interval(e.get("kl_interval"), 2),
            )
        )
    head = (
        "evaluation",
        "gold before",
        "after",
        "gain",
        "95%",
        "win rate",
        "95%",
        "proxy before",
        "after",
        "KL (nats)",
        "95%",
    )
    return table(head, rows)


def _at_equal_length(cells: list[CellResult]) -> str:
    rows = []
    for cell in cells:
        e = result(cell, "evaluation")
        if is_number(e.get("win_rate_length_controlled")):
            rows.append(
                (
                    cell_link(cell),
                    fixed(e.get("gain")),
                    fixed(e.get("gain_at_equal_length")),
                    interval(e.get("gain_at_equal_length_interval"), 3),
                    share(e.get("win_rate")),
                    share(e["win_rate_length_controlled"]),
                    interval(e.get("win_rate_length_controlled_interval"), 3),
                    fixed(e.get("length_before"), 1),
                    fixed(e.get("length_after"), 1),
                )
            )
    if not rows:
        return ""
    head = (
        "evaluation",
        "gain",
        "at equal length",
        "95%",
        "win rate",
        "length-controlled",
        "95%",
        "length before",
        "after",
    )
    said = paragraph(
        "With the length of responses held equal: the intercept of a linear regression of gains, "
        "and of a logistic regression of wins (Dubois et al. 2024), on the difference in length."
    )
    return "<h3>At equal length</h3>" + said + table(head, rows)


def _seeds(cells: list[CellResult]) -> str:
    """Mean over seeds of every family that has several."""
    rows = []
    for family, some in by_family(cells).items():
        found = [e["gain"] for c in some if is_number((e := result(c, "evaluation")).get("gain"))]
        if len(found) > 1:
            mean, ends = over_seeds(found)
            listed = ", ".join(f"{g:+.3f}" for g in found)
            rows.append(
                (
                    family,
                    len(found),
                    f"{mean:+.3f}",
                    interval(ends, 3),
                    fixed(statistics.stdev(found)),
                    listed,
                )
            )
    if not rows:
        return ""
    head = (
        "family",
        "seeds",
        "mean gain",
        "95% over seeds",
        "standard deviation",
        "every seed's gain",
    )
    return "<h3>Over seeds</h3>" + table(head, rows, (5,))


def _diversity(cells: list[CellResult]) -> str:
    keys = [
        (key, label)
        for key, label in DIVERSITY
        if any(is_number(result(c, "evaluation").get(f"{key}_after")) for c in cells)
    ]
    if not keys:
        return ""
    rows = []
    for cell in cells:
        e = result(cell, "evaluation")
        changes = [f"{fixed(e.get(f'{k}_before'))} → {fixed(e.get(f'{k}_after'))}" for k, _ in keys]
        rows.append((cell_link(cell), *changes))
    body = "<h3>Diversity</h3>" + paragraph(
        "Before → after. Entropy: nats a token. Distinct-n: different n-grams over all n-grams. "
        "Similarity: bigrams that two responses share (Dice), to different prompts and to the same "
        "prompt."
    )
    return body + table(("evaluation", *(label for _, label in keys)), rows)


def _modes(cells: list[CellResult], draw: Draw) -> str:
    rows = []
    for cell in cells:
        found = result(cell, "evaluation").get("modes")
        if isinstance(found, dict):
            before, after = found["before"], found["after"]
            rows.append(
                (
                    cell_link(cell),
                    len(found["names"]),
                    f"{before['kept']} → {after['kept']}",
                    f"{fixed(before['entropy'])} → {fixed(after['entropy'])}",
                    f"{share(before['none'])} → {share(after['none'])}",
                    fixed(found["total_variation"]),
                    "; ".join(
                        f"{n}: {share(before['shares'][n])} → {share(after['shares'][n])}"
                        for n in found["names"][:12]
                    ),
                )
            )
    if not rows:
        return ""
    body = "<h3>Modes</h3>" + paragraph(
        "Modes of a known distribution, before → after. A mode is kept where at least 1% of all "
        "responses are in it; the entropy is over the responses that are in a mode."
    )
    head = (
        "evaluation",
        "modes seen",
        "kept",
        "entropy (nats)",
        "in none",
        "total variation",
        "shares",
    )
    return body + draw(plots_policies.modes(cells, "modes")) + table(head, rows, (6,))


def _text(cells: list[CellResult], draw: Draw) -> str:
    """Held-out text: perplexity, the alignment tax, calibration."""
    rows = []
    for cell in cells:
        e = result(cell, "evaluation")
        if not is_number(e.get("perplexity_after")):
            continue
        tax = e.get("tax") or {}
        errors = [
            (e.get(f"calibration_{s}") or {}).get("expected_calibration_error")
            for s in ("before", "after")
        ]
        rows.append(
            (
                cell_link(cell),
                fixed(e.get("perplexity_before"), 2),
                fixed(e["perplexity_after"], 2),
                fixed(tax.get("nats_per_token"), 4),
                interval(tax.get("nats_per_token_interval"), 4),
                fixed(tax.get("bits_per_byte"), 4),
                interval(tax.get("bits_per_byte_interval"), 4),
                *(fixed(error) for error in errors),
            )
        )
    if not rows:
        return ""
    head = (
        "evaluation",
        "perplexity before",
        "after",
        "tax (nats/token)",
        "95%",
        "tax (bits/byte)",
        "95%",
        "calibration error before",
        "after",
    )
    body = "<h3>Held-out text</h3>" + paragraph(
        "The alignment tax is what the policy lost on the corpus's held-out text; its intervals "
        "are over rows of it. Calibration error: of the probability of the likeliest next token "
        "(Guo et al. 2017)."
    )
    plot = plots_policies.next_word_calibration(cells, "next-word-calibration")
    return body + table(head, rows) + draw(plot)


def _samples(cell: CellResult) -> str:
    samples = result(cell, "evaluation").get("samples")
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
    found: Any = result(cell, "evaluation").get("next_words")
    if not isinstance(found, dict) or not {"before", "after"} <= set(found):
        return ""

    def words(side: str, prompt: str) -> str:
        return ", ".join(f"{word!r} {p:.1%}" for word, p in found[side].get(prompt, []))

    rows = [(f"{p} …", words("before", p), words("after", p)) for p in found["before"]]
    head = ("prompt", "most likely next, before", "after")
    return f"<h3>Next tokens ({escape(cell.name)})</h3>" + table(head, rows, (0, 1, 2))
