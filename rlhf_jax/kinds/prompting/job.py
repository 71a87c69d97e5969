"""Prompting cells: what a model makes of tasks put to it in words, with and without worked
examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlhf_jax.data.packing import left_padded
from rlhf_jax.data.tokenizer import PAD
from rlhf_jax.evals.prompting import (
    Answers,
    Item,
    completed,
    encoded,
    few_shot,
    summary,
    worked_examples,
)
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.prompting.cell import Prompting
from rlhf_jax.kinds.prompting.result import Answered, PromptingResult
from rlhf_jax.study.callables import call_for_list
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.results import from_json

if TYPE_CHECKING:
    import jax

CHUNK = 64  # items at once; no answer depends on it
SHOWN = 2  # items of each type and group whose prompt and completion are kept

Program = Callable[[Any, "jax.Array", "jax.Array", "jax.Array"], tuple["jax.Array", "jax.Array"]]


class Asked(NamedTuple):
    """Items with so many worked examples: their prompts, and token ids of those and of every
    choice."""

    shots: int
    items: list[Item]
    prompts: list[str]
    ids: list[list[int]]
    choices: list[list[list[int]]]


def run(ctx: Context, cell: Prompting) -> PromptingResult:
    """Exact match and multiple choice of every type, group and number of shots, on items of the
    test split; worked examples are of the training split. Also the first items of each type with
    what was completed, and how many tokens prompts take, answer included: one of more than `seen`,
    a row of training, asks for positions that no training row had."""
    params, program = ctx.language_model(cell.policy), _program(ctx, cell)
    types: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    tokens: dict[str, dict[str, float]] = {}
    for shots, items, prompts, ids, choices in list(asked(ctx, cell)):
        lengths = [len(x) + cell.answer_len for x in ids]
        tokens[str(shots)] = {"mean": float(np.mean(lengths)), "longest": max(lengths)}
        answers = _answers(ctx, cell, params, program, items, ids, choices, shots)
        of_types, of_groups = summary(answers, cell.seed)
        types += [{"shots": shots, **row} for row in of_types]
        groups += [{"shots": shots, **row} for row in of_groups]
        shown += _shown(answers, prompts, shots)
    found = {
        "template": cell.template,
        "items": cell.items,
        "shots": cell.shots,
        "tokens": tokens,
        "seen": ctx.study.corpus.seq_len,
        "groups": groups,
        "types": types,
        "shown": shown,
    }
    return PromptingResult(from_json(Answered, found))


def asked(ctx: Context, cell: Prompting) -> Iterator[Asked]:
    """What is asked, for each number of shots.

    Raises:
        ConfigError: the tasks give too few items, or ones that are too long.
    """
    items = tasks(cell, "test", cell.items)
    pool = tasks(cell, "train", max(cell.items, 4 * max(cell.shots)))
    for shots in cell.shots:
        examples = worked_examples(items, pool, shots, cell.seed)
        prompts = [few_shot(i, e, cell.template) for i, e in zip(items, examples, strict=True)]
        ids, choices = encoded(ctx.corpus.tokenizer, items, prompts, cell.template)
        _check_lengths(ctx, cell, shots, ids, choices, prompts)
        yield Asked(shots, items, prompts, ids, choices)


def tasks(cell: Prompting, split: str, n: int) -> list[Item]:
    """`n` items of each type and group of a split."""
    where, what = f"{cell.name}.tasks", "items of rlhf_jax.evals.prompting"
    items = call_for_list(cell.tasks, where, (split, n, cell.seed), Item, what)
    if not items:
        raise ConfigError(
            f"{where} = {cell.tasks!r} gave no items for the {split} split; expected {what}"
        )
    return items


def _check_lengths(
    ctx: Context,
    cell: Prompting,
    shots: int,
    ids: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    prompts: Sequence[str],
) -> None:
    """Raises:
    ConfigError: an answer is longer than `answer_len`, or a prompt with one than the model takes.
    """
    answer = max((len(c) for of_item in choices for c in of_item), default=0)
    if answer > cell.answer_len:
        raise ConfigError(
            f"{cell.name}: a choice takes {answer} tokens with its end, answer_len is "
            f"{cell.answer_len}; raise it"
        )
    at = max(range(len(ids)), key=lambda i: len(ids[i]))
    needed = len(ids[at]) + cell.answer_len
    if needed > ctx.model.max_positions:
        raise ConfigError(
            f"{cell.name}: a prompt with {shots} shots takes {len(ids[at])} tokens and its answer "
            f"up to {cell.answer_len}, but model.max_positions = {ctx.model.max_positions}; use "
            f"fewer shots or shorter tasks. It begins {prompts[at][:60]!r}"
        )


def _answers(
    ctx: Context,
    cell: Prompting,
    params: Any,
    program: Program,
    items: Sequence[Item],
    ids: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    shots: int,
) -> Answers:
    """Greedy completions, and log-probabilities a token of all choices; one compiled shape for all
    items."""
    import jax

    from rlhf_jax.model.sharding import joined, map_rows
    from rlhf_jax.train import Stopped

    prompts_NP = left_padded(ids, max(map(len, ids)))
    choices_NKA = np.full((len(items), max(map(len, choices)), cell.answer_len), PAD, np.int32)
    for i, of_item in enumerate(choices):
        for k, choice in enumerate(of_item):
            choices_NKA[i, k, : len(choice)] = choice

    def of(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return program(params, batch["prompts"], batch["choices"], jax.random.key(cell.seed))

    parts, done = [], 0
    ctx.beat.progress(step=0, steps=len(items), phase=f"{shots} shots")
    inputs = {"prompts": prompts_NP, "choices": choices_NKA}
    for part in map_rows(of, inputs, CHUNK, ctx.runtime.mesh):
        parts.append(part)
        done += len(part[0])
        ctx.beat.progress(step=done, steps=len(items), phase=f"{shots} shots")
        if ctx.runtime.stop.is_set():
            raise Stopped(f"stopped after {done} of {len(items)} items with {shots} shots")
    tokens, log_probs = joined(parts)
    lengths_NK = (choices_NKA != PAD).sum(-1)
    a_token_NK = log_probs.astype(np.float64) / np.maximum(lengths_NK, 1)
    return Answers(
        items,
        [completed(ctx.corpus.tokenizer, row) for row in tokens.tolist()],
        np.where(lengths_NK > 0, a_token_NK, np.nan),
    )


def _program(ctx: Context, cell: Prompting) -> Program:
    import jax

    from rlhf_jax.model.sampler import generate
    from rlhf_jax.model.scoring import choice_log_probs

    cfg, axes = ctx.model, ctx.runtime.axes

    @jax.jit
    def answer(
        params: Any, prompts_BP: jax.Array, choices_BKA: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        said = generate(
            params, cfg, prompts_BP, key, length=cell.answer_len, temperature=0.0, axes=axes
        )
        return said.tokens_BR, choice_log_probs(params, cfg, prompts_BP, choices_BKA, axes)

    return answer


def _shown(answers: Answers, prompts: Sequence[str], shots: int) -> list[dict[str, Any]]:
    """The first items of each type and group: prompt, answer, completion, and the choice taken."""
    found: list[dict[str, Any]] = []
    count: dict[tuple[str, str], int] = {}
    for i, item in enumerate(answers.items):
        kind = (item.group, item.type)
        count[kind] = count.get(kind, 0) + 1
        if count[kind] <= SHOWN:
            found.append(
                {
                    "shots": shots,
                    "group": item.group,
                    "type": item.type,
                    "prompt": prompts[i],
                    "text": item.text,
                    "answer": item.answer,
                    "completion": answers.completions[i],
                    "chosen": item.choices[int(np.nanargmax(answers.log_probs_NK[i]))],
                }
            )
    return found
