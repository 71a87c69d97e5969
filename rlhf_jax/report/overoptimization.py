"""Over-optimization of a study's proxies: curves by proxy, the fits to them, and the report's
section."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.evals.best_of_n import kl_bound, powers_of_two
from rlhf_jax.laws.overoptimization import FORMULAS, Curve, Form, of_iterations
from rlhf_jax.laws.points import FitError
from rlhf_jax.report import plots_overoptimization as plots
from rlhf_jax.report.families import Proxy, family, proxy_of, result
from rlhf_jax.report.markup import cell_link, fixed, interval, number, paragraph, table
from rlhf_jax.report.study_results import Analysed, CellResult, StudyResults, is_number
from rlhf_jax.report.style import Plot, count

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
    forms: dict[str, Form] = {"best_of_n": "best_of_n", "ppo": "rl"}
    for cell in analysis.cells:
        if cell.done and cell.kind in forms:
            proxy = proxy_of(study, cell)
            found.setdefault((forms[cell.kind], family(proxy.name)), []).append((cell, proxy))
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
    if cell.kind == "ppo":
        logged = cell.column("kl", "reward_gold")
        if not logged:
            raise FitError(f"{cell.name} has logged no KL and gold score")
        kl, gold = zip(*logged, strict=True)
        return of_iterations(cell.name, kl, gold)
    found = result(cell, "best_of_n")
    gold_PM = np.array(found.get("gold_by_prompt") or [], float).T
    if not gold_PM.size:
        raise FitError(f"{cell.name} has no gold_by_prompt in its result; run it again")
    d_M = np.sqrt([kl_bound(n) for n in powers_of_two(found["n"])])
    return Curve(cell.name, np.tile(d_M, (len(gold_PM), 1)), gold_PM)


def inputs(group: Group) -> list[Any]:
    """What a group's fit is made from, for telling whether it has changed."""
    return [
        [c.run_id, c.column("kl", "reward_gold") or result(c, "best_of_n").get("curve")]
        for c in group.cells
    ]


def sentence(proxy: str, form: str, fit: dict[str, Any]) -> str:
    """A fit in words."""
    head = f"{TITLES[form]} against {proxy}"  # type: ignore[index]
    if fit.get("refused"):
        return f"{head}: {fit['refused']}."
    peak, ends = fit["peak"], fit["intervals"]
    said = (
        f"{head}: the gold score peaks at sqrt(KL) = {peak['d']:.2f} "
        f"{interval(ends['peak_d'], 2)}, {peak['gain']:+.3f} above the start "
        f"{interval(ends['peak_gain'], 3)}"
    )
    return said + (f", beyond the data (to {fit['d_max']:.2f})." if peak["beyond"] else ".")


def section(
    study: StudyResults,
    analysis: Analysed,
    fits: dict[str, dict[str, Any]],
    draw: Callable[[Plot | None], str],
) -> str:
    """Table and figures of an analysis. fits: by the name of the group."""
    found = groups(study, analysis)
    waiting = "; ".join(f"{c.name}: {c.state}" for c in analysis.cells if not c.done)
    body = paragraph(f"Left out: {waiting}.", "muted") if waiting else ""
    if not found:
        return body + paragraph("No best-of-n or PPO cell of this analysis is done yet.", "muted")
    body += paragraph(
        "With d the square root of the KL from the initial policy in nats, the gold score less its "
        "value at "
        f"d = 0 is {FORMULAS['best_of_n']} for best-of-n and {FORMULAS['rl']} for RL (Gao et al. "
        f"2022). Extrapolation: fitted to the first 75% of the range of d, the root mean square "
        f"error on the rest, and that of the guess that the score stays where it was last."
    )
    rows = []
    for group in found:
        fit, known = fits.get(group.name, {}), group.known
        ends, ahead = fit.get("intervals") or {}, fit.get("extrapolation") or {}
        peak = fit.get("peak") or {}
        scored = is_number(ahead.get("rms_error"))
        rows.append(
            (
                group.proxy,
                TITLES[group.form],
                len(group.cells),
                count(known.params),
                number(known.labels),
                f"{known.accuracy:.1%}" if known.accuracy is not None else "-",
                fixed(fit.get("alpha")),
                interval(ends.get("alpha"), 3),
                fixed(fit.get("beta")),
                interval(ends.get("beta"), 3),
                fixed(peak.get("d"), 2),
                fixed(peak.get("gain")),
                f"{fixed(ahead['rms_error'])} ({fixed(ahead['last_rms_error'])})"
                if scored
                else ahead.get("refused", "-"),
            )
        )
    body += table(
        (
            "proxy",
            "optimised by",
            "cells",
            "params",
            "labels",
            "accuracy",
            "alpha",
            "95%",
            "beta",
            "95%",
            "peak d",
            "peak gain",
            "extrapolation (last)",
        ),
        rows,
        (0,),
    )
    for group in found:
        fit = fits.get(group.name, {})
        if fit.get("refused"):
            body += paragraph(sentence(group.proxy, group.form, fit), "refused")
    notes = dict.fromkeys(
        f"{TITLES[g.form]}: {n}." for g in found for n in fits[g.name].get("notes", [])
    )
    body += "".join(paragraph(n, "muted") for n in notes)
    for form, title in TITLES.items():
        some = [g for g in found if g.form == form]
        facets = [plots.Facet(_title(g), [_points(c) for c in g.cells], fits[g.name]) for g in some]
        body += draw(plots.curves(facets, title, f"{analysis.name}-{form.replace('_', '-')}"))
    return body


