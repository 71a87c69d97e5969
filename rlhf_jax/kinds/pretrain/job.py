"""Pretraining cells, and what all language modelling has in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from rlhf_jax.cost.flops import all_conventions, flops_per_token, param_counts
from rlhf_jax.evals.heldout import heldout_loss
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.model import Axes, decays, initialised
from rlhf_jax.model.sharding import place_batch
from rlhf_jax.objectives.named import RESERVED, named_objective
from rlhf_jax.study.config import ModelConfig
from rlhf_jax.train import Member, Population, init_state, train_step, train_together
from rlhf_jax.train.loop import final_state
from rlhf_jax.train.metrics import Throughput
from rlhf_jax.train.state import hyper_parameters


def pretrain(ctx: Context, cell: Pretrain) -> dict[str, Any]:
    """Next-token prediction on the corpus; the result is the held-out loss with its error."""
    (outcome,) = pretrain_together([ctx])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def pretrain_together(ctxs: Sequence[Context]) -> list[dict[str, Any] | Exception]:
    """`pretrain` for cells that may train together (`rlhf_jax.study.populations`): of each its
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
    outcomes: list[dict[str, Any] | Exception] = []
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


def _pretrained(ctx: Context, params: Any, steps: int) -> dict[str, Any]:
    cell, T = ctx.cell, ctx.study.corpus.seq_len
    assert isinstance(cell, Pretrain)
    tokens = steps * cell.batch * T
    return {
        "heldout": {
            **heldout_loss(params, cell.model, ctx.corpus, ctx.runtime, cell.batch),
            "params": param_counts(cell.model)["total"],
            "param_counts": param_counts(cell.model),
            "train_tokens": tokens,
            "batch_tokens": cell.batch * T,
            "flops": all_conventions(cell.model, T, tokens),
        }
    }


def metrics_row(cfg: ModelConfig, start: int, batch: int, seq_len: int, nats: bool = True) -> Any:
    """Lines of metrics.jsonl of a run that goes on from optimizer step `start`. `nats`: the loss is
    a token's negative log-likelihood, and has an equivalent in bits per byte."""
    positions = batch * seq_len  # processed a step
    per_token = flops_per_token(cfg, seq_len, "exact")
    throughput = Throughput(per_token)

    def row(metrics: dict[str, float], totals: dict[str, float]) -> dict[str, float]:
        totals["tokens"] = totals.get("tokens", start * positions) + positions
        totals["targets"] = totals.get("targets", 0) + metrics["weight"]
        found = {
            k: v / max(metrics["weight"], 1.0) for k, v in metrics.items() if k not in RESERVED
        }
        if nats:
            bits = metrics["loss"] * metrics["weight"] / math.log(2)
            found["bits_per_byte"] = bits / max(metrics["bytes"], 1.0)
        return {
            "tokens": totals["tokens"],
            "targets": totals["targets"],
            "flops": totals["tokens"] * per_token,
            "loss": metrics["loss"],
            **found,
            "lr": metrics["lr"],
            "grad_norm": metrics["grad_norm"],
            **throughput(positions),
        }

    return row
