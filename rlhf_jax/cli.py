"""The command line: `rlhf-jax run | plan | status | report | fit | predict | cost | generate |
...`."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import machine
from launch.graph import forgotten, needed
from rlhf_jax.cost import cli as cost_cli
from rlhf_jax.laws import cli as scaling_cli
from rlhf_jax.laws.grid import grid
from rlhf_jax.placement.cpu import without_tpu
from rlhf_jax.placement.mesh import check_placement, full_mesh
from rlhf_jax.report import terminal as tables
from rlhf_jax.study import Study, load_study
from rlhf_jax.study.config import ConfigError, argument
from rlhf_jax.study.kept import restore
from rlhf_jax.study.plan import StudyPlan, make_plan
from rlhf_jax.study.ranges import Count, Efficiency, Seed, Size, Temperature
from rlhf_jax.study.runs import (
    CellFolder,
    Damaged,
    Runs,
    claim_study,
    disk_words,
    find_cell,
    read_json,
    status,
    write_study,
)
from rlhf_jax.tools import aot, bench

if TYPE_CHECKING:
    from rlhf_jax.data.corpus import Corpus

DESCRIPTION = "Scaling experiments on language models and RLHF: one study file, one command."
EXAMPLES = """examples:
  rlhf-jax plan experiments/demo.py                    what it would cost
  rlhf-jax run experiments/demo.py                     run it, or go on where it was interrupted
  rlhf-jax run experiments/demo.py --tiny --runs runs/try
  rlhf-jax run experiments/demo.py --only 'ppo*' ppo-0.kl_coef=0.1
  rlhf-jax status experiments/demo.py --json
  rlhf-jax fit runs.csv --columns params=N tokens=D loss=L --approach 3
  rlhf-jax cost --preset palm-540b --tokens 780e9      what a known model cost, in FLOPs and dollars
  rlhf-jax generate demo/base --prompt "The colour of the sky is" --top 10
  rlhf-jax aot llama-8b --topology v5e:16x16 --batch-per-device 2 --seq-len 4096
  rlhf-jax bench train --against torch                 this machine's speed, and PyTorch's
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit code: 0 well, 1 work left or failed, 2 wrong input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Fits multiply tiny matrices; BLAS threads make that many times slower on a busy machine.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.update(without_tpu())
    # Intermixed, so that overrides may stand before or after options.
    parser, commands = _parser()
    if argv and argv[0] in commands:
        args = commands[argv[0]].parse_intermixed_args(argv[1:])
    else:
        parser.parse_args(argv)
        parser.print_help()
        return 2
    try:
        return args.run(args, argv)
    except KeyboardInterrupt:
        print("\nrlhf-jax: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except Exception as e:
        said = str(e) if isinstance(e, ConfigError) else disk_words(e)
        if not said and not isinstance(e, OSError):
            raise
        if args.debug:
            traceback.print_exception(_whole(e))
        print(f"rlhf-jax: {said or e}", file=sys.stderr)
        return 2


def _whole(error: BaseException) -> BaseException:
    """An error whose traceback shows what it came from, which messages leave out."""
    below: BaseException | None = error
    while below is not None:
        below.__suppress_context__ = below.__cause__ is not None
        below = below.__cause__ or below.__context__
    return error


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "rlhf-jax", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw
    )
    sub = parser.add_subparsers(metavar="COMMAND")
    commands: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, function: Any, text: str, example: str) -> argparse.ArgumentParser:
        p = sub.add_parser(
            name, help=text, description=text, epilog=f"example: {example}", formatter_class=raw
        )
        p.add_argument("--debug", action="store_true", help="show the traceback of an error")
        p.set_defaults(run=function, command=name)
        commands[name] = p
        return p

    def placement(p: argparse.ArgumentParser) -> None:
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

    def study(p: argparse.ArgumentParser) -> None:
        p.add_argument("study", metavar="STUDY", help="a Python file with study(tiny) -> Study")
        p.add_argument(
            "overrides",
            metavar="key=value",
            nargs="*",
            help="CELL.field=value (CELL may be a glob) or corpus.field=value",
        )
        p.add_argument("--tiny", action="store_true", help="the study's small form")
        p.add_argument("--runs", metavar="DIR", default="runs", help="root of all run folders")
        p.add_argument(
            "--kept",
            action="store_true",
            help="use results that are kept beside the study file; run what has to start "
            "from such a cell, and that cell first",
        )

    p = command(
        "run",
        _run,
        "Run the cells of a study that are not done, then build its report.",
        "rlhf-jax run experiments/demo.py --tiny",
    )
    study(p)
    p.add_argument(
        "--only",
        metavar="GLOB",
        nargs="+",
        action="extend",
        default=[],
        help="these cells and the unfinished ones that they need",
    )
    p.add_argument(
        "--force",
        metavar="GLOB",
        nargs="+",
        action="extend",
        default=[],
        help="forget these cells and all that start from them, first",
    )
    p.add_argument("--dry-run", action="store_true", help="show the plan; run nothing")
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
    p.add_argument("--wandb", choices=("disabled", "offline", "online"), default="disabled")
    placement(p)
    p.add_argument(
        "--display",
        choices=("auto", "table", "lines", "none"),
        default="auto",
        help="auto: a table on a terminal, lines elsewhere",
    )

    p = command(
        "plan",
        _plan,
        "Parameters, tokens, FLOPs, memory, disk and time of every cell.",
        "rlhf-jax plan experiments/demo.py",
    )
    study(p)
    p.add_argument("--json", action="store_true")
    p.add_argument("--workers", metavar="N", type=argument(Count))
    placement(p)
    p.add_argument("--hardware", default="h100", help="prices the runs of a sweep (default h100)")
    p.add_argument(
        "--mfu",
        type=argument(Efficiency),
        default=0.4,
        help="at this share of its peak (default 0.4)",
    )

    p = command(
        "status",
        _status,
        "Which cells are done, running, waiting, or failed and why.",
        "rlhf-jax status experiments/demo.py",
    )
    study(p)
    p.add_argument("--json", action="store_true")

    p = command(
        "report",
        _report,
        "Build the HTML report of a study from its run folders.",
        "rlhf-jax report experiments/demo.py",
    )
    study(p)
    p.add_argument(
        "--export",
        metavar="DIR",
        type=Path,
        help="also copy the small results there, to be committed: tables, fits, figures",
    )

    p = command(
        "fit",
        _fit,
        "Fit scaling laws to a table of runs (.csv, .jsonl, ...) or to a study.",
        "rlhf-jax fit runs.csv --columns params=N tokens=D loss=L --approach 3",
    )
    scaling_cli.add_arguments(p)

    p = command(
        "predict",
        _predict,
        "What a sweep's finished runs say of a larger budget, before it is run.",
        "rlhf-jax predict experiments/chinchilla.py --at 1.153e13",
    )
    study(p)
    p.add_argument(
        "--at",
        metavar="FLOPS",
        type=cost_cli.quantity,
        required=True,
        help="compute of that budget",
    )

    p = command(
        "cost",
        _cost,
        "What training a model costs, and the budget that published laws would have given it.",
        "rlhf-jax cost --preset palm-540b --tokens 780e9",
    )
    cost_cli.add_arguments(p)

    p = command(
        "generate",
        _generate,
        "Continue a prompt with a trained cell.",
        'rlhf-jax generate demo/base --prompt "The colour of the sky is" --top 10',
    )
    p.add_argument("cell", metavar="RUN", help="a cell's folder, STUDY/CELL, or a cell's name")
    p.add_argument("--prompt", required=True)
    p.add_argument(
        "--template",
        choices=("plain", "chat"),
        help="of the prompt (default: the one that the cell has learned)",
    )
    p.add_argument(
        "--top", type=argument(Size), metavar="N", help="also show the N likeliest next tokens"
    )
    p.add_argument(
        "--tokens",
        type=argument(Size),
        metavar="N",
        help="at most (default: as many as the cell's task takes, or 40)",
    )
    p.add_argument(
        "--temperature", type=argument(Temperature), default=0.8, help="0 is greedy (default 0.8)"
    )
    p.add_argument("--seed", type=argument(Seed), default=0)
    p.add_argument("--runs", metavar="DIR", default="runs", help="root of all run folders")

    p = command(
        "aot",
        _aot,
        "Compile a training step for TPUs that are not here: memory, FLOPs, "
        "collectives, an estimate of its time.",
        "rlhf-jax aot llama-8b --topology v5e:16x16 --batch-per-device 2 --seq-len 4096",
    )
    aot.add_arguments(p)

    p = command(
        "bench",
        _bench,
        "How fast this machine trains, samples, reads and compiles, and whether PyTorch is faster.",
        "rlhf-jax bench train --against torch --shapes 4x128 8x256",
    )
    bench.add_arguments(p)
    return parser, commands


