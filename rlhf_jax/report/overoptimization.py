"""Over-optimization of a study's proxies: curves by proxy, the fits to them, and the report's
section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.evals.best_of_n import kl_bound, powers_of_two
from rlhf_jax.kinds.best_of_n.result import BestOfNResult
from rlhf_jax.laws.overoptimization import FORMULAS, Curve, Form, of_iterations
from rlhf_jax.laws.points import FitError
from rlhf_jax.report import plots_overoptimization as plots
from rlhf_jax.report.blocks import (
    Block,
    Lead,
    Paragraph,
    Section,
    columns,
    fixed,
    interval,
    number,
    share,
)
from rlhf_jax.report.families import Proxy, climbs_a_reward, family, proxy_of
from rlhf_jax.report.lead import Series, small
from rlhf_jax.report.study_results import (
    Analysed,
    CellResult,
    StudyResults,
    is_number,
    result_class,
)
from rlhf_jax.report.style import count
from rlhf_jax.study.results import as_json

GOLD_AND_KL = ("kl", "reward_gold")
IN_WORDS = 6  # fits that the summary names one by one
TITLES: dict[Form, str] = {"best_of_n": "best-of-n", "rl": "PPO"}


@dataclass(frozen=True)
class Group:
    """Cells of one kind against seeds of one proxy."""

    name: str  # a file stem, unique among the analysis's
    proxy: str
    form: Form
    cells: list[CellResult]
    proxies: list[Proxy]

    @property
    def known(self) -> Proxy:
        """The proxies as one: what they agree on, and their mean accuracy."""
        accuracies = [p.accuracy for p in self.proxies if p.accuracy is not None]
        params, labels = {p.params for p in self.proxies}, {p.labels for p in self.proxies}
        return Proxy(
            self.proxy,
            params.pop() if len(params) == 1 else None,
            labels.pop() if len(labels) == 1 else None,
            sum(accuracies) / len(accuracies) if accuracies else None,
        )


def groups(study: StudyResults, analysis: Analysed) -> list[Group]:
    """The finished cells of an analysis, by form and proxy, in the order of the study."""
    found: dict[tuple[Form, str], list[tuple[CellResult, Proxy]]] = {}
    for cell in analysis.cells:
        form: Form = "best_of_n" if result_class(cell.kind) is BestOfNResult else "rl"
        if cell.done and (form == "best_of_n" or climbs_a_reward(cell.kind)):
            proxy = proxy_of(study, cell)
            found.setdefault((form, family(proxy.name)), []).append((cell, proxy))
    made = []
    for (form, name), members in found.items():
        stem = "".join(c if c.isalnum() else "-" for c in f"{form}-{name}")
        cells, proxies = map(list, zip(*members, strict=True))
        made.append(Group(stem, name, form, cells, list({p.name: p for p in proxies}.values())))  # type: ignore[arg-type]
    return made


def gold_curve(cell: CellResult) -> Curve:
    """Gold score against sqrt(KL) of a cell.

    Raises:
      FitError: the cell's result or its metrics lack what the curve is made of.
    """
    if not _sampled(cell):
        logged = cell.column("kl", "reward_gold")
        if not logged:
            raise FitError(f"{cell.name} has logged no KL and gold score")
        kl, gold = zip(*logged, strict=True)
        return of_iterations(cell.name, kl, gold)
    found = cell.result.best_of_n
    gold_PM = np.array(found.gold_by_prompt, float).T
    if not gold_PM.size:
        raise FitError(f"{cell.name} has no gold_by_prompt in its result; run it again")
    d_M = np.sqrt([kl_bound(n) for n in powers_of_two(found.n)])
    return Curve(cell.name, np.tile(d_M, (len(gold_PM), 1)), gold_PM)


def inputs(group: Group) -> list[Any]:
    """What a group's fit is made from, for telling whether it has changed."""
    return [
        [c.run_id, as_json(c.result.best_of_n.curve) if _sampled(c) else c.column(*GOLD_AND_KL)]
        for c in group.cells
    ]


def sentence(proxy: str, form: str, fit: dict[str, Any]) -> str:
    """A fit in words."""
    head = f"{TITLES[form]} against {proxy}"  # type: ignore[index]
    if fit["refused"]:
        return f"{head}: {fit['refused']}."
    peak, ends = fit["peak"], fit["intervals"]
    said = (
        f"{head}: the gold score peaks at sqrt(KL) = {peak['d']:.2f} "
        f"{interval(ends['peak_d'], 2)}, {peak['gain']:+.3f} above the start "
        f"{interval(ends['peak_gain'], 3)}"
    )
    return said + (f", beyond the data (to {fit['d_max']:.2f})." if peak["beyond"] else ".")


