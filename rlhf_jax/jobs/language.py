"""Cells that train a language model: pretraining and supervised fine-tuning."""

from __future__ import annotations

import math
from typing import Any

import jax

from rlhf_jax.cells import SFT, Pretrain
from rlhf_jax.config import ConfigError, OptimConfig
from rlhf_jax.data.feedback import Demonstration, approved, prompts_from, write
from rlhf_jax.data.loader import batch_rows
from rlhf_jax.data.packing import pack_examples
from rlhf_jax.data.tokenizer import EOS
from rlhf_jax.evals.heldout import heldout_loss
from rlhf_jax.jobs.context import Context
from rlhf_jax.model import init, param_axes
from rlhf_jax.objectives import language_modelling
from rlhf_jax.parallel import place, place_batch
from rlhf_jax.scaling.flops import all_conventions, flops_per_token, param_counts
from rlhf_jax.train import Checkpoints, init_state, make_train_step, train
from rlhf_jax.train.metrics import Throughput
from rlhf_jax.train.state import hyper_parameters


def pretrain(ctx: Context, cell: Pretrain) -> dict[str, Any]:
    """Next-token prediction on the corpus; the result is the held-out loss with its error."""
    run, cfg, T = ctx.runtime, cell.model, ctx.study.corpus.seq_len
    steps = cell.tokens // (cell.batch * T)
    params = jax.jit(lambda key: init(cfg, key))(jax.random.key(cell.seed))
    state = init_state(place(params, param_axes(cfg), run.mesh, run.axes), cell.optim, steps)
    start = 0
    if cell.continues:
        parent = Checkpoints(ctx.folders[cell.continues].checkpoints, log=run.log)
        restored = parent.restore(state)
        parent.close()
        if restored is None:
            raise FileNotFoundError(f"{cell.continues} has no whole checkpoint to continue from")
        start = int(restored[0].step)
        state = restored[0].replace(hyper=hyper_parameters(cell.optim, start, steps))

    def batch_at(t: int) -> dict[str, jax.Array]:
        return place_batch(ctx.corpus.batch("train", cell.batch, cell.seed, t), run.mesh, run.axes)

    trained = _train(ctx, state, cell.optim, batch_at, start, steps, cell.batch, T)
    tokens = steps * cell.batch * T
    return {
        "heldout": {
            **heldout_loss(trained, cfg, ctx.corpus, run, cell.batch),
            "params": param_counts(cfg)["total"],
            "param_counts": param_counts(cfg),
            "train_tokens": tokens,
            "flops": all_conventions(cfg, T, tokens),
        }
    }


def sft(ctx: Context, cell: SFT) -> dict[str, Any]:
    """Fine-tuning on real continuations that the labeller approves of; loss on completions only."""
    run, task, T = ctx.runtime, cell.task, ctx.study.corpus.seq_len
    prompts = prompts_from(
        ctx.corpus, "train", cell.examples, task.prompt_len, cell.seed, task.response_len - 1
    )
    shown = approved(prompts, cell.min_gold)
    write(
        ctx.folder.results / "demonstrations.jsonl",
        [Demonstration(p.prompt, p.response) for p in shown],
    )
    pairs = [(p.prompt_ids, (*p.response_ids, EOS)) for p in shown]
    rows, _ = pack_examples(pairs, T, ctx.corpus.token_bytes)
    n = len(rows["tokens"])
    if n < cell.batch:
        raise ConfigError(
            f"{cell.name}: {len(shown)} demonstrations fill {n} rows of {T} tokens, less than one "
            f"batch of {cell.batch}; raise examples or lower batch"
        )
    steps = cell.epochs * (n // cell.batch)

    def batch_at(t: int) -> dict[str, jax.Array]:
        chosen = batch_rows(n, cell.batch, cell.seed, t)
        return place_batch({k: v[chosen] for k, v in rows.items()}, run.mesh, run.axes)

    state = init_state(ctx.language_model(cell.base), cell.optim, steps)
    trained = _train(ctx, state, cell.optim, batch_at, 0, steps, cell.batch, T)
    heldout = heldout_loss(trained, ctx.model, ctx.corpus, run, cell.batch)
    return {"heldout": heldout, "sft": {"demonstrations": len(shown), "steps": steps}}


def _train(
    ctx: Context,
    state: Any,
    optim: OptimConfig,
    batch_at: Any,
    start: int,
    steps: int,
    batch: int,
    seq_len: int,
) -> Any:
    run, cfg = ctx.runtime, ctx.model
    positions = batch * seq_len  # processed a step
    per_token = flops_per_token(cfg, seq_len, "exact")
    throughput = Throughput(per_token)

    def row(metrics: dict[str, float], totals: dict[str, float]) -> dict[str, float]:
        totals["tokens"] = totals.get("tokens", start * positions) + positions
        totals["targets"] = totals.get("targets", 0) + metrics["weight"]
        nats = metrics["loss"] * metrics["weight"]
        return {
            "tokens": totals["tokens"],
            "targets": totals["targets"],
            "flops": totals["tokens"] * per_token,
            "loss": metrics["loss"],
            "bits_per_byte": nats / math.log(2) / max(metrics["bytes"], 1.0),
            "lr": metrics["lr"],
            "grad_norm": metrics["grad_norm"],
            **throughput(positions),
        }

    step = make_train_step(
        lambda p, b: language_modelling(p, b, cfg, run.axes), optim, run.axes, run.accumulate
    )  # fmt: skip
    return train(ctx.folder, state, step, batch_at, steps, run, row, ctx.beat).params