def _aot(args: argparse.Namespace, argv: Sequence[str]) -> int:
    return aot.command(args)


def _fit(args: argparse.Namespace, argv: Sequence[str]) -> int:
    return scaling_cli.command(args)


def _predict(args: argparse.Namespace, argv: Sequence[str]) -> int:
    from rlhf_jax.laws.points import FitError
    from rlhf_jax.laws.predict import check_flops
    from rlhf_jax.report.foretell import foretell
    from rlhf_jax.report.study_results import read_study

    try:
        check_flops(args.at)
    except FitError as e:
        raise ConfigError(f"--at: {e}") from None
    study, runs = _load(args)
    corpus_hash = _corpus_hash(study, runs, args)
    if corpus_hash is None:
        raise ConfigError(f"{study.name} has not been run in {args.runs}")
    folder = _write_study(study, runs, corpus_hash, _again(argv), args)
    path = foretell(study, read_study(folder, runs.root), args.at)
    tables.print_prediction(read_json(path) or {})
    print(f"Kept: {path}")
    return 0


def _cost(args: argparse.Namespace, argv: Sequence[str]) -> int:
    return cost_cli.command(args)


def _bench(args: argparse.Namespace, argv: Sequence[str]) -> int:
    return bench.command(args)


# --- studies ---------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> tuple[Study, Runs]:
    runs = Runs(args.runs)
    study = load_study(args.study, args.tiny, args.overrides, args.runs)
    runs.check()
    return study, runs


