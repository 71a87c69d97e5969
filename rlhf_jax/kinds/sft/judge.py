"""How well a model that has learned from critiques judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.chat import prompt_ids
from rlhf_jax.data.feedback import Critique, Record
from rlhf_jax.data.signals import verdict_prompt
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.sft.cell import SFT
from rlhf_jax.kinds.sft.result import Agreement, Judge
from rlhf_jax.rl.critique import verdict_scores
from rlhf_jax.rl.scores import standardising
from rlhf_jax.study.cell import names_cell
from rlhf_jax.study.config import ConfigError

JUDGED = 512  # records that the scores are normalised on, at most, and tested on


def judge_report(ctx: Context, cell: SFT, params: Any, records: Sequence[Record]) -> Judge | None:
    """How a model that has learned from `records` judges, by the log-odds of its verdicts; None if
    they hold no verdicts. `gain` and `bias` bring the score to mean 0 and variance 1 on the
    responses that it learned to judge, as those of a reward model; `heldout` is there if a feedback
    cell gave the records."""
    if not _judged(records):
        return None
    score = verdict_scores(
        params,
        ctx.model,
        ctx.corpus.tokenizer,
        ctx.runtime,
        ctx.study.corpus.seq_len,
        cell.task.template,
    )

    def scores(critiques: Sequence[Critique]) -> np.ndarray:
        return score([c.prompt for c in critiques], [c.response for c in critiques])

    def fits(critique: Critique) -> bool:
        """Whether a row has room for what is judged: of such records the cell learned no
        verdict."""
        text = verdict_prompt(critique.prompt, critique.response)
        ids = prompt_ids(ctx.corpus.tokenizer, text, cell.task.template)
        return len(ids) <= ctx.study.corpus.seq_len

    ctx.beat.progress(phase="verdicts")
    learned = [critique for critique in _judged(records) if fits(critique)]
    if not learned:
        raise ConfigError(
            f"{cell.name}: no verdict fits into a row of {ctx.study.corpus.seq_len} tokens with "
            f"its prompt and response; shorten them or raise corpus.seq_len"
        )
    found = scores(learned)
    gain, bias = standardising(found)
    notes: list[str] = []
    if len(verdicts := {critique.verdict for critique in learned}) == 1:
        same = f"all {len(learned)} verdicts are {verdicts.pop()!r}"
        notes = [f"{same}: nothing tells good responses from bad ones"]
    tested: list[Critique] = []
    name = cell.records
    if name and names_cell(name) and "verdicts" in ctx.study[name].roles():
        tested = [c for c in _judged(ctx.play("verdicts", name)) if fits(c)]
    return Judge(
        gain=gain,
        bias=bias,
        notes=ctx.noted(notes),
        train=agreement(found, learned),
        heldout=agreement(scores(tested), tested) if tested else None,
    )


def agreement(log_odds: np.ndarray, critiques: Sequence[Critique]) -> Agreement:
    """A model's verdicts beside the critic's.

    Args:
        log_odds: (n,) of good against bad, in nats.

    Returns:
        n; `good`, the critic's share of good verdicts; `accuracy`, how often the sign agrees, even
        odds half; `majority`, how often the more frequent verdict would; `ranking`, the share of
        pairs of a good and a bad response in which the good one scores higher, ties half (the area
        under the ROC curve), and `ranking_same_prompt` of responses to one prompt; None without
        such a pair.
    """
    good = np.array([c.verdict == "good" for c in critiques])
    prompts = np.array([c.prompt for c in critiques])
    gap = log_odds[good][:, None] - log_odds[~good][None]
    right = (gap > 0) + 0.5 * (gap == 0)
    same = prompts[good][:, None] == prompts[~good][None]
    share = float(good.mean())
    return Agreement(
        n=len(good),
        good=share,
        accuracy=float(np.mean(np.where(log_odds == 0, 0.5, (log_odds > 0) == good))),
        majority=max(share, 1 - share),
        ranking=float(right.mean()) if right.size else None,
        ranking_same_prompt=float(right[same].mean()) if same.any() else None,
    )


def _judged(records: Sequence[Record]) -> list[Critique]:
    return [r for r in records if isinstance(r, Critique) and r.verdict][:JUDGED]
