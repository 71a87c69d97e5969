"""The command line of `rlhf-jax fit`. No jax, and at import no numpy or scipy."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rlhf_jax.study.config import ConfigError, argument
from rlhf_jax.study.messages import suggest
from rlhf_jax.study.ranges import Range

if TYPE_CHECKING:
    from rlhf_jax.laws.curves import Curve
    from rlhf_jax.laws.points import Points
    from rlhf_jax.report.study_results import Analysed, StudyResults

APPROACHES = ("1", "2", "3", "all")
WINDOW = Annotated[float, Range(1, above=True, advice="a factor, such as 4; or none")]


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "source",
        metavar="TABLE_OR_STUDY",
        help="a table of runs (.csv, .tsv, .md, .jsonl, .json, .parquet, also .gz); a study "
        "file; or a folder RUNS/studies/NAME",
    )
    p.add_argument("overrides", metavar="key=value", nargs="*", help="of a study file, as in `run`")
    p.add_argument(
        "--columns",
        nargs="+",
        metavar="ROLE=NAME",
        default=[],
        help="of a table whose names say too little: loss=NAME and two of params=NAME, "
        "tokens=NAME, flops=NAME; the third is computed by C = 6 N D. NAME*1e6 is a "
        "column in millions",
    )
    p.add_argument(
        "--approach",
        choices=APPROACHES,
        default=None,
        help="of Hoffmann 2022: 1 envelope, 2 IsoFLOP minima, 3 parametric loss (default: all)",
    )
    p.add_argument(
        "--law",
        metavar="NAME",
        help="another law instead, or MODULE:CLASS; an unknown name lists them",
    )
    p.add_argument(
        "--analysis",
        metavar="NAME",
        help="of a study: this isoflop analysis (default: the only one)",
    )
    p.add_argument(
        "--window",
        metavar="FACTOR|none",
        type=_window,
        help="of approach 2: a budget's runs further than this factor from its best size are "
        "left out of its parabola (default: 4); none: every run counts, as in the papers",
    )
    p.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="of the bootstrap; 0: no intervals"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--tiny", action="store_true", help="of a study file: its small form")
    p.add_argument("--runs", metavar="DIR", default="runs", help="root of all run folders")
    p.add_argument("--json", action="store_true")
    p.add_argument(
        "--plot",
        type=Path,
        metavar="DIR",
        help="also draw the fits there: .svg figures, each with its data as .csv",
    )


def _window(text: str) -> float:
    return math.inf if text.strip().casefold() == "none" else argument(WINDOW)(text)


@dataclass(frozen=True)
class Source:
    """What is fitted: final losses, and where an analysis reads losses elsewhere, those too.

    Attributes:
      points: final losses. where: file and sha256, or study and analysis.
      equal: losses at equal compute, for approach 2, if not the final ones.
      curves: training curves at a constant rate, for approach 1.
      window: of approach 2, where the command says none.
    """

    points: Points
    where: dict[str, str]
    equal: Points | None = None
    curves: list[Curve] = field(default_factory=list)
    window: float | None = None


def command(args: argparse.Namespace) -> int:
    """Returns 0.

    Raises:
      ConfigError: what was given cannot be read, or nothing can be fitted to it.
    """
    from rlhf_jax.laws.approaches import check_numbers
    from rlhf_jax.laws.points import FitError

    if args.law is not None and args.approach:
        raise ConfigError("--law and --approach are two ways to choose the fit; give one of them")
    if args.window and (args.law is not None or args.approach in ("1", "3")):
        raise ConfigError("--window is of approach 2 alone; leave it out, or give --approach 2")
    pairs = [text for text in args.columns if "=" in text.strip("=")]
    if len(pairs) < len(args.columns):
        wrong = next(text for text in args.columns if text not in pairs)
        raise ConfigError(f"--columns {wrong!r} is not ROLE=NAME, for instance loss=val_loss")
    roles = [text.partition("=")[0] for text in args.columns]
    if twice := [role for role in roles if roles.count(role) > 1]:
        raise ConfigError(f"--columns names {twice[0]} twice; give it once")
    if args.plot and args.plot.exists() and not args.plot.is_dir():
        raise ConfigError(f"--plot {args.plot} is a file; give a folder")
    source = None
    try:
        check_numbers(args.resamples, args.seed)
        source = _read(args)
        fits = _fit(source, args)
        if args.plot:
            _draw(fits, args.plot)
    except OSError as e:
        raise ConfigError(f"{e.filename or args.source}: {e.strerror or e}") from None
    except FitError as e:
        out = [note for note in source.points.notes if "left out" in note] if source else []
        raise ConfigError("\n".join([str(e), *out])) from None
    if args.json:
        one = len(fits) == 1
        print(json.dumps(source.where | (fits[0] if one else {"fits": fits}), indent=1))
        return 0
    from rlhf_jax.report import terminal as tables

    said = source.points.notes  # of the table, once
    for note in said:
        print(f"Note: {note}")
    for fit in fits:
        name = fit.get("law") or f"approach {fit['approach']}"
        own = [note for note in fit["notes"] if note not in said]
        tables.print_fit(f"{args.source}: {name}, {fit['n']} runs", fit | {"notes": own})
    return 0


def _draw(fits: list[dict[str, Any]], folder: Path) -> None:
    """The figures that the report of a study has, of these fits."""
    from rlhf_jax.report import plots_laws, plots_scaling

    by_approach = {fit["approach"]: fit for fit in fits if "approach" in fit}
    drawn = (
        (1, plots_laws.envelope, "envelope"),
        (2, plots_scaling.isoflop, "parabolas"),
        (3, plots_scaling.residuals, "residuals"),
        (3, plots_laws.extrapolation, "extrapolation"),
    )
    plots = [draw(by_approach[k], name) for k, draw, name in drawn if k in by_approach]
    plots.append(plots_scaling.frontier(by_approach, "frontier"))
    plots += [plots_laws.law(fit, fit["law"].replace(":", "-")) for fit in fits if "law" in fit]
    for plot in plots:
        if plot is not None:
            plot.write(folder)
            print(f"Figure: {folder / plot.name}.svg", file=sys.stderr)


def _fit(source: Source, args: argparse.Namespace) -> list[dict[str, Any]]:
    from rlhf_jax.laws.approaches import fit_curves, fit_points
    from rlhf_jax.laws.isoflop import WIDE
    from rlhf_jax.laws.points import FitError

    points = source.points
    if args.law is not None:
        from rlhf_jax.laws.named import fit_named

        sys.path.insert(0, "")  # MODULE:CLASS beside the table, whatever the command's name
        fit = fit_named(args.law, points, args.resamples, args.seed)
        out = [{"label": label, "reason": reason} for label, reason in points.left_out]
        return [{**fit, "left_out": out, "points": points.rows()}]

    def fitted(approach: int) -> dict[str, Any]:
        if approach == 1 and source.curves:
            return fit_curves(source.curves, 0.0, args.resamples, args.seed)
        table = source.equal if approach == 2 and source.equal else points
        window = args.window or source.window or WIDE
        return fit_points(table, approach, args.resamples, args.seed, window)

    if args.approach not in (None, "all"):
        return [fitted(int(args.approach))]
    fits = []
    for approach in (1, 2, 3):
        try:
            fits.append(fitted(approach))
        except FitError as e:
            fits.append(
                {
                    "approach": approach,
                    "n": len(points),
                    "refused": str(e),
                    "notes": list(points.notes),
                    "points": points.rows(),
                    "left_out": [{"label": a, "reason": b} for a, b in points.left_out],
                }
            )
    if all(fit["refused"] for fit in fits):
        refusals = "\n".join(f"  approach {fit['approach']}: {fit['refused']}" for fit in fits)
        runs = f"these {len(points)} runs" if len(points) > 1 else "one run"
        raise FitError(f"no approach can be fitted to {runs}:\n{refusals}")
    return fits


def _read(args: argparse.Namespace) -> Source:
    from rlhf_jax.laws.approaches import source
    from rlhf_jax.laws.points import read_table

    path = Path(args.source)
    if path.suffix == ".py" or path.is_dir():
        if args.columns:
            raise ConfigError("--columns is for tables; a study's runs say what they are")
        return _read_study(args)
    if not path.is_file():
        raise ConfigError(f"no file {path}")
    for given, option in (
        (args.overrides, "key=value"),
        (args.tiny, "--tiny"),
        (args.analysis, "--analysis"),
    ):
        if given or given == "":
            raise ConfigError(f"{option} is for studies; {path.name} is a table")
    columns = dict(text.split("=", 1) for text in args.columns)
    return Source(read_table(path, columns), source(path))


def _open_study(args: argparse.Namespace) -> StudyResults:
    from rlhf_jax.report.study_results import read_study

    folder, root = Path(args.source), Path(args.source).resolve().parent.parent
    if folder.suffix == ".py":
        from rlhf_jax.study import load_study
        from rlhf_jax.study.runs import Runs, claim_study

        runs = Runs(args.runs)
        loaded = load_study(args.source, args.tiny, args.overrides)
        claim_study(loaded, runs, args.source, {})  # not another file's study of that name
        folder, root = runs.study(loaded), runs.root
        if not (folder / "study.json").is_file():
            again = f"rlhf-jax run {args.source}" + (" --tiny" if args.tiny else "")
            raise ConfigError(f"{args.source} has not been run in {args.runs}; first: {again}")
    return read_study(folder, root)


def _read_study(args: argparse.Namespace) -> Source:
    """The finished cells of a study's isoflop analysis; without one, all that it pretrained."""
    from rlhf_jax.laws.curves import at_equal_compute, joined
    from rlhf_jax.report.study_results import sweep_points, sweep_table, training_curves

    study = _open_study(args)
    analyses = {analysis.name: analysis for analysis in study.analyses("isoflop")}
    if not analyses:
        return _all_pretrained(study, args.analysis)
    if args.analysis is not None and args.analysis not in analyses:
        raise ConfigError(
            f"no isoflop analysis {args.analysis!r}.{suggest(args.analysis, list(analyses))}"
        )
    if len(analyses) > 1 and args.analysis is None:
        raise ConfigError(
            f"several isoflop analyses: choose with --analysis {' | '.join(analyses)}"
        )
    chosen = analyses[args.analysis or next(iter(analyses))]
    where = {"study": study.folder.name, "analysis": chosen.name}
    window = math.inf if chosen.window is None else chosen.window
    rows = sweep_table(chosen.cells, chosen.params, chosen.flops)
    if not rows:
        raise ConfigError(
            f"none of the {len(chosen.cells)} cells of {chosen.name} has finished with a held-out "
            "loss yet"
        )
    points = _with_left_out(sweep_points(rows), chosen)
    if chosen.loss == "heldout":
        return Source(points, where, window=window)
    curves = (
        training_curves(chosen.cells, chosen.params, chosen.flops) if chosen.loss == "curve" else []
    )
    equal = _with_left_out(at_equal_compute(curves or joined(points)), chosen)
    return Source(points, where, equal, curves, window)


