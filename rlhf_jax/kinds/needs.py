"""Checks that the data has what the cells of a study need, before any of them runs.

Each kind lists its needs (`Cell.needs`). A need is checked with the functions by which the job
reads the data, so the two cannot disagree. No jax. Results are kept in RUNS/data/index/needs, by
the content of everything that they depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from rlhf_jax.data.corpus import Corpus
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.callables import LABELS, call_for_list, call_for_scores
from rlhf_jax.study.cell import Cell, names_cell
from rlhf_jax.study.config import ConfigError, content_id, to_json
from rlhf_jax.study.digests import Remembered
from rlhf_jax.study.graph import Study


class Need(NamedTuple):
    """A requirement of a cell on the data.

    Attributes:
        key: everything that the result depends on, apart from the corpus. Needs of one key differ
            in `size` alone: what is enough for the largest is enough for all.
        check: raises ConfigError where the data does not have it.
    """

    key: list[Any]
    check: Callable[[Context], Any]
    size: int = 0


def needs_of(study: Study, cell: Cell) -> Iterator[Need]:
    """The needs of a cell, in the order in which they are checked."""
    if cell.HELDOUT:
        tokens = study.corpus.heldout_tokens
        yield Need(["held out", tokens], lambda ctx: ctx.corpus.heldout_tokens)
    for field, role in cell.PARENTS.items():
        for name in filter(names_cell, cell.named(field)):
            yield from study[name].needs_as(role, study, cell)
    yield from cell.needs(study)


def called(study: Study, cell: Any, split: str, n: int) -> Iterator[Need]:
    """The user's rewards, gold scores and modes give what they should, of two of the cell's own
    prompts."""
    task = cell.task
    n = n if task.prompts else 2  # of a callable the same ones that the cell asks for
    for field in ("task.gold", "reward", "modes"):
        name = task.gold if field == "task.gold" else getattr(cell, field, "")
        if not name or names_cell(name) or name.startswith("rlhf_jax."):
            continue

        def check(ctx: Context, name: str = name, field: str = field) -> None:
            prompts = ctx.prompts(task, split, n, cell.seed).texts[:2]
            given, where = (prompts, [p[-24:] for p in prompts]), f"{ctx.cell.name}.{field}"
            if field == "modes":
                call_for_list(name, where, given, object, LABELS, len(prompts))
            else:
                call_for_scores(name, where, *given)

        prompts = [task.prompts and study.outside[task.prompts], split, n, cell.seed, to_json(task)]
        yield Need(["called", field, name, study.outside.get(name), prompts], check)


def prompts(
    study: Study, task: TaskConfig, split: str, n: int, seed: int, recorded: bool = False
) -> Need:
    """`n` prompts of a split. recorded: they become records, whose prompts are not empty."""

    def check(ctx: Context) -> None:
        if "" in ctx.prompts(task, split, n, seed).texts and recorded:
            raise ConfigError(
                f"task.prompts = {task.prompts!r} gave '' for the {split} split, but the samples "
                f"become records, whose prompts are texts; leave empty ones out"
            )

    if not task.prompts:  # whatever the seed, all openings are tried
        return Need(["openings", split, task.prompt_len, task.response_len], check, n)
    source = [task.prompts, study.outside[task.prompts]]
    facts = [split, n, seed, task.prompt_len, task.template, recorded]
    return Need(["prompts", source, *facts], check)


def judged(study: Study, cell: Any, split: str, n: int) -> Iterator[Need]:
    """Prompts to sample responses to, and a reward and a gold score that take those."""
    yield prompts(study, cell.task, split, n, cell.seed)
    yield from called(study, cell, split, n)


def check_data(
    study: Study,
    names: Collection[str],
    corpus: Corpus,
    runs: Path,
    failing: dict[str, str] | None = None,
) -> list[str]:
    """Refuses cells (of `names`) that need more than the data has. Returns which rows will be left
    out, in words.

    Args:
        runs: the root of run folders, where what was found is kept.
        failing: takes the reasons of cells whose callables fail, by cell; without it they are
            refused too.

    Raises:
        ConfigError: names the cell, what it needs, and what there is.
    """
    wanted: dict[str, tuple[Cell, Need]] = {}
    callers: dict[str, list[str]] = {}
    for cell in (c for c in study.cells if c.name in names):
        for need in needs_of(study, cell):
            at = content_id([corpus.content_hash, need.key], 16)
            if at not in wanted or wanted[at][1].size < need.size:
                wanted[at] = (cell, need)
            if need.key[0] == "called":
                callers.setdefault(at, []).append(cell.name)
    said: list[str] = []
    found = Remembered(runs / "data" / "index" / "needs", ("size", "left out"))
    for at, (cell, need) in wanted.items():
        enough = found.known.get(at, {"size": -1})
        if enough["size"] < need.size:
            try:
                enough = {"size": need.size, "left out": _left_out(study, cell, need, corpus)}
            except ConfigError as e:
                if failing is None or at not in callers:
                    raise
                failing.update(dict.fromkeys(callers[at], str(e)))
                continue
            found.add(at, enough)
        said += [f"{cell.name}: {name}: {rows}" for name, rows in enough["left out"].items()]
    found.save()
    said += [f"{name}: {rows}" for name, rows in corpus.left_out.items()]
    if any(need.key[0] == "held out" for _, need in wanted.values()):
        said += _about_heldout(corpus)
    return said


def _about_heldout(corpus: Corpus) -> list[str]:
    said, asked_for, size = [], corpus.cfg.heldout_tokens, corpus.heldout_tokens
    if size < asked_for:
        said.append(
            f"held-out losses are of all {size:,} targets of the validation split; the default, "
            f"corpus.heldout_tokens = {asked_for:,}, is more than there are"
        )
    if size < 2 * corpus.cfg.seq_len:
        said.append(
            f"held-out losses are of {size:,} targets, less than two rows, whose standard error "
            f"says nothing; raise corpus.heldout_tokens or corpus.validation"
        )
    return said


def _left_out(study: Study, cell: Cell, need: Need, corpus: Corpus) -> dict[str, str]:
    """Checks a need; by file, the rows that were left out."""
    quiet = cast(Any, SimpleNamespace(log=lambda text: None))
    ctx = Context(study, cell, {}, corpus, quiet, cast(Any, None))
    try:
        need.check(ctx)
    except ConfigError as e:
        text = str(e)
        raise ConfigError(text if text.startswith(cell.name) else f"{cell.name}: {text}") from None
    return dict(ctx.left_out)
