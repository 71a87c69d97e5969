"""Evaluation cells: a policy before and after, on the same held-out prompts with the same sampler,
temperature and random keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from rlhf_jax.data.tokenizer import EOS
from rlhf_jax.evals.calibration import reliability
from rlhf_jax.evals.diversity import distinct_n, self_similarity, similarity_within_prompts
from rlhf_jax.evals.heldout import HeldoutRows, heldout_rows, tax
from rlhf_jax.evals.intervals import paired_interval
from rlhf_jax.evals.modes import mode_report
from rlhf_jax.evals.next_tokens import likeliest
from rlhf_jax.evals.win_rate import gain_at_equal_length, length_controlled, win_rate
from rlhf_jax.kinds.context import Context, TaskPrompts
from rlhf_jax.kinds.evaluate.cell import Evaluate
from rlhf_jax.kinds.evaluate.result import EvaluateResult, Evaluation
from rlhf_jax.kinds.sampling import save_arrays, split_key
from rlhf_jax.model.sampler import generate, sample_keys
from rlhf_jax.model.scoring import join, response_log_probs
from rlhf_jax.model.sharding import joined, map_rows
from rlhf_jax.study.callables import LABELS, call_for_list
from rlhf_jax.study.config import ModelConfig
from rlhf_jax.study.results import from_json
from rlhf_jax.train import Stopped

Arrays = dict[str, np.ndarray]
CHUNK = 64  # responses sampled at a time; what is sampled does not depend on it
SHOWN = 12  # samples kept for the report, picked by seed
AGAIN = 64  # prompts that are sampled several times, for the similarity of responses to one prompt
TIMES = 4  # responses to each of those
SIDES = ("before", "after")
NEXT_WORDS = 3  # prompts, the first, whose likeliest next tokens are kept


def run(ctx: Context, cell: Evaluate) -> EvaluateResult:
    """Gold and proxy reward, KL from the policy before, diversity, modes, calibration and the loss
    on held-out text, with paired intervals over prompts of the test split. `results/responses.npz`
    holds what was measured of each response, for comparisons across evaluations."""
    prompts = ctx.prompts(cell.task, "test", cell.prompts, cell.seed)
    models = {"before": ctx.language_model(cell.before), "after": ctx.language_model(cell.after)}
    cfgs = {side: ctx.study.model_of(ctx.study[getattr(cell, side)]) for side in SIDES}
    sides = _sample(ctx, cell, models, cfgs, prompts.ids)
    texts = {side: _texts(ctx, sides[side]["tokens"]) for side in SIDES}
    for side in SIDES:
        sides[side]["gold"] = ctx.gold(cell.task, prompts.texts, texts[side])
    summary: dict[str, Any] = {"n_prompts": cell.prompts, "temperature": cell.temperature}
    summary |= compared(sides["before"], sides["after"], cell.seed)
    rows: dict[str, HeldoutRows] = {}
    for side in SIDES:
        ctx.beat.progress(phase=f"held-out text, {side}")
        rows[side] = heldout_rows(models[side], cfgs[side], ctx.corpus, ctx.runtime)
        summary |= {f"{key}_{side}": value for key, value in described(sides[side]).items()}
        summary[f"perplexity_{side}"] = math.exp(rows[side].loss)
        summary[f"bits_per_byte_{side}"] = rows[side].bits_per_byte
        summary[f"calibration_{side}"] = reliability(rows[side].confidence_n, rows[side].right_n)
    summary["tax"] = tax(rows["before"], rows["after"])
    if cell.modes:
        summary["modes"] = _modes(cell, prompts.texts, texts)
    summary["samples"] = _shown(cell, prompts, texts, sides)
    few, tokenizer = slice(NEXT_WORDS), ctx.corpus.tokenizer
    summary["next_words"] = {}
    for side in SIDES:
        words = likeliest(models[side], cfgs[side], tokenizer, prompts.ids[few], ctx.runtime)
        summary["next_words"][side] = dict(zip(prompts.texts[few], words, strict=True))
    summary["gold"] = {side: sides[side]["gold"].tolist() for side in SIDES}
    kept = {
        f"{k}_{side}": sides[side][k]
        for side in SIDES
        for k in ("tokens", "mask", "gold", "proxy", "log_ratio")
    }
    save_arrays(ctx.folder, "responses", kept)
    return EvaluateResult(from_json(Evaluation, summary))


def compared(before: Arrays, after: Arrays, seed: int) -> dict[str, Any]:
    """Gain, win rate, the same at equal length, and KL, with 95% intervals over prompts. The arrays
    of a side are (n,): gold, log_ratio, and its mask is (n, R)."""
    gain = after["gold"] - before["gold"]
    longer = after["mask"].sum(-1) - before["mask"].sum(-1)
    found: dict[str, Any] = {}
    for name, (value, ends) in {
        "gain": paired_interval(gain, seed=seed),
        "gain_at_equal_length": gain_at_equal_length(gain, longer, seed),
        "win_rate": win_rate(before["gold"], after["gold"]),
        "win_rate_length_controlled": length_controlled(
            before["gold"], after["gold"], longer, seed
        ),
        "kl": paired_interval(after["log_ratio"], seed=seed),
    }.items():
        found |= {name: value, f"{name}_interval": ends}
    return found


def described(side: Arrays) -> dict[str, float]:
    """Means of a side, and its diversity."""
    tokens, mask = side["tokens"], side["mask"]
    return {
        "gold": float(side["gold"].mean()),
        "proxy": float(side["proxy"].mean()),
        "entropy": float((side["entropy"] * mask).sum() / mask.sum()),
        "distinct_1": distinct_n(tokens, mask, 1),
        "distinct_2": distinct_n(tokens, mask, 2),
        "similarity": self_similarity(tokens, mask),
        "similarity_same_prompt": similarity_within_prompts(
            side["again_tokens"], side["again_mask"]
        ),
        "length": float(mask.sum(-1).mean()),
        "stop_rate": float((tokens == EOS).any(-1).mean()),
    }


def _texts(ctx: Context, tokens_BR: np.ndarray) -> list[str]:
    return [ctx.corpus.tokenizer.decode(r.tolist()) for r in tokens_BR]


def _modes(cell: Evaluate, prompts: list[str], texts: dict[str, list[str]]) -> dict[str, Any]:
    """The report of `cell.modes`'s labels."""
    labels = {}
    for side in SIDES:
        given, n = (prompts, texts[side]), len(prompts)
        labels[side] = call_for_list(cell.modes, f"{cell.name}.modes", given, object, LABELS, n)
    return mode_report(labels["before"], labels["after"])


