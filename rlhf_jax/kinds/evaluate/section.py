"""How the report shows policies before and after, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy.stats import t as student

from rlhf_jax.kinds.evaluate import plots
from rlhf_jax.kinds.evaluate.result import EvaluateResult, Evaluation
from rlhf_jax.report.blocks import (
    Block,
    Heading,
    Lead,
    Paragraph,
    Section,
    Table,
    absent,
    change,
    columns,
    fixed,
    interval,
    number,
    reference,
    share,
)
from rlhf_jax.report.families import by_family
from rlhf_jax.report.lead import Series, small
from rlhf_jax.report.study_results import CellResult, StudyResults

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
LIMIT = (
    "The gold reward is a rule that stands in for people. Samples shown are the first of those "
    "that the evaluation's seed chose, not a selection."
)


def section(study: StudyResults) -> Section:
    cells = study.having(EvaluateResult)
    if not cells:
        return Section("Evaluation", absent(study.of("evaluate", done=False), "evaluation"))
    found = [(c, _of(c)) for c in cells]
    prompts = sorted({number(e.n_prompts) for _, e in found})
    warmth = sorted({number(e.temperature) for _, e in found})
    said = (
        f"{' or '.join(prompts)} held-out prompts at temperature {' or '.join(warmth)}. Intervals "
        "are 95%, over prompts, paired."
    )
    shown = cells if len(cells) <= IN_FULL else [some[0] for some in by_family(cells).values()]
    few = "Samples and next tokens are of the first evaluation of each family."
    blocks = [
        plots.gains(cells, "gains"),
        Paragraph(said),
        _rewards(found),
        *_seeds(cells),
        plots.before_after(cells, "before-after"),
        *_at_equal_length(found),
        *_diversity(found),
        *_modes(cells),
        *_text(cells),
        Paragraph(few) if len(shown) < len(cells) else None,
        *(block for c in shown for block in (*_samples(c), *_next_words(c))),
    ]
    return Section("Evaluation", blocks, _said(cells), [LIMIT], [_lead(cells)])


def _of(cell: CellResult) -> Evaluation:
    evaluation: Evaluation = cell.result.evaluation
    return evaluation


def _said(cells: Sequence[CellResult]) -> list[str]:
    """One sentence an evaluation, or a family of many, and one for all."""
    if len(cells) <= IN_FULL:
        lines = [
            f"{c.name}: gold reward {fixed(e.before.gold)} to {fixed(e.after.gold)}, gain "
            f"{e.gain:+.3f} {interval(e.gain_interval, 3)}; wins {share(e.win_rate)} "
            f"{interval(e.win_rate_interval, 3)} of {number(e.n_prompts)} prompts, at "
            f"{fixed(e.kl, 2)} nats of KL."
            for c in cells
            for e in [_of(c)]
        ]
    else:
        lines = [
            f"{family}: gain {_mean([_of(c).gain for c in some])}."
            for family, some in by_family(cells).items()
        ]
    gains = [_of(c).gain for c in cells]
    if len(gains) > 1:
        lines.append(
            f"Over {len(gains)} evaluations the gain is {sum(gains) / len(gains):+.3f} on average, "
            f"from {min(gains):+.3f} to {max(gains):+.3f}."
        )
    return lines


def _mean(values: list[float]) -> str:
    """A mean over seeds in words."""
    if len(values) == 1:
        return f"{values[0]:+.3f}"
    mean, ends = over_seeds(values)
    return f"{mean:+.3f} {interval(ends, 3)} over {len(values)} seeds"


def over_seeds(values: list[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean over seeds and Student's 95% interval; None for one seed."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, None
    half = float(student.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return mean, (mean - half, mean + half)


def _lead(cells: list[CellResult]) -> Lead:
    """Gain against KL of every evaluation; its number is of the family with the highest mean."""
    families = by_family(cells)
    best = max(families, key=lambda name: statistics.fmean(_of(c).gain for c in families[name]))
    some = [_of(c) for c in families[best]]
    kl = statistics.fmean(e.kl for e in some)
    if len(some) == 1:
        said = f"{some[0].gain:+.3f} {interval(some[0].gain_interval, 3)}"
    else:
        mean, ends = over_seeds([e.gain for e in some])
        said = f"{mean:+.3f} {interval(ends, 3)}"
    found = [_of(c) for c in cells]
    plot = small(
        "lead-gain",
        [
            Series(
                [e.kl for e in found],
                [e.gain for e in found],
                [e.gain_interval[0] for e in found],
                [e.gain_interval[1] for e in found],
            )
        ],
        "KL from the policy before (nats)",
        "gain in gold reward",
        "Gain in gold reward of every evaluation against KL; bars are 95% over prompts.",
        level=0.0,
        from_zero=True,
    )
    seeds = f", {len(some)} seeds" if len(some) > 1 else ""
    name = best if len(families) > 1 else "Policy"
    return Lead(f"{name}: gain in gold reward{seeds}", f"{said} at {kl:.3g} nats", plot)


Found = tuple[CellResult, Evaluation]


def _rewards(found: list[Found]) -> Table | None:
    return columns(
        found,
        ("evaluation", lambda of: reference(of[0])),
        ("gold before", lambda of: fixed(of[1].before.gold)),
        ("after", lambda of: fixed(of[1].after.gold)),
        ("gain", lambda of: fixed(of[1].gain)),
        ("95%", lambda of: interval(of[1].gain_interval, 3)),
        ("win rate", lambda of: share(of[1].win_rate)),
        ("95%", lambda of: interval(of[1].win_rate_interval, 3)),
        ("proxy before", lambda of: fixed(of[1].before.proxy)),
        ("after", lambda of: fixed(of[1].after.proxy)),
        ("KL (nats)", lambda of: fixed(of[1].kl, 2)),
        ("95%", lambda of: interval(of[1].kl_interval, 2)),
    )


def _at_equal_length(found: list[Found]) -> list[Block]:
    said = (
        "With the length of responses held equal: the intercept of a linear regression of gains, "
        "and of a logistic regression of wins (Dubois et al. 2024), on the difference in length."
    )
    table = columns(
        found,
        ("evaluation", lambda of: reference(of[0])),
        ("gain", lambda of: fixed(of[1].gain)),
        ("at equal length", lambda of: fixed(of[1].gain_at_equal_length)),
        ("95%", lambda of: interval(of[1].gain_at_equal_length_interval, 3)),
        ("win rate", lambda of: share(of[1].win_rate)),
        ("length-controlled", lambda of: share(of[1].win_rate_length_controlled)),
        ("95%", lambda of: interval(of[1].win_rate_length_controlled_interval, 3)),
        ("length before", lambda of: fixed(of[1].before.length, 1)),
        ("after", lambda of: fixed(of[1].after.length, 1)),
    )
    return [Heading("At equal length"), Paragraph(said), table]


def _seeds(cells: Sequence[CellResult]) -> list[Block]:
    """Mean over seeds of every family that has several."""
    several = {f: [_of(c).gain for c in some] for f, some in by_family(cells).items()}
    found = columns(
        [(f, gains, *over_seeds(gains)) for f, gains in several.items() if len(gains) > 1],
        ("family", lambda of: of[0]),
        ("seeds", lambda of: len(of[1])),
        ("mean gain", lambda of: f"{of[2]:+.3f}"),
        ("95% over seeds", lambda of: interval(of[3], 3)),
        ("standard deviation", lambda of: fixed(statistics.stdev(of[1]))),
        ("every seed's gain", lambda of: ", ".join(f"{g:+.3f}" for g in of[1])),
        text=(5,),
    )
    return [Heading("Over seeds"), found] if found else []


def _diversity(found: list[Found]) -> list[Block]:
    said = (
        "Before → after. Entropy: nats a token. Distinct-n: different n-grams over all n-grams. "
        "Similarity: bigrams that two responses share (Dice), to different prompts and to the same "
        "prompt."
    )

    def changed(e: Evaluation, key: str) -> str:
        return change(getattr(e.before, key), getattr(e.after, key))

    table = columns(
        found,
        ("evaluation", lambda of: reference(of[0])),
        *((label, lambda of, key=key: changed(of[1], key)) for key, label in DIVERSITY),
    )
    return [Heading("Diversity"), Paragraph(said), table]


def _modes(cells: list[CellResult]) -> list[Block]:
    found = columns(
        [(c, m, m.before, m.after) for c in cells if (m := _of(c).modes)],
        ("evaluation", lambda of: reference(of[0])),
        ("modes seen", lambda of: len(of[1].names)),
        ("kept", lambda of: change(of[2].kept, of[3].kept, str)),
        ("entropy (nats)", lambda of: change(of[2].entropy, of[3].entropy)),
        ("in none", lambda of: change(of[2].none, of[3].none, share)),
        ("total variation", lambda of: fixed(of[1].total_variation)),
        (
            "shares",
            lambda of: "; ".join(
                f"{n}: {change(of[2].shares[n], of[3].shares[n], share)}" for n in of[1].names[:12]
            ),
        ),
        text=(6,),
    )
    said = (
        "Modes of a known distribution, before → after. A mode is kept where at least 1% of all "
        "responses are in it; the entropy is over the responses that are in a mode."
    )
    if not found:
        return []
    return [Heading("Modes"), Paragraph(said), plots.modes(cells, "modes"), found]


def _text(cells: list[CellResult]) -> list[Block]:
    """Held-out text: perplexity, the alignment tax, calibration."""
    table = columns(
        [(c, e, e.tax) for c in cells for e in [_of(c)]],
        ("evaluation", lambda of: reference(of[0])),
        ("perplexity before", lambda of: fixed(of[1].before.perplexity, 2)),
        ("after", lambda of: fixed(of[1].after.perplexity, 2)),
        ("tax (nats/token)", lambda of: fixed(of[2].nats_per_token, 4)),
        ("95%", lambda of: interval(of[2].nats_per_token_interval, 4)),
        ("tax (bits/byte)", lambda of: fixed(of[2].bits_per_byte, 4)),
        ("95%", lambda of: interval(of[2].bits_per_byte_interval, 4)),
        (
            "calibration error before",
            lambda of: fixed(of[1].before.calibration.expected_calibration_error),
        ),
        ("after", lambda of: fixed(of[1].after.calibration.expected_calibration_error)),
    )
    said = (
        "The alignment tax is what the policy lost on the corpus's held-out text; its intervals "
        "are over rows of it. Calibration error: of the probability of the likeliest next token "
        "(Guo et al. 2017)."
    )
    plot = plots.next_word_calibration(cells, "next-word-calibration")
    return [Heading("Held-out text"), Paragraph(said), table, plot]


def _samples(cell: CellResult) -> list[Block]:
    rows = [
        (s.prompt, s.before, s.after, fixed(s.gold_before, 2), fixed(s.gold_after, 2))
        for s in _of(cell).samples[:SHOWN]
    ]
    head = ("prompt", "before", "after", "gold before", "gold after")
    table = Table(head, rows, (0, 1, 2), quotes=True)
    return [Heading(f"Samples ({cell.name})", quotes=True), table] if rows else []


def _next_words(cell: CellResult) -> list[Block]:
    """The most likely next tokens of a few prompts, before and after."""
    found = _of(cell).next_words
    if not found:
        return []

    def words(side: str, prompt: str) -> str:
        return ", ".join(f"{word!r} {p:.1%}" for word, p in found[side].get(prompt, ()))

    rows = [(f"{p} …", words("before", p), words("after", p)) for p in found["before"]]
    head = ("prompt", "most likely next, before", "after")
    table = Table(head, rows, (0, 1, 2), quotes=True)
    return [Heading(f"Next tokens ({cell.name})", quotes=True), table]
