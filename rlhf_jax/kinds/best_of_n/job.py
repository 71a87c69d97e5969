"""Best-of-n cells: many samples a prompt, scored by a proxy and by the labeller."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.feedback import Demonstration, read, write
from rlhf_jax.evals.best_of_n import best_of_n_curve, gold_by_prompt
from rlhf_jax.evals.diversity import distinct_responses
from rlhf_jax.kinds.best_of_n.cell import BestOfN
from rlhf_jax.kinds.best_of_n.result import Best, BestOf, BestOfNResult
from rlhf_jax.kinds.context import Context, TaskPrompts
from rlhf_jax.kinds.sampling import kept_chunk, save_arrays, split_key
from rlhf_jax.model.sampler import generate, sample_keys
from rlhf_jax.model.scoring import join
from rlhf_jax.model.sharding import joined, map_rows
from rlhf_jax.rl.scores import without_spread
from rlhf_jax.train import Stopped

Arrays = dict[str, np.ndarray]
Sampler = Callable[[Arrays], Arrays]
# What is sampled depends on neither.
ROWS = 512  # sampled in one call
AT_ONCE = 64  # samples of a prompt in one call, with one prefill


def run(ctx: Context, cell: BestOfN) -> BestOfNResult:
    """Sample, score, and estimate what the best of 1, 2, 4, ..., n scores. `results/samples.npz`
    holds proxy, gold and lengths (prompts, n); `results/demonstrations.jsonl` the best response of
    each prompt by the proxy, which an SFT cell can learn from. The samples depend on policy, task
    and seed alone, so that cells with other rewards choose among the same ones."""
    prompts = ctx.prompts(cell.task, cell.split, cell.prompts, cell.seed)
    width = max(1, ROWS // min(cell.n, AT_ONCE))
    sample, chunks = _sampler(ctx, cell, width), []
    for i in range(0, cell.prompts, width):
        ctx.beat.progress(step=i, steps=cell.prompts, phase="sampling")
        some = TaskPrompts(prompts.texts[i : i + width], prompts.ids[i : i + width])
        chunks.append(_chunk(ctx, cell, sample, some, i))
        if ctx.runtime.stop.is_set():
            raise Stopped(
                f"stopped after {i + len(some.texts)} of {cell.prompts} prompts; finished chunks "
                "are kept"
            )
    data = joined(chunks)
    save_arrays(ctx.folder, "samples", {k: data[k] for k in ("proxy", "gold", "lengths")})
    best = _demonstrations(ctx, prompts.texts, data["best"])
    if best:
        write(ctx.folder.results / "demonstrations.jsonl", best)
    flat = int(sum(map(without_spread, data["proxy"])))
    notes = [
        f"the reward gives all {cell.n} samples of a prompt the same score, for {flat} of "
        f"{cell.prompts} prompts; the best of those is the first"
    ]
    curve = best_of_n_curve(data["proxy"], data["gold"], cell.seed)
    return BestOfNResult(
        BestOf(
            prompts=cell.prompts,
            n=cell.n,
            temperature=cell.temperature,
            curve=tuple(Best(**row) for row in curve),
            gold_by_prompt=tuple(map(tuple, gold_by_prompt(data["proxy"], data["gold"]))),
            distinct=float(data["distinct"].mean()),
            length=float(data["lengths"].mean()),
            demonstrations=len(best),
            empty=cell.prompts - len(best),
            notes=ctx.noted(notes if flat and cell.n > 1 else []),
        )
    )


def records(ctx: Context, cell: BestOfN) -> tuple[Path, list[Demonstration]]:
    """The best responses."""
    path = ctx.folders[cell.name].result_file("demonstrations.jsonl")
    return path, read(path, Demonstration)


def _sampler(ctx: Context, cell: BestOfN, width: int) -> Sampler:
    """{prompts (B, P), items (B,)} -> tokens, mask (B, n, R) and proxy (B, n) of n samples a
    prompt, of which up to AT_ONCE are drawn in one call, for `width` prompts."""
    run, R, k = ctx.runtime, cell.task.response_len, min(cell.n, AT_ONCE)
    params, reward = ctx.language_model(cell.policy), ctx.reward(cell.reward)
    key, axes = split_key(cell.seed, cell.split), run.axes

    @jax.jit
    def sampled(
        params: Any, arrays: Any, key: jax.Array, first: jax.Array, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        B = len(batch["prompts"])
        keys = sample_keys(key, batch["items"], jnp.tile(first + jnp.arange(k), (B, 1)), axes)
        got = generate(
            params,
            ctx.model,
            batch["prompts"],
            keys,
            length=R,
            temperature=cell.temperature,
            axes=axes,
            samples=k,
        )
        rows_N = jnp.arange(B * k) // k
        tiled_NP = batch["prompts"].at[rows_N].get(out_sharding=axes.spec("batch", None))
        rows = join(tiled_NP, got.tokens_BR, got.mask_BR)
        found = {"tokens": got.tokens_BR, "mask": got.mask_BR}
        found["proxy"] = axes.constrain(reward.score(arrays, rows, got.mask_BR), "batch")
        layout = {n: axes.spec("batch", *[None] * x.ndim) for n, x in found.items()}
        return {n: x.reshape(B, k, *x.shape[1:], out_sharding=layout[n]) for n, x in found.items()}

    def on_host(asked: Arrays) -> Arrays:
        def drawn(i: int) -> Arrays:
            of = partial(sampled, params, reward.arrays, key, jnp.int32(i))
            return joined(map_rows(of, asked, width, run.mesh))

        passes = [drawn(i) for i in range(0, cell.n, k)]
        each = {x: np.concatenate([p[x] for p in passes], axis=1) for x in passes[0]}
        return {x: array[:, : cell.n] for x, array in each.items()}

    return on_host


def _chunk(
    ctx: Context, cell: BestOfN, sample: Sampler, prompts: TaskPrompts, first: int
) -> Arrays:
    """Arrays of P prompts, `first` and those after it: proxy, gold, lengths (P, n), best (P, R),
    the tokens of the best response by proxy, and distinct (P,), the share of different samples."""
    P, n, name = len(prompts.texts), cell.n, f"chunk-{first}"
    asked = {"items": np.arange(first, first + P, dtype=np.int32), "prompts": prompts.ids}
    if (kept := kept_chunk(ctx, name, asked)) is not None:
        return kept
    got = sample(asked)
    tokens, mask, proxy = (got[x] for x in ("tokens", "mask", "proxy"))
    decode = ctx.corpus.tokenizer.decode
    texts = [decode(r.tolist()) for r in tokens.reshape(P * n, -1)]
    repeated = [text for text in prompts.texts for _ in range(n)]
    data = {
        **asked,
        "proxy": proxy.astype(np.float32),
        "gold": ctx.gold(cell.task, repeated, texts).reshape(P, n),
        "lengths": mask.sum(-1).astype(np.int32),
        "best": tokens[np.arange(P), proxy.argmax(axis=1)],
        "distinct": np.array([distinct_responses(t, m) for t, m in zip(tokens, mask, strict=True)]),
    }
    save_arrays(ctx.folder, name, data)
    return data


def _demonstrations(ctx: Context, prompts: list[str], best_PR: np.ndarray) -> list[Demonstration]:
    """Records of the prompts whose best response has text."""
    texts = [ctx.corpus.tokenizer.decode(r.tolist()) for r in best_PR]
    return [Demonstration(p, t) for p, t in zip(prompts, texts, strict=True) if p and t.strip()]
