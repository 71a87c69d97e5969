"""Supervised fine-tuning cells: on true continuations that the labeller approves of, or on
records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, get_args

from rlhf_jax.data.annotators import approved
from rlhf_jax.data.chat import example_ids
from rlhf_jax.data.feedback import Critique, Demonstration, Record, write
from rlhf_jax.data.files import LeftOut
from rlhf_jax.data.layouts import load
from rlhf_jax.data.loader import batch_rows
from rlhf_jax.data.packing import Batch, Example, pack_examples
from rlhf_jax.data.prompts import prompts_from
from rlhf_jax.data.signals import answer_of, examples_of, verdict_tokens
from rlhf_jax.data.tokenizer import EOS
from rlhf_jax.evals.results import HeldOut
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.sft.cell import SFT
from rlhf_jax.kinds.sft.result import SFTResult, Tuning
from rlhf_jax.study.callables import call_for_list, is_callable
from rlhf_jax.study.cell import Cell, names_cell
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.results import from_json

if TYPE_CHECKING:
    import jax

    from rlhf_jax.rl.scores import Reward


class Source(NamedTuple):
    """Records that a cell learns from.

    Attributes:
        where: what an error message calls them.
        numbers: the number of each record there, from 1.
    """

    where: str
    records: Sequence[Record]
    numbers: Sequence[int]


def run(ctx: Context, cell: SFT) -> SFTResult:
    """Fine-tuning, several examples to a row, none of which sees another; the loss is on
    completions only. The answers shown to it are kept in `results/demonstrations.jsonl`. If it has
    learned to give verdicts, `results/judge.json` says how well (`rlhf_jax.kinds.sft.judge`), and
    the cell can be named as a reward."""
    from rlhf_jax.evals.heldout import heldout_loss
    from rlhf_jax.kinds.language_modelling import metrics_row
    from rlhf_jax.kinds.sft.judge import judge_report
    from rlhf_jax.model import decays
    from rlhf_jax.model.sharding import place_batch
    from rlhf_jax.objectives.named import named_objective
    from rlhf_jax.train import init_state, make_train_step, train

    run, T = ctx.runtime, ctx.study.corpus.seq_len
    given, shown, examples = taught(ctx, cell)
    if shown:
        write(ctx.folder.results / "demonstrations.jsonl", shown)
    rows, steps = packed_rows(ctx, cell, examples)
    n = len(rows["tokens"])

    def batch_at(t: int) -> dict[str, jax.Array]:
        chosen = batch_rows(n, cell.batch, cell.seed, t)
        return place_batch({k: v[chosen] for k, v in rows.items()}, run.mesh, run.axes)

    state = init_state(ctx.language_model(cell.base), cell.optim, steps)
    loss = named_objective(cell.objective, f"{cell.name}.objective", ctx.model, run.axes)
    step = make_train_step(loss, cell.optim, partial(decays, ctx.model), run.axes, run.accumulate)
    row = metrics_row(ctx.model, 0, cell.batch, T, nats=not cell.objective)
    trained = train(ctx.folder, state, step, batch_at, steps, run, row, ctx.beat).params
    heldout = heldout_loss(trained, ctx.model, ctx.corpus, run, cell.batch)
    result = SFTResult(from_json(HeldOut, heldout), Tuning(len(shown), steps))
    if given:
        cut = sum(len(e.ids) == T + 1 and e.ids[-1] != EOS for e in examples)
        judge = judge_report(ctx, cell, trained, given.records)
        tuned = replace(result.sft, examples=len(examples), cut=cut)
        result = replace(result, sft=tuned, judge=judge)
        if cut:
            run.log(
                f"{cell.name}: {cut} of {len(examples)} answers are cut at the end of a row of {T} "
                "tokens"
            )
    return result


def taught(ctx: Context, cell: SFT) -> tuple[Source | None, list[Demonstration], list[Example]]:
    """The records that a cell names, if it does; the answers that it is shown, and what it
    learns."""
    if cell.records is None:
        return None, *continuations(ctx, cell)
    given = source(ctx, cell)
    return given, *from_records(ctx, cell, given)


def packed_rows(ctx: Context, cell: SFT, examples: Sequence[Example]) -> tuple[Batch, int]:
    """All rows, and the steps that they make."""
    T = ctx.study.corpus.seq_len
    rows = pack_examples(examples, T, ctx.corpus.token_bytes)
    n = len(rows["tokens"])
    if n < cell.batch:
        raise ConfigError(
            f"{cell.name}: {len(examples)} examples fill {n} rows of {T} tokens, less than one "
            f"batch of {cell.batch}; raise examples or lower batch"
        )
    return rows, cell.epochs * (n // cell.batch)


def continuations(ctx: Context, cell: SFT) -> tuple[list[Demonstration], list[Example]]:
    """True continuations of openings of the corpus that the labeller approves of."""
    task = cell.task
    prompts = prompts_from(
        ctx.corpus, "train", cell.examples, task.prompt_len, cell.seed, task.response_len - 1
    )
    shown = approved(prompts, cell.min_gold, partial(ctx.gold, task))
    if not shown:
        raise ConfigError(
            f"{cell.name}: none of {len(prompts)} continuations scores at least min_gold = "
            f"{cell.min_gold}; lower it or raise examples"
        )
    examples = []
    for p in shown:
        answer = [*p.response_ids, EOS]
        mask = [0] * len(p.prompt_ids) + [1] * len(answer)
        examples.append(Example([*p.prompt_ids, *answer], mask))
    return [Demonstration(p.prompt, p.response) for p in shown], examples


def from_records(
    ctx: Context, cell: SFT, given: Source
) -> tuple[list[Demonstration], list[Example]]:
    """The first `cell.examples` of what the records teach; the end of an answer that is too long
    for a row is cut off. Records whose prompt leaves no room for an answer, or whose answer is
    blank, are left out."""
    length = ctx.study.corpus.seq_len + 1
    shown: list[Demonstration] = []
    examples: list[Example] = []
    where, records, numbers = given
    left = LeftOut()
    for record, number in zip(records, numbers, strict=True):
        if len(examples) >= cell.examples:
            break
        try:
            pairs = examples_of([record])[: cell.examples - len(examples)]
            examples += [
                example_ids(ctx.corpus.tokenizer, *pair, cell.task.template, length)
                for pair in pairs
            ]
        except ConfigError as e:
            left.add(number, str(e))
            continue
        if not pairs and not names_cell(str(cell.records)):
            left.add(number, "it shows no answer to learn")
        if answer := answer_of(record):
            shown.append(Demonstration(record.prompt, answer))
    ctx.leave_out(where, left)
    if not examples and (why := left.without("it shows no answer to learn")):
        raise ConfigError("{}: {}, record {}: {}".format(cell.name, where, *why))
    if not examples:
        raise ConfigError(
            f"{cell.name}: {where} has {len(records)} records, none of which shows an answer"
        )
    return shown, examples


def source(ctx: Context, cell: SFT) -> Source:
    """The records that `cell.records` names: a cell's, a callable's or a file's."""
    name = cell.records
    assert name is not None
    if names_cell(name):
        path, records = ctx.play("records", name)
        return Source(str(path), records, range(1, len(records) + 1))
    if not is_callable(name):
        loaded = load(ctx.study.unchanged(name))
        ctx.runtime.log(
            f"{name}: layout {loaded.layout}, {len(loaded.records)} records, {loaded.skipped} rows "
            "left out"
        )
        ctx.leave_out(name, loaded.left_out, loaded.unread)
        return Source(name, loaded.records, loaded.rows)
    given, where = ("train", cell.examples, cell.seed), f"{cell.name}.records"
    records = call_for_list(
        name, where, given, get_args(Record), "records of rlhf_jax.data.feedback"
    )
    return Source(name, records, range(1, len(records) + 1))