def section(study: StudyResults, analysis: Analysed, fits: Mapping[str, dict[str, Any]]) -> Section:
    """Table and figures of an analysis. fits: by the name of the group."""
    found = groups(study, analysis)
    waiting = "; ".join(f"{c.name}: {c.state}" for c in analysis.cells if not c.done)
    late = [Paragraph(f"Left out: {waiting}.", "muted")] if waiting else []
    heading = analysis.titled("Over-optimization")
    if not found:
        none = Paragraph("No best-of-n or PPO cell of this analysis is done yet.", "muted")
        return Section(heading, [*late, none], anchor=analysis.name)
    said = (
        "With d the square root of the KL from the initial policy in nats, the gold score less its "
        f"value at d = 0 is {FORMULAS['best_of_n']} for best-of-n and {FORMULAS['rl']} for RL (Gao "
        "et al. 2022). Extrapolation: fitted to the first 75% of the range of d, the root mean "
        "square error on the rest, and that of the guess that the score stays where it was last."
    )
    drawn = []
    for form, name in TITLES.items():
        some = [g for g in found if g.form == form]
        facets = [plots.Facet(_title(g), [_points(c) for c in g.cells], fits[g.name]) for g in some]
        drawn.append(plots.curves(facets, name, f"{analysis.name}-{form.replace('_', '-')}"))
    refused = [
        Paragraph(sentence(g.proxy, g.form, fits[g.name]), "refused")
        for g in found
        if fits[g.name]["refused"]
    ]
    notes = dict.fromkeys(f"{TITLES[g.form]}: {n}." for g in found for n in fits[g.name]["notes"])
    muted = [Paragraph(n, "muted") for n in notes]
    blocks: list[Block] = [
        *drawn,
        Paragraph(said),
        _parameters(found, fits),
        *refused,
        *late,
        *muted,
    ]
    known = [(g.proxy, g.form, fits[g.name]) for g in found]
    lead = _lead(found, fits)
    return Section(
        heading,
        blocks,
        _said(known),
        [p.text for p in refused],
        [lead] if lead else [],
        analysis.name,
    )


def _parameters(found: list[Group], fits: Mapping[str, dict[str, Any]]) -> Block:
    """A row a group: what the proxy is, its fit, and how that extrapolates."""

    def ahead(fit: dict[str, Any]) -> str:
        scored = fit["extrapolation"]
        if not is_number(scored.get("rms_error")):
            return str(scored.get("refused", "-"))
        return f"{fixed(scored['rms_error'])} ({fixed(scored['last_rms_error'])})"

    def ends(fit: dict[str, Any], key: str) -> str:
        return interval(fit["intervals"].get(key), 3)

    def peak(fit: dict[str, Any], key: str) -> Any:
        return fit["peak"][key] if fit["peak"] else None

    return columns(
        [(g, g.known, fits[g.name]) for g in found],
        ("proxy", lambda of: of[0].proxy),
        ("optimised by", lambda of: TITLES[of[0].form]),
        ("cells", lambda of: len(of[0].cells)),
        ("params", lambda of: count(of[1].params)),
        ("labels", lambda of: number(of[1].labels)),
        ("accuracy", lambda of: share(of[1].accuracy)),
        ("alpha", lambda of: fixed(of[2]["alpha"])),
        ("95%", lambda of: ends(of[2], "alpha")),
        ("beta", lambda of: fixed(of[2]["beta"])),
        ("95%", lambda of: ends(of[2], "beta")),
        ("peak d", lambda of: fixed(peak(of[2], "d"), 2)),
        ("peak gain", lambda of: fixed(peak(of[2], "gain"))),
        ("extrapolation (last)", lambda of: ahead(of[2])),
        text=(0,),
    )


def _said(found: list[tuple[str, Form, dict[str, Any]]]) -> list[str]:
    """One sentence a fit that shows a peak; how many do, where there are many."""
    shown = [one for one in found if one[2]["peak"]]
    if len(found) <= IN_WORDS:
        return [sentence(*one) for one in shown]
    return [
        f"{len(shown)} of {len(found)} fits show over-optimization.",
        *(sentence(*one) for one in shown[:IN_WORDS]),
    ]


def _lead(found: list[Group], fits: Mapping[str, dict[str, Any]]) -> Lead | None:
    """Gold and proxy gain of the group whose gold score peaks highest."""
    peaks = {g.name: fits[g.name]["peak"]["gain"] for g in found if fits[g.name]["peak"]}
    if not peaks:
        return None
    best = max((g for g in found if g.name in peaks), key=lambda g: peaks[g.name])
    fit = fits[best.name]
    band = fit["band"]
    seen = [_points(c) for c in best.cells]
    plot = small(
        "lead-overoptimization",
        [
            Series(band["d"], band["gain"], band["low"], band["high"], True, "fit to gold"),
            Series(
                np.concatenate([s.d for s in seen]).tolist(),
                np.concatenate([plots.gains(fit, s)[0] for s in seen]).tolist(),
                label="gold",
            ),
        ],
        "sqrt(KL)",
        "gain",
        f"Gain in gold score against sqrt(KL) under {TITLES[best.form]} against {best.proxy}.",
    )
    said = f"{peaks[best.name]:+.3f} {interval(fit['intervals']['peak_gain'], 3)}"
    what = f"Highest peak of the gold score ({TITLES[best.form]}, {best.proxy})"
    return Lead(what, f"{said} at sqrt(KL) {fit['peak']['d']:.2f}", plot)


def _title(group: Group) -> str:
    known = group.known
    parts = [
        count(known.params) if known.params else "",
        f"{known.labels:,} labels" if known.labels else "",
    ]
    said = ", ".join(filter(None, parts))
    return f"{group.proxy}\n{said}" if said else group.proxy


def _sampled(cell: CellResult) -> bool:
    return isinstance(cell.result, BestOfNResult)


def _points(cell: CellResult) -> plots.Seen:
    """What is drawn of a cell: d, gold and proxy scores."""
    if _sampled(cell):
        rows = [(best.kl**0.5, best.gold, best.proxy) for best in cell.result.best_of_n.curve]
        return plots.Seen(cell.name, *np.array(rows, float).reshape(-1, 3).T)
    logged = np.array(cell.column("kl", "reward_gold", "reward_proxy"), float).reshape(-1, 3)
    return plots.Seen(cell.name, np.sqrt(np.maximum(logged[:, 0], 0)), *logged[:, 1:].T)