def _title(group: Group) -> str:
    known = group.known
    parts = [
        count(known.params) if known.params else "",
        f"{known.labels:,} labels" if known.labels else "",
    ]
    said = ", ".join(filter(None, parts))
    return f"{group.proxy}\n{said}" if said else group.proxy


def _points(cell: CellResult) -> plots.Seen:
    """What is drawn of a cell: d, gold and proxy scores."""
    if cell.kind == "ppo":
        logged = np.array(cell.column("kl", "reward_gold", "reward_proxy"), float).reshape(-1, 3)
        return plots.Seen(cell.name, np.sqrt(np.maximum(logged[:, 0], 0)), *logged[:, 1:].T)
    curve = [r for r in result(cell, "best_of_n").get("curve", []) if isinstance(r, dict)]
    rows = np.array([(r["kl"] ** 0.5, r["gold"], r["proxy"]) for r in curve], float).reshape(-1, 3)
    return plots.Seen(cell.name, *rows.T)


def headlines(study: StudyResults, fits: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """One sentence a fit; how many show a peak, where there are many."""
    found = [
        (g.proxy, g.form, fits[a.name][g.name])
        for a in study.analyses("overoptimization")
        for g in groups(study, a)
    ]
    if len(found) <= IN_WORDS:
        return [sentence(*one) for one in found]
    shown = [one for one in found if one[2].get("peak")]
    return [
        f"{len(shown)} of {len(found)} fits show over-optimization.",
        *(sentence(*one) for one in shown[:IN_WORDS]),
    ]


def best_of_n(study: StudyResults) -> str:
    """The section on best-of-n cells."""
    rows = []
    for cell in study.of("best_of_n"):
        found = result(cell, "best_of_n")
        curve = found.get("curve") or [{}]
        best = max(curve, key=lambda r: r.get("gold_gain", float("-inf")))
        rows.append(
            (
                cell_link(cell),
                proxy_of(study, cell).name,
                number(found.get("prompts")),
                number(found.get("n")),
                fixed(curve[0].get("gold")),
                fixed(curve[-1].get("gold_gain")),
                interval(curve[-1].get("gold_gain_interval"), 3),
                number(best.get("n")),
                fixed(curve[-1].get("kl"), 2),
                fixed(found.get("distinct"), 2),
                number(found.get("demonstrations")),
            )
        )
    head = (
        "cell",
        "reward",
        "prompts",
        "n",
        "gold of one",
        "gain at n",
        "95%",
        "best n",
        "KL at most",
        "distinct",
        "demonstrations",
    )
    body = paragraph(
        "Gains are of the best of n samples by the reward over one sample, from all subsets of the "
        "samples (unbiased); intervals are over prompts. The KL bound is loose where samples "
        "repeat: `distinct` is the share of different samples of a prompt."
    )
    return body + table(head, rows, (1,))