def _all_pretrained(study: StudyResults, wanted: str | None) -> Source:
    """Of a study without an isoflop analysis."""
    from rlhf_jax.report.study_results import Analysed, sweep_points, sweep_table

    others = ", ".join(f"{a.name} ({len(a.cells)} cells)" for a in study.analyses()) or "no other"
    kinds = Counter(cell.kind for cell in study.cells)
    has = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none"
    said = f"{study.folder.name} has no isoflop analysis; analyses: {others}; cells: {has}"
    if wanted is not None or not kinds["pretrain"]:
        raise ConfigError(f"{said}. Add Analysis('isoflop', ...) of its pretraining cells")
    cells = study.of("pretrain", done=False)
    if not (rows := sweep_table(cells)):
        raise ConfigError(
            f"{said}. None of its {len(cells)} pretrained cells has finished with a held-out loss, "
            f"so there is nothing to fit"
        )
    note = f"{said}. Its pretrained cells are fitted instead"
    points = _with_left_out(sweep_points(rows), Analysed("", "", cells), note)
    return Source(points, {"study": study.folder.name})


def _with_left_out(points: Points, analysis: Analysed, *notes: str) -> Points:
    """Cells that have not finished are named as a table's rows are."""
    out = analysis.left_out
    said = [f"{name} is left out: {state}" for name, state in out]
    return replace(points, left_out=tuple(out), notes=(*notes, *points.notes, *said))