def check_judge(ctx: Context, cell: SFT, child: Cell, longest: int) -> None:
    """Refuses to judge the child's samples, of up to `longest` tokens with their prompts."""
    where, most = f"{child.name}.reward = {cell.name!r}", ctx.study.model_of(cell).max_positions
    size = longest + verdict_tokens(ctx.corpus.tokenizer, cell.task.template)
    if size > most:
        raise ConfigError(
            f"{where}: with the verdict, prompt and response take {size} tokens, but its model has "
            f"max_positions = {most}; shorten {child.name}.task or raise it"
        )
    if cell.records is None or names_cell(cell.records):
        return
    given = source(ctx, cell)
    if not any(isinstance(r, Critique) and r.verdict for r in given.records):
        raise ConfigError(
            f"{where}, whose records ({cell.records}) hold no critiques with verdicts; let it "
            f"learn from some, or name a reward cell"
        )


def reward(ctx: Context, cell: SFT) -> Reward:
    """The log-odds of its verdicts."""
    from rlhf_jax.kinds.reward_models import member
    from rlhf_jax.rl.critique import verdict_reward

    cfg, template = ctx.study.model_of(cell), cell.task.template
    judge = member(ctx, cell, "judge")
    return verdict_reward(judge, cfg, ctx.corpus.tokenizer, ctx.runtime.axes, template)