def _corpus_hash(study: Study, runs: Runs, args: argparse.Namespace) -> str | None:
    corpus = _corpus(study, runs, args)
    return corpus.content_hash if corpus else None


def _corpus(study: Study, runs: Runs, args: argparse.Namespace) -> Corpus | None:
    """The corpus if it has been prepared. Refuses cells that it is too small for; brings back kept
    results if asked to."""
    from rlhf_jax.data.corpus import find, prepare

    corpus = find(study.corpus, runs.root)
    if corpus is None and args.kept:  # by its hash the kept results are known to be of this text
        corpus = prepare(study.corpus, runs.root, lambda text: print(text, file=sys.stderr))
    if corpus is None:
        return None
    study.check_corpus(corpus.tokens("train"))
    _restore(study, runs, corpus.content_hash, args)
    return corpus


def _check(
    study: Study,
    runs: Runs,
    corpus: Corpus | None,
    names: Collection[str],
    failing: dict[str, str] | None = None,
) -> None:
    """Refuses what a job would refuse of the data, if it is there. `names`: the cells that would
    run. Says what is left out, or may be meant otherwise. `failing`: as of `check_data`."""
    from rlhf_jax.kinds.between_cells import remarks
    from rlhf_jax.kinds.needs import check_data

    said = remarks(study)
    if corpus is not None:
        said += check_data(study, names, corpus, runs.root, failing)
    for text in said:
        _say(text)


def _say(text: str) -> None:
    print(f"rlhf-jax: {text}", file=sys.stderr, flush=True)


def _restore(study: Study, runs: Runs, corpus_hash: str, args: argparse.Namespace) -> None:
    if args.kept:
        back = restore(study, runs, corpus_hash, Path(args.study).parent / "results")
        print(f"{len(back)} cells come back as results that are kept", file=sys.stderr)


