"""What all commands on a study share: its file, its runs folder, its corpus, its folder there."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_jax.study.graph import Study
from rlhf_jax.study.kept import restore
from rlhf_jax.study.loading import load_study
from rlhf_jax.study.messages import warn
from rlhf_jax.study.runs import Runs, claim_study, write_study

if TYPE_CHECKING:
    from rlhf_jax.data.corpus import Corpus


def add_study(p: argparse.ArgumentParser) -> None:
    p.add_argument("study", metavar="STUDY", help="a Python file with study(tiny) -> Study")
    p.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="CELL.field=value (CELL may be a glob) or corpus.field=value",
    )
    p.add_argument("--tiny", action="store_true", help="the study's small form")
    add_runs(p)
    p.add_argument(
        "--kept",
        action="store_true",
        help="use results that are kept beside the study file; run what has to start from such a "
        "cell, and that cell first",
    )


def add_runs(p: argparse.ArgumentParser) -> None:
    p.add_argument("--runs", metavar="DIR", default="runs", help="root of all run folders")


def load(args: argparse.Namespace) -> tuple[Study, Runs]:
    """The study and the runs folder that a command names."""
    runs = Runs(args.runs)
    study = load_study(args.study, args.tiny, args.overrides, args.runs)
    runs.check()
    return study, runs


def corpus_of(study: Study, runs: Runs, args: argparse.Namespace) -> Corpus | None:
    """The corpus if it has been prepared. With `--kept` it is prepared now: kept results are known
    by its hash. Restores them then.

    Raises:
      ConfigError: it is too small for a cell.
    """
    from rlhf_jax.data.corpus import find, prepare

    corpus = find(study.corpus, runs.root)
    if corpus is None and args.kept:
        corpus = prepare(study.corpus, runs.root, lambda text: print(text, file=sys.stderr))
    if corpus is None:
        return None
    study.check_corpus(corpus.tokens("train"))
    restore_kept(study, runs, corpus.content_hash, args)
    return corpus


def corpus_hash_of(study: Study, runs: Runs, args: argparse.Namespace) -> str | None:
    corpus = corpus_of(study, runs, args)
    return corpus.content_hash if corpus else None


def restore_kept(study: Study, runs: Runs, corpus_hash: str, args: argparse.Namespace) -> None:
    if args.kept:
        back = restore(study, runs, corpus_hash, Path(args.study).parent / "results")
        print(f"{len(back)} cells come back as results that are kept", file=sys.stderr)


def write(
    study: Study, runs: Runs, corpus_hash: str, command: str, args: argparse.Namespace
) -> Path:
    """The study's folder, written; says what that replaces."""
    if said := claim_study(study, runs, args.study, study.run_ids(corpus_hash)):
        warn(said)
    return write_study(study, runs, corpus_hash, command, args.study)


def again(argv: Sequence[str]) -> str:
    """The command line that continues: this one, without `--force`."""
    kept, forced = [], False
    for word in argv:
        if word.startswith("-") or "=" in word:
            forced = word.partition("=")[0] == "--force"
        if not forced:
            kept.append(word)
    return shlex.join(["rlhf-jax", *kept])