def _shown(
    cell: Evaluate, prompts: TaskPrompts, texts: dict[str, list[str]], sides: dict[str, Arrays]
) -> list[dict[str, Any]]:
    chosen = np.random.default_rng(cell.seed).permutation(cell.prompts)[:SHOWN]
    return [
        {
            "prompt": prompts.texts[i],
            **{side: texts[side][i] for side in SIDES},
            **{f"gold_{side}": float(sides[side]["gold"][i]) for side in SIDES},
        }
        for i in chosen
    ]


def _sample(
    ctx: Context,
    cell: Evaluate,
    models: dict[str, Any],
    cfgs: dict[str, ModelConfig],
    ids: np.ndarray,
) -> dict[str, Arrays]:
    """Of each side: tokens, mask, entropy (n, R); proxy score, log-ratio to `before` (n,);
    again_tokens, again_mask (m, TIMES, R), several responses to each of the first m prompts. Both
    sides draw their samples with the same keys."""
    reward, m = ctx.reward(cell.reward), min(AGAIN, len(ids))
    program = cache(lambda cfg: _program(ctx, cell, cfg, cfgs["before"], reward.score))
    key, n = split_key(cell.seed, "test"), len(ids)
    # All prompts once, then the first m of them again and again.
    items = np.concatenate([np.arange(n), np.tile(np.arange(m), TIMES - 1)]).astype(np.int32)
    samples = np.concatenate([np.zeros(n), np.repeat(np.arange(1, TIMES), m)]).astype(np.int32)
    asked = {"prompts": ids[items], "items": items, "samples": samples[:, None]}

    sides = {}
    for side in SIDES:
        model, before = models[side], models["before"]
        of, parts, done = partial(program(cfgs[side]), model, before, reward.arrays, key), [], 0
        ctx.beat.progress(step=0, steps=len(items), phase=f"sampling {side}")
        for part in map_rows(of, asked, CHUNK, ctx.runtime.mesh):
            parts.append(part)
            done += len(part["tokens"])
            ctx.beat.progress(step=done, steps=len(items), phase=f"sampling {side}")
            if ctx.runtime.stop.is_set():
                raise Stopped(f"stopped after {done} of {len(items)} samples {side}")
        every = joined(parts)
        sides[side] = found = {k: v[:n] for k, v in every.items()}
        for k in ("tokens", "mask"):
            times = every[k][n:].reshape(TIMES - 1, m, -1)
            found[f"again_{k}"] = np.stack([found[k][:m], *times], axis=1)
    return sides


def _program(
    ctx: Context, cell: Evaluate, cfg: ModelConfig, before_cfg: ModelConfig, score: Callable
) -> Callable[..., dict[str, jax.Array]]:
    """Samples a model of one shape and scores what came out, compiled once for a batch of
    prompts."""
    axes, R = ctx.runtime.axes, cell.task.response_len

    @jax.jit
    def side(
        params: Any, before: Any, arrays: Any, key: jax.Array, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        prompts_BP = batch["prompts"]
        keys_B = sample_keys(key, batch["items"], batch["samples"], axes)
        sampled = generate(
            params, cfg, prompts_BP, keys_B, length=R, temperature=cell.temperature, axes=axes
        )
        rows = join(prompts_BP, sampled.tokens_BR, sampled.mask_BR)
        warmth = cell.temperature or 1.0  # greedy samples have the log-probs of temperature 1
        _, entropy_BR = response_log_probs(params, cfg, rows, R, warmth, axes)
        before_BR, _ = response_log_probs(before, before_cfg, rows, R, warmth, axes)
        return {
            "tokens": sampled.tokens_BR,
            "mask": sampled.mask_BR,
            "entropy": entropy_BR,
            "proxy": score(arrays, rows, sampled.mask_BR),
            "log_ratio": ((sampled.log_probs_BR - before_BR) * sampled.mask_BR).sum(-1),
        }

    return side
