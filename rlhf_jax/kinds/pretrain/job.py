"""Pretraining cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from rlhf_jax.cost.flops import all_conventions, param_counts
from rlhf_jax.evals.heldout import heldout_loss
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.language_modelling import metrics_row
from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.kinds.pretrain.result import PretrainHeldOut, PretrainResult
from rlhf_jax.model import Axes, decays, initialised
from rlhf_jax.model.sharding import place_batch
from rlhf_jax.objectives.named import named_objective
from rlhf_jax.train import Member, Population, init_state, train_step, train_together
from rlhf_jax.train.loop import final_state
from rlhf_jax.train.state import hyper_parameters


def run(ctx: Context, cell: Pretrain) -> PretrainResult:
    """Next-token prediction on the corpus; the result is the held-out loss with its error."""
    (outcome,) = run_together([ctx])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_together(ctxs: Sequence[Context]) -> list[PretrainResult | Exception]:
    """`run` for cells that may train together (`rlhf_jax.study.populations`): of each its
    results, or the reason why it failed."""
    ctx = ctxs[0]
    run, cell, T = ctx.runtime, ctx.cell, ctx.study.corpus.seq_len
    assert isinstance(cell, Pretrain)
    population = Population(len(ctxs), jax.local_devices()) if len(ctxs) > 1 else None
    axes = Axes() if population else run.axes
    loss = named_objective(cell.objective, f"{cell.name}.objective", cell.model, axes)
    step = train_step(loss, cell.optim, partial(decays, cell.model), axes, run.accumulate)
    compiled = population.compiled(step) if population else jax.jit(step, donate_argnums=0)
    members = [_pretrain_member(c, alone=population is None) for c in ctxs]
    steps = cell.tokens // (cell.batch * T)
    outcomes: list[PretrainResult | Exception] = []
    for c, trained in zip(
        ctxs, train_together(members, compiled, steps, run, population), strict=True
    ):
        outcomes.append(
            trained if isinstance(trained, Exception) else _pretrained(c, trained.params, steps)
        )
    return outcomes


def _pretrain_member(ctx: Context, alone: bool) -> Member:
    run, cell, T = ctx.runtime, ctx.cell, ctx.study.corpus.seq_len
    assert isinstance(cell, Pretrain)
    cfg, steps = cell.model, cell.tokens // (cell.batch * T)
    ctx.left_out.update(ctx.corpus.left_out)
    params = initialised(cfg, jax.random.key(cell.seed), run.mesh, run.axes)
    state = init_state(params, cell.optim, steps)
    start = 0
    if cell.continues:
        state = final_state(ctx.folders[cell.continues], state)
        start = int(state.step)
        state = state.replace(hyper=hyper_parameters(cell.optim, start, steps))

    subset = cell.unique_tokens and cell.unique_tokens // T  # rows; each has at most T targets

    def batch_at(t: int) -> Any:
        batch = ctx.corpus.batch("train", cell.batch, cell.seed, t, subset)
        return place_batch(batch, run.mesh, run.axes) if alone else batch

    row = metrics_row(ctx.model, start, cell.batch, T, nats=not cell.objective)
    return Member(ctx.folder, state, batch_at, row, ctx.beat)


def _pretrained(ctx: Context, params: Any, steps: int) -> PretrainResult:
    cell, T = ctx.cell, ctx.study.corpus.seq_len
    assert isinstance(cell, Pretrain)
    tokens = steps * cell.batch * T
    counts = param_counts(cell.model)
    return PretrainResult(
        PretrainHeldOut(
            **heldout_loss(params, cell.model, ctx.corpus, ctx.runtime, cell.batch),  # type: ignore[arg-type]
            params=counts["total"],
            param_counts=dict(counts),
            train_tokens=tokens,
            batch_tokens=cell.batch * T,
            flops=all_conventions(cell.model, T, tokens),
        )
    )
