"""Feedback cells: a simulated labeller edits or criticises a policy's samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from rlhf_jax.data.annotators import correct, criticise
from rlhf_jax.data.feedback import Critique, Record, read, write
from rlhf_jax.kinds.bases import FromRankings
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.feedback.cell import Feedback
from rlhf_jax.kinds.feedback.result import Collected, FeedbackResult
from rlhf_jax.kinds.rankings import encoded, fitting
from rlhf_jax.kinds.sampling import Arrays, Split, decoded, gold_of, sampled
from rlhf_jax.study.config import ConfigError

FILES = {"train": "records.jsonl", "validation": "heldout.jsonl"}


def run(ctx: Context, cell: Feedback) -> FeedbackResult:
    """Sample, then edit or criticise. `results/records.jsonl` holds the records of training
    prompts, `results/heldout.jsonl` those of held-out ones, which come from different documents. A
    response without an edit makes no correction."""
    splits = sampled(ctx, cell, lambda chunk: {"gold": gold_of(ctx, cell, chunk)})
    count = {}
    for split, name in FILES.items():
        made = made_of(ctx, cell, splits[split])
        if not made:
            raise ConfigError(
                f"{cell.name}: the labeller had nothing to edit in "
                f"{splits[split].arrays['gold'].size} responses to {split} prompts; raise prompts, "
                "heldout_prompts, k or min_gold"
            )
        write(ctx.folder.results / name, made)
        count[split] = len(made)
    gold = np.concatenate([split.arrays["gold"] for split in splits.values()])
    return FeedbackResult(
        Collected(
            prompts=cell.prompts + cell.heldout_prompts,
            k=cell.k,
            train_records=count["train"],
            validation_records=count["validation"],
            gold_mean=float(gold.mean()),
            good=float(np.mean(gold >= cell.min_gold)),
        )
    )


def records(ctx: Context, cell: Feedback) -> tuple[Path, list[Record]]:
    """Those of training prompts."""
    path = ctx.folders[cell.name].result_file(FILES["train"])
    return path, read(path)


def verdicts(ctx: Context, cell: Feedback) -> list[Critique]:
    """Critiques of responses to held-out prompts."""
    return read(ctx.folders[cell.name].result_file(FILES["validation"]), Critique)


def comparisons(ctx: Context, cell: Feedback, learner: FromRankings) -> dict[str, Arrays]:
    """What the records prefer, as token ids, by split."""
    folder = ctx.folders[cell.name]
    return {s: encoded(fitting(ctx, learner, str(folder.result_file(f)))) for s, f in FILES.items()}


def made_of(ctx: Context, cell: Feedback, split: Split) -> list[Record]:
    """What the labeller makes of the responses, in their order. Words and edits go by sentiment,
    verdicts by the task's gold score."""
    asked = [prompt for prompt in split.asked for _ in range(cell.k)]
    pairs = list(zip(asked, decoded(ctx, split.arrays["responses"]), strict=True))
    if cell.gives == "corrections":
        edits = (correct(*pair, cell.min_gold) for pair in pairs)
        return [edit for edit in edits if edit is not None]
    good = split.arrays["gold"].ravel() >= cell.min_gold
    return [
        replace(criticise(*pair, cell.min_gold), verdict="good" if g else "bad")
        for pair, g in zip(pairs, good, strict=True)
    ]
