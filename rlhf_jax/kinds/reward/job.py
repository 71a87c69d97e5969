"""Reward-model cells: a loss on rankings, and a report that says how far to trust the scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from rlhf_jax.data.prompts import prompts_from
from rlhf_jax.data.tokenizer import EOS, PAD
from rlhf_jax.evals.rankings import label_notes, ranking_report
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.rankings import (
    AGREE,
    Arrays,
    ceilings,
    over_rows,
    rankings,
    rows_of,
    training_batches,
)
from rlhf_jax.kinds.reward.cell import Reward as RewardCell
from rlhf_jax.kinds.reward.result import RewardReport, RewardResult
from rlhf_jax.kinds.reward_models import member
from rlhf_jax.model import decays, param_axes, with_scalar_head
from rlhf_jax.model.sharding import place
from rlhf_jax.objectives import check_ranking_loss, ranked_scores, reward_modelling
from rlhf_jax.rl.scores import Reward, model_reward, standardising, without_spread
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.results import from_json
from rlhf_jax.train import init_state, make_train_step, train

DEMONSTRATIONS = 256  # true continuations that are to score 0, at most


def run(ctx: Context, cell: RewardCell) -> RewardResult:
    """Train on the training comparisons, report on the held-out ones. `gain` and `bias` bring the
    score to a common scale (`normalised`): the KL coefficient then means the same for every reward
    model."""
    run, cfg = ctx.runtime, ctx.model
    check_ranking_loss(cell.loss, cell.margin)
    shown = demonstrations(ctx, cell) if cell.normalise == "demonstrations" else None
    data = rankings(ctx, cell)
    steps, batch_at = training_batches(ctx, cell, data["train"])
    head = with_scalar_head(ctx.language_model(cell.base), cfg, jax.random.key(cell.seed))
    state = init_state(place(head, param_axes(cfg, True), run.mesh, run.axes), cell.optim, steps)

    def row(metrics: dict[str, float], totals: dict[str, float]) -> dict[str, float]:
        accuracy = metrics["accuracy"] / max(metrics["weight"], 1.0)
        return {k: metrics[k] for k in ("loss", "lr", "grad_norm")} | {"accuracy": accuracy}

    def objective(params: Any, batch: dict[str, jax.Array]) -> Any:
        return reward_modelling(params, batch, cfg, run.axes, cell.loss, cell.margin, cell.centre)

    step = make_train_step(objective, cell.optim, partial(decays, cfg), run.axes, run.accumulate)
    trained = train(ctx.folder, state, step, batch_at, steps, run, row, ctx.beat).params
    ctx.beat.progress(phase="held-out report")
    score = jax.jit(lambda p, b: ranked_scores(p, b, cfg, run.axes))

    def scores(rows: Arrays) -> np.ndarray:
        return over_rows(ctx, lambda b: score(trained, b), rows, cell.batch)

    gain, bias = normalised(scores, data["train"], shown)
    heldout = data["validation"]
    limits, found = ceilings(ctx, cell, heldout), scores(heldout)
    report = ranking_report(found, heldout, limits)
    report |= {"gain": gain, "bias": bias, "prompts": len(data["train"]["ranks"])}
    notes = label_notes(data["train"]["ranks"], heldout["ranks"], limits.get(AGREE))
    if without_spread(found[heldout["ranks"] >= 0]):
        notes.append(
            "the model gives every held-out completion the same score: it has learned nothing, and "
            "as a reward it teaches nothing. Train it longer, or look at its comparisons"
        )
    report["notes"] = ctx.noted(notes)
    return RewardResult(from_json(RewardReport, report))


def reward(ctx: Context, cell: RewardCell) -> Reward:
    """Its normalised score."""
    cfg = ctx.study.model_of(cell)
    return model_reward([member(ctx, cell)], [cfg], ctx.runtime.axes)


def normalised(
    scores: Callable[[Arrays], np.ndarray], rows: Arrays, shown: Arrays | None
) -> tuple[float, float]:
    """(gain, bias) after training. Without demonstrations the compared completions, samples of the
    policy to be trained, have mean 0 and variance 1 (Ziegler et al. 2019). With them, they have
    mean 0, and the gain stays 1 (Stiennon et al. 2020)."""
    if shown is not None:
        return 1.0, -float(scores(shown).mean())
    return standardising(scores(rows)[rows["ranks"] >= 0])


def demonstrations(ctx: Context, cell: RewardCell) -> Arrays:
    """True continuations of prompts like the compared ones, one to a prompt, EOS included.

    Raises:
        ConfigError: the prompts are not openings of the corpus's sentences, or none goes on so
            shortly.
    """
    compared = cell.continued(ctx.study)
    task, n = compared.task, min(DEMONSTRATIONS, compared.prompts)
    longest = task.response_len
    found = prompts_from(ctx.corpus, "train", n, task.prompt_len, compared.seed, longest)
    found = [p for p in found if len(p.response_ids) < longest]  # EOS takes a token
    if not found:
        raise ConfigError(
            f"{cell.name}.normalise = 'demonstrations': none of {n} true continuations takes fewer "
            f"than {longest} tokens; raise {compared.name}.task.response_len or use 'samples'"
        )
    responses = np.full((len(found), 1, longest), PAD, np.int32)
    for i, prompt in enumerate(found):
        ids = (*prompt.response_ids, EOS)
        responses[i, 0, : len(ids)] = ids
    return rows_of(
        {
            "prompts": np.array([p.prompt_ids for p in found], np.int32),
            "responses": responses,
            "mask": (responses != PAD).astype(np.float32),
            "ranks": np.ones((len(found), 1), np.int32),
        }
    )
