"""The commands that show what has been computed: `status`, `report`, `predict`, `generate`."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_jax.report import terminal
from rlhf_jax.report.cost_cli import quantity
from rlhf_jax.study import command
from rlhf_jax.study.config import ConfigError, argument
from rlhf_jax.study.files import Damaged, read_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.messages import warn
from rlhf_jax.study.provenance import git
from rlhf_jax.study.ranges import Seed, Size, Temperature
from rlhf_jax.study.runs import Runs, find_cell
from rlhf_jax.study.runs import status as states


def status_arguments(p: argparse.ArgumentParser) -> None:
    command.add_study(p)
    p.add_argument("--json", action="store_true")


def status(args: argparse.Namespace) -> int:
    """Prints every cell's state. Returns 1 where a file of a finished cell is damaged."""
    study, runs = command.load(args)
    found = states(study, runs, command.corpus_hash_of(study, runs, args))
    head = git("rev-parse", "HEAD")
    for row in found["cells"]:
        if row["run_id"] is None:
            continue
        try:
            terminal.describe(row, CellFolder(Path(row["folder"]), row["name"]), head)
        except Damaged as e:
            row |= {"state": "damaged", "reason": str(e)}
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        terminal.print_status(found)
    damage = [row["reason"] for row in found["cells"] if row["state"] == "damaged"]
    for reason in damage:
        warn(reason)
    return 1 if damage else 0


def build_report(folder: Path, runs: Runs) -> None:
    """The HTML report of a study's folder."""
    from rlhf_jax.report.html import build

    print("Building the report ...", flush=True)
    print(f"Report: {build(folder, runs.root)}", flush=True)


def report_arguments(p: argparse.ArgumentParser) -> None:
    command.add_study(p)
    p.add_argument(
        "--export",
        metavar="DIR",
        type=Path,
        help="also copy the small results there, to be committed: tables, fits, figures",
    )


def report(args: argparse.Namespace) -> int:
    """Builds the report, and exports the small results if asked to."""
    study, runs = command.load(args)
    corpus_hash = command.corpus_hash_of(study, runs, args)
    if corpus_hash is None:
        raise ConfigError(
            f"{study.name} has not been run in {args.runs}; first: rlhf-jax run {args.study}"
        )
    old: dict[str, Any] = {}
    with suppress(Damaged):
        old = read_json(runs.study(study) / "study.json") or {}
    again = old.get("command") or command.again(["run", *args.argv[1:]])
    folder = command.write(study, runs, corpus_hash, again, args)
    build_report(folder, runs)
    if args.export:
        from rlhf_jax.report.export import export

        print(f"Results: {export(folder, runs.root, args.export)}")
    return 0


def predict_arguments(p: argparse.ArgumentParser) -> None:
    command.add_study(p)
    p.add_argument(
        "--at", metavar="FLOPS", type=quantity, required=True, help="compute of that budget"
    )


def predict(args: argparse.Namespace) -> int:
    """Prints and keeps what the finished runs of a sweep predict at a larger budget."""
    from rlhf_jax.laws.points import FitError
    from rlhf_jax.laws.predict import check_flops
    from rlhf_jax.report.foretell import foretell
    from rlhf_jax.report.study_results import read_study

    try:
        check_flops(args.at)
    except FitError as e:
        raise ConfigError(f"--at: {e}") from None
    study, runs = command.load(args)
    corpus_hash = command.corpus_hash_of(study, runs, args)
    if corpus_hash is None:
        raise ConfigError(f"{study.name} has not been run in {args.runs}")
    folder = command.write(study, runs, corpus_hash, command.again(args.argv), args)
    path = foretell(study, read_study(folder, runs.root), args.at)
    terminal.print_prediction(read_json(path) or {})
    print(f"Kept: {path}")
    return 0


def generate_arguments(p: argparse.ArgumentParser) -> None:
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
    command.add_runs(p)


def generate(args: argparse.Namespace) -> int:
    """Prints a continuation of a prompt, and the likeliest next tokens if asked to."""
    path = find_cell(args.cell, Runs(args.runs))
    if not CellFolder(path).done():
        print(f"{path.name} is not done; using its last checkpoint", file=sys.stderr)
    from rlhf_jax.load import load_run, next_tokens, sample_text

    run = load_run(path)
    if args.template:
        run = replace(run, template=args.template)
    if args.top:
        terminal.print_next_tokens(args.prompt, next_tokens(run, args.prompt, args.top))
    text = sample_text(run, args.prompt, args.tokens, args.temperature, args.seed)
    terminal.print_continuation(args.prompt, text)
    return 0
