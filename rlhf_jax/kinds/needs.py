"""What the cells of a study need of data, found out before any of them runs.

Each kind of cell says here what it needs (`NEEDS`); whether the data has it is found out by the
functions that the cell's job takes it with, so the two cannot disagree. No jax. What has been found
is kept in RUNS/data/index/needs, by the content of everything that it depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from rlhf_jax.data.corpus import Corpus
from rlhf_jax.data.feedback import Critique
from rlhf_jax.data.signals import verdict_tokens
from rlhf_jax.kinds.best_of_n.cell import BestOfN
from rlhf_jax.kinds.compare.cell import Compare
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.dpo.cell import DPO
from rlhf_jax.kinds.evaluate.cell import Evaluate
from rlhf_jax.kinds.feedback.cell import Feedback
from rlhf_jax.kinds.ppo.cell import PPO
from rlhf_jax.kinds.prompting.cell import Prompting
from rlhf_jax.kinds.prompting.job import asked
from rlhf_jax.kinds.rankings import check_comparisons, template_of
from rlhf_jax.kinds.reward.cell import Reward
from rlhf_jax.kinds.sft.cell import SFT
from rlhf_jax.kinds.sft.job import packed_rows, source, taught
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.callables import LABELS, call_for_list, call_for_scores
from rlhf_jax.study.cell import Cell, names_cell
from rlhf_jax.study.config import ConfigError, content_id, to_json
from rlhf_jax.study.digests import Remembered
from rlhf_jax.study.graph import Study

Check = Callable[[Context], Any]


class Need(NamedTuple):
    """Something that a cell needs of the data.

    Attributes:
        key: what the answer depends on beside the corpus. Needs of one key differ in `size` alone:
            what is enough for the largest is enough for all.
        check: raises ConfigError where it is not there.
    """

    key: list[Any]
    check: Check
    size: int = 0


def _heldout(study: Study, cell: Cell) -> Iterator[Need]:
    yield Need(["held out", study.corpus.heldout_tokens], lambda ctx: ctx.corpus.heldout_tokens)


def _called(
    study: Study, cell: Compare | PPO | BestOfN | Evaluate, split: str, n: int
) -> Iterator[Need]:
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


def _prompts(
    study: Study, task: TaskConfig, split: str, n: int, seed: int, recorded: bool = False
) -> Need:
    """`recorded`: they become records, whose prompts are not empty."""

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


def _sft(study: Study, cell: SFT) -> Iterator[Need]:
    yield from _heldout(study, cell)
    if cell.records is not None and names_cell(cell.records):
        return  # how many those can be, `rlhf_jax.kinds.between_cells` knows
    named = [study.outside.get(name) for name in (cell.records, cell.task.gold) if name]
    task = to_json(cell.task)
    key = ["sft", named, task, cell.examples, cell.min_gold, cell.batch, cell.seed]
    yield Need(key, lambda ctx: packed_rows(ctx, cell, taught(ctx, cell)[2]))


def _sampled(study: Study, cell: Compare | Feedback) -> Iterator[Need]:
    for split, n in (("train", cell.prompts), ("validation", cell.heldout_prompts)):
        yield _prompts(study, cell.task, split, n, cell.seed, recorded=True)
    if isinstance(cell, Compare):
        yield from _called(study, cell, "train", cell.prompts)


def _ppo(study: Study, cell: PPO) -> Iterator[Need]:
    yield from _verdicts(study, cell)
    n = cell.batch * min(cell.iterations, cell.prompt_batches)
    yield _prompts(study, cell.task, "train", n, cell.seed)
    yield from _called(study, cell, "train", n)


def _best_of_n(study: Study, cell: BestOfN) -> Iterator[Need]:
    yield from _verdicts(study, cell)
    yield _prompts(study, cell.task, cell.split, cell.prompts, cell.seed)
    yield from _called(study, cell, cell.split, cell.prompts)


def _evaluate(study: Study, cell: Evaluate) -> Iterator[Need]:
    yield from _heldout(study, cell)
    yield from _verdicts(study, cell)
    yield _prompts(study, cell.task, "test", cell.prompts, cell.seed)
    yield from _called(study, cell, "test", cell.prompts)


def _verdicts(study: Study, cell: PPO | BestOfN | Evaluate) -> Iterator[Need]:
    """Of a reward that is a model of critiques: verdicts to learn from, and positions for its
    prompts."""
    if not names_cell(cell.reward) or not isinstance(judge := study[cell.reward], SFT):
        return
    where, records = f"{cell.name}.reward = {judge.name!r}", judge.records
    most = study.model_of(judge).max_positions
    longest = cell.task.prompt_len + cell.task.response_len

    def check(ctx: Context) -> None:
        size = longest + verdict_tokens(ctx.corpus.tokenizer, judge.task.template)
        if size > most:
            raise ConfigError(
                f"{where}: with the verdict, prompt and response take {size} tokens, but its model "
                f"has max_positions = {most}; shorten {cell.name}.task or raise it"
            )
        if records is None or names_cell(records):
            return
        given = source(ctx, judge)
        if not any(isinstance(r, Critique) and r.verdict for r in given.records):
            raise ConfigError(
                f"{where}, whose records ({records}) hold no critiques with verdicts; let it learn "
                f"from some, or name a reward cell"
            )

    key = [records and study.outside.get(records), judge.examples, judge.seed, judge.task.template]
    yield Need(["verdicts", key, longest, most], check)


def _comparisons(study: Study, cell: Reward | DPO) -> Iterator[Need]:
    if isinstance(cell, DPO):
        yield from _heldout(study, cell)
    files = [study.outside[n] for n in cell.compared if not names_cell(n)]
    if files:
        template, most = template_of(study, cell), study.model_of(cell).max_positions
        limit = cell.prompts if isinstance(cell, Reward) else None
        alone = len(files) == len(cell.compared)
        key = ["comparisons", files, alone, template, most, cell.batch, limit]
        yield Need(key, lambda ctx: check_comparisons(ctx, cell))


def _prompting(study: Study, cell: Prompting) -> Iterator[Need]:
    facts = {k: v for k, v in to_json(cell).items() if k not in ("name", "policy", "tasks")}
    most = study.model_of(cell).max_positions
    yield Need(
        ["items", cell.tasks, study.outside[cell.tasks], facts, most],
        lambda ctx: list(asked(ctx, cell)),
    )


NEEDS: dict[str, Callable[[Study, Any], Iterator[Need]]] = {
    "pretrain": _heldout,
    "sft": _sft,
    "compare": _sampled,
    "feedback": _sampled,
    "reward": _comparisons,
    "ensemble": lambda study, cell: iter(()),
    "ppo": _ppo,
    "dpo": _comparisons,
    "best_of_n": _best_of_n,
    "evaluate": _evaluate,
    "prompting": _prompting,
}


def check_data(
    study: Study,
    names: Collection[str],
    corpus: Corpus,
    runs: Path,
    failing: dict[str, str] | None = None,
) -> list[str]:
    """Refuses cells (of `names`) that want more of the data than it holds. Returns what will be
    left out, in words.

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
        for need in NEEDS[cell.KIND](study, cell):
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
    return dict(getattr(ctx, "left_out", {}))