def _again(argv: Sequence[str]) -> str:
    """The command line that continues: this one, without `--force`."""
    kept, forced = [], False
    for word in argv:
        if word.startswith("-") or "=" in word:
            forced = word.partition("=")[0] == "--force"
        if not forced:
            kept.append(word)
    return shlex.join(["rlhf-jax", *kept])


def _run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    for globs in (args.only, args.force):  # overrides that stand after an option's globs
        args.overrides += [g for g in globs if "=" in g]
        globs[:] = [g for g in globs if "=" not in g]
    study, runs = _load(args)
    study.select([*args.only, *args.force])
    if args.dry_run:
        return _dry_run(study, runs, args)
    from launch import local
    from rlhf_jax.data.corpus import prepare

    _check_cells(study, runs, args)
    runs.check(write=True)
    runs.root.mkdir(parents=True, exist_ok=True)
    claim_study(study, runs, args.study, {})
    corpus = prepare(study.corpus, runs.root, lambda text: print(text, flush=True))
    study.check_corpus(corpus.tokens("train"))
    _restore(study, runs, corpus.content_hash, args)
    names, failing = _would_run(study, runs, args, corpus.content_hash), dict[str, str]()
    _check(study, runs, corpus, names, failing)
    only, reason = args.only, "\n".join(dict.fromkeys(failing.values()))
    if failing:
        only = _without(study, names, failing, args.only)
        if not only:
            raise ConfigError(reason)
        _say(
            f"{reason}\n{', '.join(failing)}: not run for that reason; what needs none of them runs"
        )
    command = _again(argv)
    folder = _write_study(study, runs, corpus.content_hash, command, args)
    code = local.run(
        study,
        args.study,
        runs=runs,
        corpus_hash=corpus.content_hash,
        tiny=args.tiny,
        overrides=args.overrides,
        only=only,
        force=args.force,
        workers=args.workers,
        threads=args.threads,
        display=args.display,
        wandb=args.wandb,
        mesh=args.mesh,
        accumulate=args.accumulate,
        again=command,
    )
    if code >= 128:
        return code
    # Folders that other studies share are known by now.
    _write_study(study, runs, corpus.content_hash, command, args)
    _build_report(folder, runs)
    if failing:
        raise ConfigError(reason)
    return code


def _without(
    study: Study, names: Collection[str], failing: Collection[str], asked: Sequence[str]
) -> list[str]:
    """The cells of `names` that a run ends in, or is `asked` for, without those that start from a
    failing one."""
    parents = {p for c in study.cells for p in c.parents()}
    ends = {c.name for c in study.select(asked)} | {c.name for c in study.cells} - parents
    return sorted((set(names) & ends) - forgotten(study, list(failing)))


def _write_study(
    study: Study, runs: Runs, corpus_hash: str, command: str, args: argparse.Namespace
) -> Path:
    """Says what that replaces."""
    if said := claim_study(study, runs, args.study, study.run_ids(corpus_hash)):
        print(f"rlhf-jax: {said}", file=sys.stderr)
    return write_study(study, runs, corpus_hash, command, args.study)


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


def _would_run(
    study: Study, runs: Runs, args: argparse.Namespace, corpus_hash: str | None
) -> set[str]:
    done: set[str] = set()
    if corpus_hash is not None:
        folders = runs.folders(study, corpus_hash)
        done = {n for n, f in folders.items() if f.done()} - forgotten(study, args.force)
    return needed(study, done, args.only)


def _build_report(folder: Path, runs: Runs) -> None:
    from rlhf_jax.report.html import build

    print("Building the report ...", flush=True)
    print(f"Report: {build(folder, runs.root)}", flush=True)


def _report(args: argparse.Namespace, argv: Sequence[str]) -> int:
    study, runs = _load(args)
    corpus_hash = _corpus_hash(study, runs, args)
    if corpus_hash is None:
        raise ConfigError(
            f"{study.name} has not been run in {args.runs}; first: rlhf-jax run {args.study}"
        )
    old: dict[str, Any] = {}
    with suppress(Damaged):
        old = read_json(runs.study(study) / "study.json") or {}
    command = old.get("command") or _again(["run", *argv[1:]])
    folder = _write_study(study, runs, corpus_hash, command, args)
    _build_report(folder, runs)
    if args.export:
        from rlhf_jax.report.export import export

        print(f"Results: {export(folder, runs.root, args.export)}")
    return 0


