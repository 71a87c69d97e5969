"""The commands `rlhf-jax run` and `rlhf-jax plan`, and what they check before anything runs."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from rlhf_jax.laws.grid import grid
from rlhf_jax.placement import launchers, machine
from rlhf_jax.placement.mesh import check_placement, full_mesh
from rlhf_jax.report import terminal
from rlhf_jax.report.cli import build_report
from rlhf_jax.study import command
from rlhf_jax.study.config import ConfigError, argument
from rlhf_jax.study.graph import Study
from rlhf_jax.study.messages import warn
from rlhf_jax.study.plan import StudyPlan, make_plan
from rlhf_jax.study.ranges import Count, Efficiency
from rlhf_jax.study.runs import Runs, claim_study
from rlhf_jax.study.selection import forgotten, needed, without

if TYPE_CHECKING:
    from rlhf_jax.data.corpus import Corpus


def plan_arguments(p: argparse.ArgumentParser) -> None:
    command.add_study(p)
    p.add_argument("--json", action="store_true")
    _add_workers(p)
    _add_placement(p)
    p.add_argument("--hardware", default="h100", help="prices the runs of a sweep (default h100)")
    p.add_argument(
        "--mfu",
        type=argument(Efficiency),
        default=0.4,
        help="at this share of its peak (default 0.4)",
    )


def run_arguments(p: argparse.ArgumentParser) -> None:
    command.add_study(p)
    globs: dict[str, Any] = {"metavar": "GLOB", "nargs": "+", "action": "extend", "default": []}
    p.add_argument("--only", **globs, help="these cells and the unfinished ones that they need")
    p.add_argument(
        "--force", **globs, help="forget these cells and all that start from them, first"
    )
    p.add_argument("--dry-run", action="store_true", help="show the plan; run nothing")
    p.add_argument(
        "--launcher",
        metavar="NAME",
        default="local",
        help="what starts the cells (default local: worker processes of this machine)",
    )
    p.add_argument(
        "--launch",
        metavar="key=value",
        nargs="+",
        action="extend",
        default=[],
        help="options of the launcher; an unknown one lists them",
    )
    _add_workers(p)
    p.add_argument("--wandb", choices=("disabled", "offline", "online"), default="disabled")
    _add_placement(p)
    p.add_argument(
        "--display",
        choices=("auto", "table", "lines", "none"),
        default="auto",
        help="auto: a table on a terminal, lines elsewhere",
    )


def _add_workers(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--workers",
        metavar="N",
        type=argument(Count),
        help="processes (default: one a core; one in all with an accelerator)",
    )
    p.add_argument(
        "--threads",
        metavar="N",
        type=argument(Count),
        help="of each process (default: cores / workers)",
    )


def _add_placement(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        default="",
        help="of each process: data, fsdp and tensor, for instance fsdp=4,tensor=2",
    )
    p.add_argument(
        "--accumulate",
        metavar="N",
        type=argument(Count),
        default=1,
        help="micro-batches of a training step (default 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs what is not done and builds the report. Returns the launch's exit code."""
    _separate(args)
    start = _launcher(args)
    study, runs = command.load(args)
    study.select([*args.only, *args.force])
    if args.dry_run:
        return _dry_run(study, runs, args, start)
    corpus = _prepared(study, runs, args)
    only, reason = _runnable(study, runs, corpus, args)
    launch = _launch(study, runs, corpus.content_hash, args, only)
    again = launch.again
    folder = command.write(study, runs, corpus.content_hash, again, args)
    with launchers.failures_of(args.launcher):
        code: int = start(launch).run()
    if code >= 128:
        return code
    # Folders that other studies share are known by now.
    command.write(study, runs, corpus.content_hash, again, args)
    build_report(folder, runs)
    if reason:
        raise ConfigError(reason)
    return code


def _launch(
    study: Study, runs: Runs, corpus_hash: str, args: argparse.Namespace, only: list[str]
) -> launchers.Launch:
    names = ("tiny", "overrides", "force", "display", "wandb", "mesh", "accumulate")
    return launchers.Launch(
        study,
        args.study,
        runs,
        corpus_hash,
        only=only,
        again=command.again(args.argv),
        **{name: getattr(args, name) for name in names},
    )


def _separate(args: argparse.Namespace) -> None:
    """Overrides may stand after the values of `--only`, `--force` and `--launch`, too. They have a
    `=`, and a dot in front of it, which the name of a launcher's option never has."""
    for given in (args.only, args.force, args.launch):
        for word in list(given):
            key, equals, _ = word.partition("=")
            if equals and (given is not args.launch or "." in key):
                args.overrides.append(word)
                given.remove(word)


def _launcher(args: argparse.Namespace) -> partial[Any]:
    """The launcher that is asked for. `--workers N` means `--launch workers=N`."""
    short = {"workers": args.workers, "threads": args.threads}
    options = args.launch + [f"{name}={n}" for name, n in short.items() if n is not None]
    start = launchers.chosen(args.launcher, options)
    for name in short:
        setattr(args, name, getattr(start.keywords["options"], name, None))
    return start


