"""Evaluation cells: a policy before and after, on the same held-out prompts with the same sampler,
temperature and random keys."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from rlhf_jax.cells import Evaluate
from rlhf_jax.data.annotators import gold_score
from rlhf_jax.data.prompts import prompts_from
from rlhf_jax.evals.diversity import distinct_n
from rlhf_jax.evals.heldout import heldout_loss
from rlhf_jax.evals.intervals import paired_interval, wilson_interval
from rlhf_jax.evals.next_tokens import next_tokens
from rlhf_jax.generate import generate, join, response_log_probs
from rlhf_jax.jobs.context import Context
from rlhf_jax.parallel import place_batch
from rlhf_jax.rl.ppo import reward_scores

CHUNK = 64
SHOWN = 12  # samples kept for the report, picked by seed
NEXT_WORD_PROMPTS = ("The colour of the sky is", "And the king said", "My love is")


def evaluate(ctx: Context, cell: Evaluate) -> dict[str, Any]:
    """Gold and proxy reward, KL from the policy before, diversity and perplexity, with paired
    intervals over prompts of the test split."""
    task, decode = cell.task, ctx.corpus.tokenizer.decode
    prompts = prompts_from(
        ctx.corpus, "test", cell.prompts, task.prompt_len, cell.seed, task.response_len
    )
    ids = np.array([p.prompt_ids for p in prompts], np.int32)
    models = {"before": ctx.language_model(cell.before), "after": ctx.language_model(cell.after)}
    sides = _sample(ctx, cell, models, ids)
    texts = {n: [decode(r.tolist()) for r in s["tokens"]] for n, s in sides.items()}
    gold = {n: gold_score(t) for n, t in texts.items()}
    gain, interval = paired_interval(gold["after"] - gold["before"], seed=cell.seed)
    wins = float(
        np.sum(gold["after"] > gold["before"]) + 0.5 * np.sum(gold["after"] == gold["before"])
    )
    kl, kl_interval = paired_interval(sides["after"]["log_ratio"], seed=cell.seed)
    summary: dict[str, Any] = {
        "n_prompts": len(ids),
        "temperature": cell.temperature,
        "gain": gain,
        "gain_interval": interval,
        "win_rate": wins / len(ids),
        "win_rate_interval": wilson_interval(wins, len(ids)),
        "kl": kl,
        "kl_interval": kl_interval,
    }
    for name, side in sides.items():
        heldout = heldout_loss(models[name], ctx.model, ctx.corpus, ctx.runtime)
        mask = side["mask"]
        summary |= {
            f"gold_{name}": float(gold[name].mean()),
            f"proxy_{name}": float(side["proxy"].mean()),
            f"entropy_{name}": float((side["entropy"] * mask).sum() / mask.sum()),
            f"distinct_1_{name}": distinct_n(side["tokens"], mask, 1),
            f"distinct_2_{name}": distinct_n(side["tokens"], mask, 2),
            f"length_{name}": float(mask.sum(-1).mean()),
            f"perplexity_{name}": math.exp(heldout["loss"]),
        }
    shown = np.random.default_rng(cell.seed).permutation(len(ids))[:SHOWN]
    summary["samples"] = [
        {
            "prompt": decode(ids[i].tolist()),
            "before": texts["before"][i],
            "after": texts["after"][i],
            "gold_before": float(gold["before"][i]),
            "gold_after": float(gold["after"][i]),
        }
        for i in shown
    ]
    summary["next_words"] = {
        name: {
            p: next_tokens(params, ctx.model, ctx.corpus.tokenizer, p, ctx.runtime)
            for p in NEXT_WORD_PROMPTS
        }
        for name, params in models.items()
    }
    summary["gold"] = {n: [float(g) for g in gold[n]] for n in gold}
    return {"evaluation": summary}


def _sample(
    ctx: Context, cell: Evaluate, models: dict[str, Any], ids: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Of each side: tokens, mask, entropy (n, R); proxy score, log-ratio to `before` (n,)."""
    cfg, run, R = ctx.model, ctx.runtime, cell.task.response_len
    frozen = ctx.reward_model(cell.reward)

    @jax.jit
    def side(params: Any, before: Any, frozen: Any, prompts_BP: jax.Array, key: jax.Array) -> dict:
        sampled = generate(
            params, cfg, prompts_BP, key, length=R, temperature=cell.temperature, axes=run.axes
        )
        rows = join(prompts_BP, sampled.tokens_BR, sampled.mask_BR)
        _, entropy_BR = response_log_probs(params, cfg, rows, R, cell.temperature, run.axes)
        before_BR, _ = response_log_probs(before, cfg, rows, R, cell.temperature, run.axes)
        return {
            "tokens": sampled.tokens_BR,
            "mask": sampled.mask_BR,
            "entropy": entropy_BR,
            "proxy": reward_scores(frozen, cfg, rows, sampled.mask_BR, run.axes),
            "log_ratio": ((sampled.log_probs_BR - before_BR) * sampled.mask_BR).sum(-1),
        }

    sides = {}
    for name, params in models.items():
        out = []
        for i in range(0, len(ids), CHUNK):
            ctx.beat.progress(step=i, steps=len(ids), phase=f"sampling {name}")
            part = ids[i : i + CHUNK]
            padded = np.pad(part, ((0, CHUNK - len(part)), (0, 0)), mode="edge")
            key = jax.random.fold_in(jax.random.key(cell.seed), i)
            batch = place_batch({"prompts": padded}, run.mesh)
            got = jax.device_get(side(params, models["before"], frozen, batch["prompts"], key))
            out.append({k: np.asarray(v)[: len(part)] for k, v in got.items()})
        sides[name] = {k: np.concatenate([o[k] for o in out]) for k in out[0]}
    return sides