def _make_plan(study: Study, runs: Runs, args: argparse.Namespace) -> tuple[StudyPlan, str | None]:
    corpus = _corpus(study, runs, args)
    corpus_hash = corpus.content_hash if corpus else None
    _check_cells(study, runs, args)
    devices = math.prod(full_mesh(args.mesh, machine.devices()).values())
    workers = args.workers or machine.default_workers(devices)
    threads = max(1, machine.cores() // workers)
    accelerator = machine.accelerator()
    plan = make_plan(study, runs, corpus_hash, workers, threads, accelerator, args.accumulate)
    damaged = [c.name for c in plan.cells if c.state == "damaged"]
    if damaged and corpus_hash is not None:
        folders = runs.folders(study, corpus_hash)
        for name in damaged:
            print(f"rlhf-jax: {folders[name].state().get('reason')}", file=sys.stderr)
    _check(study, runs, corpus, _left(plan, study, args))
    return plan, corpus_hash


def _left(plan: StudyPlan, study: Study, args: argparse.Namespace) -> set[str]:
    """The cells of a plan that would run: of `run --dry-run` those that are chosen."""
    states = {c.name: c.state for c in plan.cells}
    if args.command != "run":
        return {n for n, s in states.items() if s not in ("done", "kept")}
    again = forgotten(study, args.force)
    states = {n: s for n, s in states.items() if n not in again}
    done, kept = ({n for n, s in states.items() if s == state} for state in ("done", "kept"))
    return needed(study, done, args.only, kept)


def _dry_run(study: Study, runs: Runs, args: argparse.Namespace) -> int:
    plan, corpus_hash = _make_plan(study, runs, args)
    tables.print_plan(plan, corpus_hash is not None)
    chosen = _left(plan, study, args)
    names = [c.name for c in study.order() if c.name in chosen]
    print(f"\nWould run: {', '.join(names) if names else 'nothing; all is done'}")
    return 0


def _plan(args: argparse.Namespace, argv: Sequence[str]) -> int:
    study, runs = _load(args)
    runs_of_sweep = grid(study, args.hardware, args.mfu)
    plan, corpus_hash = _make_plan(study, runs, args)
    if args.json:
        print(json.dumps(plan.to_json() | {"grid": runs_of_sweep}, indent=1))
        return 0
    if runs_of_sweep:
        tables.print_grid(runs_of_sweep, args.hardware, args.mfu)
    tables.print_plan(plan, corpus_hash is not None)
    return 0


def _status(args: argparse.Namespace, argv: Sequence[str]) -> int:
    study, runs = _load(args)
    found = status(study, runs, _corpus_hash(study, runs, args))
    head = tables.head_commit()
    for row in found["cells"]:
        if row["run_id"] is None:
            continue
        try:
            tables.describe(row, CellFolder(Path(row["folder"]), row["name"]), head)
        except Damaged as e:
            row |= {"state": "damaged", "reason": str(e)}
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        tables.print_status(found)
    damage = [row["reason"] for row in found["cells"] if row["state"] == "damaged"]
    for reason in damage:
        print(f"rlhf-jax: {reason}", file=sys.stderr)
    return 1 if damage else 0


# --- samples ---------------------------------------------------------------------------------


def _generate(args: argparse.Namespace, argv: Sequence[str]) -> int:
    path = find_cell(args.cell, Runs(args.runs))
    if not CellFolder(path).done():
        print(f"{path.name} is not done; using its last checkpoint", file=sys.stderr)
    from rlhf_jax.load import load_run, next_tokens, sample_text

    run = load_run(path)
    if args.template:
        run = replace(run, template=args.template)
    if args.top:
        tables.print_next_tokens(args.prompt, next_tokens(run, args.prompt, args.top))
    text = sample_text(run, args.prompt, args.tokens, args.temperature, args.seed)
    tables.print_continuation(args.prompt, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