def _prepared(study: Study, runs: Runs, args: argparse.Namespace) -> Corpus:
    """The corpus, made if it is not there, after all that can be checked without it."""
    from rlhf_jax.data.corpus import prepare

    _check_cells(study, runs, args)
    runs.check(write=True)
    runs.root.mkdir(parents=True, exist_ok=True)
    claim_study(study, runs, args.study, {})
    corpus = prepare(study.corpus, runs.root, lambda text: print(text, flush=True))
    study.check_corpus(corpus.tokens("train"))
    command.restore_kept(study, runs, corpus.content_hash, args)
    return corpus


def _runnable(
    study: Study, runs: Runs, corpus: Corpus, args: argparse.Namespace
) -> tuple[list[str], str]:
    """(globs of the cells to run, why the others cannot run or ""). What needs none of the failing
    cells runs.

    Raises:
      ConfigError: nothing can run.
    """
    names, failing = _would_run(study, runs, args, corpus.content_hash), dict[str, str]()
    _check_data(study, runs, corpus, names, failing)
    if not failing:
        return args.only, ""
    reason = "\n".join(dict.fromkeys(failing.values()))
    only = without(study, names, failing, args.only)
    if not only:
        raise ConfigError(reason)
    warn(f"{reason}\n{', '.join(failing)}: not run for that reason; what needs none of them runs")
    return only, reason


def plan(args: argparse.Namespace) -> int:
    """Prints the cost of every cell, and of the runs of a sweep."""
    study, runs = command.load(args)
    runs_of_sweep = grid(study, args.hardware, args.mfu)
    found, corpus_hash = _make_plan(study, runs, args)
    if args.json:
        print(json.dumps(found.to_json() | {"grid": runs_of_sweep}, indent=1))
        return 0
    if runs_of_sweep:
        terminal.print_grid(runs_of_sweep, args.hardware, args.mfu)
    terminal.print_plan(found, corpus_hash is not None)
    return 0


def _dry_run(study: Study, runs: Runs, args: argparse.Namespace, start: partial[Any]) -> int:
    """Prints the plan, and what the launcher would start."""
    found, corpus_hash = _make_plan(study, runs, args)
    terminal.print_plan(found, corpus_hash is not None)
    with launchers.failures_of(args.launcher):
        print(f"\n{start(_launch(study, runs, corpus_hash or '', args, args.only)).preview()}")
    return 0


def _make_plan(study: Study, runs: Runs, args: argparse.Namespace) -> tuple[StudyPlan, str | None]:
    corpus = command.corpus_of(study, runs, args)
    corpus_hash = corpus.content_hash if corpus else None
    _check_cells(study, runs, args)
    devices = math.prod(full_mesh(args.mesh, machine.devices()).values())
    workers = args.workers or machine.default_workers(devices)
    threads = args.threads or max(1, machine.cores() // workers)
    accelerator = machine.accelerator()
    found = make_plan(study, runs, corpus_hash, workers, threads, accelerator, args.accumulate)
    damaged = [c.name for c in found.cells if c.state == "damaged"]
    if damaged and corpus_hash is not None:
        folders = runs.folders(study, corpus_hash)
        for name in damaged:
            warn(folders[name].state().get("reason", ""))
    _check_data(study, runs, corpus, _left(found, study, args))
    return found, corpus_hash


# --- checks --------------------------------------------------------------------------------------


def _check_cells(study: Study, runs: Runs, args: argparse.Namespace) -> None:
    """What needs no data: where cells are placed (all of them; in a run those that would run), and
    what they ask of each other."""
    from rlhf_jax.data.corpus import find
    from rlhf_jax.kinds.between_cells import check_cells

    names = {c.name for c in study.cells}
    if args.command == "run":
        corpus = find(study.corpus, runs.root)
        names = _would_run(study, runs, args, corpus.content_hash if corpus else None)
    check_placement(study, names, full_mesh(args.mesh, machine.devices()), args.accumulate)
    check_cells(study)


def _check_data(
    study: Study,
    runs: Runs,
    corpus: Corpus | None,
    names: Collection[str],
    failing: dict[str, str] | None = None,
) -> None:
    """Refuses what a job would refuse of the data, if it is there, and prints remarks on the study.
    `names`: the cells that would run. `failing`: as of `check_data`."""
    from rlhf_jax.kinds.between_cells import remarks
    from rlhf_jax.kinds.needs import check_data

    said = remarks(study)
    if corpus is not None:
        said += check_data(study, names, corpus, runs.root, failing)
    for text in said:
        warn(text)


def _would_run(
    study: Study, runs: Runs, args: argparse.Namespace, corpus_hash: str | None
) -> set[str]:
    """The cells that a run would run."""
    done: set[str] = set()
    if corpus_hash is not None:
        folders = runs.folders(study, corpus_hash)
        done = {n for n, f in folders.items() if f.done()} - forgotten(study, args.force)
    return needed(study, done, args.only)


def _left(found: StudyPlan, study: Study, args: argparse.Namespace) -> set[str]:
    """The cells of a plan that would run: of `run --dry-run` those that are chosen."""
    states = {c.name: c.state for c in found.cells}
    if args.command != "run":
        return {n for n, s in states.items() if s not in ("done", "kept")}
    cleared = forgotten(study, args.force)
    states = {n: s for n, s in states.items() if n not in cleared}
    done, kept = ({n for n, s in states.items() if s == state} for state in ("done", "kept"))
    return needed(study, done, args.only, kept)
