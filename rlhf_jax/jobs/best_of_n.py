"""Best-of-n cells: many samples a prompt, scored by a proxy and by the labeller."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rlhf_jax.cells import BestOfN
from rlhf_jax.data.feedback import Demonstration, write
from rlhf_jax.evals.best_of_n import best_of_n_curve, gold_by_prompt
from rlhf_jax.evals.diversity import distinct_responses
from rlhf_jax.generate import generate, join
from rlhf_jax.jobs.context import Context, TaskPrompts
from rlhf_jax.jobs.sampling import save_arrays
from rlhf_jax.parallel import place_batch
from rlhf_jax.train import Stopped

Arrays = dict[str, np.ndarray]
ROWS = 512  # sampled in one call
AT_ONCE = 64  # samples of a prompt in one call, with one prefill


def best_of_n(ctx: Context, cell: BestOfN) -> dict[str, Any]:
    """Sample, score, and estimate what the best of 1, 2, 4, ..., n scores. `results/samples.npz` holds
    proxy, gold and lengths (prompts, n); `results/demonstrations.jsonl` the best response of each prompt
    by the proxy, which an SFT cell can learn from. The samples depend on policy, task and seed alone, so
    that cells with other rewards choose among the same ones."""
    prompts = ctx.prompts(cell.task, cell.split, cell.prompts, cell.seed)
    width = max(1, ROWS // min(cell.n, AT_ONCE))
    sample, chunks = _sampler(ctx, cell), []
    for i in range(0, cell.prompts, width):
        ctx.beat.progress(step=i, steps=cell.prompts, phase="sampling")
        some = TaskPrompts(prompts.texts[i : i + width], prompts.ids[i : i + width])
        chunks.append(_chunk(ctx, cell, sample, some, width, i))
        if ctx.runtime.stop.is_set():
            raise Stopped(
                f"stopped after {i + len(some.texts)} of {cell.prompts} prompts; finished chunks are kept"
            )
    data = {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}
    save_arrays(ctx.folder, "samples", {k: data[k] for k in ("proxy", "gold", "lengths")})
    records = _demonstrations(ctx, prompts.texts, data["best"])
    if records:
        write(ctx.folder.results / "demonstrations.jsonl", records)
    return {
        "best_of_n": {
            "prompts": cell.prompts,
            "n": cell.n,
            "temperature": cell.temperature,
            "curve": best_of_n_curve(data["proxy"], data["gold"], cell.seed),
            "gold_by_prompt": gold_by_prompt(data["proxy"], data["gold"]),
            # The KL bound is loose where samples repeat.
            "distinct": float(data["distinct"].mean()),
            "length": float(data["lengths"].mean()),
            "demonstrations": len(records),
            "empty": cell.prompts - len(records),  # prompts whose best response has no text
        }
    }


def _sampler(ctx: Context, cell: BestOfN) -> Callable[[np.ndarray, jax.Array], Arrays]:
    """(prompts (B, P), key) -> tokens, mask (B, k, R) and proxy (B, k) of k samples a prompt."""
    run, R, k = ctx.runtime, cell.task.response_len, min(cell.n, AT_ONCE)
    params, reward = ctx.language_model(cell.policy), ctx.reward(cell.reward)

    @jax.jit
    def sampled(
        params: Any, arrays: Any, prompts_BP: jax.Array, tiled_BP: jax.Array, key: jax.Array
    ) -> dict[str, jax.Array]:
        got = generate(
            params, ctx.model, prompts_BP, key,
            length=R, temperature=cell.temperature, axes=run.axes, samples=k,
        )  # fmt: skip
        rows = join(tiled_BP, got.tokens_BR, got.mask_BR)
        proxy_B = reward.score(arrays, rows, got.mask_BR)
        return {"tokens": got.tokens_BR, "mask": got.mask_BR, "proxy": proxy_B}

    def on_host(prompts_BP: np.ndarray, key: jax.Array) -> Arrays:
        tiled_BP = np.repeat(prompts_BP, k, axis=0)
        b = place_batch({"prompts": prompts_BP, "tiled": tiled_BP}, run.mesh)
        got = jax.device_get(sampled(params, reward.arrays, b["prompts"], b["tiled"], key))
        return {n: np.asarray(x).reshape(-1, k, *x.shape[1:]) for n, x in got.items()}

    return on_host


def _chunk(
    ctx: Context,
    cell: BestOfN,
    sample: Callable[[np.ndarray, jax.Array], Arrays],
    prompts: TaskPrompts,
    width: int,
    first: int,
) -> Arrays:
    """Arrays of P prompts, `first` and those after it: proxy, gold, lengths (P, n), best (P, R), the tokens
    of the best response by proxy, and distinct (P,), the share of different samples."""
    path = ctx.folder.results / f"chunk-{first}.npz"
    if path.exists():
        return dict(np.load(path, allow_pickle=False))
    P, n = len(prompts.texts), cell.n
    filled = np.pad(prompts.ids, ((0, width - P), (0, 0)), mode="edge")  # one compiled shape
    key = jax.random.fold_in(jax.random.key(cell.seed), first)
    passes = [
        sample(filled, jax.random.fold_in(key, i)) for i in range(math.ceil(n / min(n, AT_ONCE)))
    ]
    tokens, mask, proxy = (
        np.concatenate([p[name] for p in passes], axis=1)[:P, :n]
        for name in ("tokens", "mask", "proxy")
    )
    decode = ctx.corpus.tokenizer.decode
    texts = [decode(r.tolist()) for r in tokens.reshape(P * n, -1)]
    asked = [text for text in prompts.texts for _ in range(n)]
    data = {
        "proxy": proxy.astype(np.float32),
        "gold": ctx.gold(cell.task, asked, texts).reshape(P, n),
        "lengths": mask.sum(-1).astype(np.int32),
        "best": tokens[np.arange(P), proxy.argmax(axis=1)],
        "distinct": np.array([distinct_responses(t, m) for t, m in zip(tokens, mask, strict=True)]),
    }
    save_arrays(ctx.folder, path.stem, data)
    return data


def _demonstrations(ctx: Context, prompts: list[str], best_PR: np.ndarray) -> list[Demonstration]:
    """Records of the prompts whose best response has text."""
    texts = [ctx.corpus.tokenizer.decode(r.tolist()) for r in best_PR]
    return [Demonstration(p, t) for p, t in zip(prompts, texts, strict=True) if p and t.strip()]
