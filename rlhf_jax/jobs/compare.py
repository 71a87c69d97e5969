"""Comparison cells: a policy completes each prompt K times, simulated annotators rank the completions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from rlhf_jax.cells import Compare
from rlhf_jax.data.annotators import rank_by_annotators
from rlhf_jax.data.feedback import Comparison, write
from rlhf_jax.generate import Samples, generate
from rlhf_jax.jobs.context import Context, TaskPrompts
from rlhf_jax.parallel import place_batch
from rlhf_jax.runs import CellFolder
from rlhf_jax.train import Stopped

CHUNK = 64  # prompts sampled at a time; a chunk that is on disk is not sampled again


def compare(ctx: Context, cell: Compare) -> dict[str, Any]:
    """Sample, score with the gold labeller, rank. `results/comparisons.jsonl` is for people and other
    tools; `results/{train,validation}.npz` hold the very tokens that were sampled, which the reward
    model learns from. Training and held-out prompts come from different documents."""
    params, axes = ctx.language_model(cell.policy), ctx.runtime.axes
    length, temperature = cell.task.response_len, cell.temperature

    @jax.jit
    def sample(params: Any, prompts_BP: jax.Array, key: jax.Array) -> Samples:
        return generate(
            params, ctx.model, prompts_BP, key,
            length=length, temperature=temperature, axes=axes, samples=cell.k,
        )  # fmt: skip

    counts = {"train": cell.prompts, "validation": cell.heldout_prompts}
    total, done, records, gold = sum(counts.values()), 0, [], []
    for split, n in counts.items():
        prompts = ctx.prompts(cell.task, split, n, cell.seed)
        chunks = []
        for i in range(0, n, CHUNK):
            ctx.beat.progress(step=done, steps=total, phase=f"sampling {split} completions")
            chunks.append(_chunk(ctx, cell, partial(sample, params), prompts, split, i))
            done += len(chunks[-1]["ranks"])
            if ctx.runtime.stop.is_set():
                raise Stopped(f"stopped after {done} of {total} prompts; finished chunks are kept")
        data = {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}
        save_arrays(ctx.folder, split, data)
        records += _records(ctx, data)
        gold.append(data["gold"])
    write(ctx.folder.results / "comparisons.jsonl", records)
    scores = np.concatenate(gold)
    return {
        "compare": {
            "prompts": total,
            "k": cell.k,
            "gold_mean": float(scores.mean()),
            "gold_spread_within_prompt": float(scores.std(axis=1).mean()),
        }
    }


def _chunk(
    ctx: Context,
    cell: Compare,
    sample: Callable[..., Samples],
    prompts: TaskPrompts,
    split: str,
    first: int,
) -> dict[str, np.ndarray]:
    """Arrays of the n prompts from `first` on: prompts (n, P), responses and mask (n, K, R), gold and ranks (n, K)."""
    path = ctx.folder.results / f"chunk-{split}-{first}.npz"
    if path.exists():
        return dict(np.load(path, allow_pickle=False))
    ids, asked = prompts.ids[first : first + CHUNK], prompts.texts[first : first + CHUNK]
    fill = CHUNK - len(ids)  # one compiled shape
    batch = place_batch(
        {"prompts": np.pad(ids, ((0, fill), (0, 0)), mode="edge")}, ctx.runtime.mesh
    )
    key = jax.random.fold_in(jax.random.key(cell.seed), first + (10**6 if split != "train" else 0))
    sampled = jax.device_get(sample(batch["prompts"], key))
    n, K, R = len(ids), cell.k, cell.task.response_len
    responses = sampled.tokens_BR.reshape(-1, K, R)[:n]
    mask = sampled.mask_BR.reshape(-1, K, R)[:n]
    texts = [ctx.corpus.tokenizer.decode(r.tolist()) for r in responses.reshape(-1, R)]
    gold = ctx.gold(cell.task, [p for p in asked for _ in range(K)], texts).reshape(n, K)
    bias = cell.length_bias * mask.sum(-1) if cell.length_bias else None
    ranks = np.stack(
        [
            rank_by_annotators(
                g,
                cell.noise,
                cell.annotators,
                (cell.seed, int(split != "train"), first + i),
                cell.disagreement,
                None if bias is None else bias[i],
            )
            for i, g in enumerate(gold)
        ]
    )
    data = {"prompts": ids, "responses": responses, "mask": mask, "gold": gold, "ranks": ranks}
    save_arrays(ctx.folder, path.stem, data)
    return data


def _records(ctx: Context, data: dict[str, np.ndarray]) -> list[Comparison]:
    decode = ctx.corpus.tokenizer.decode
    return [
        Comparison(
            prompt=decode(prompt.tolist()),
            responses=tuple(decode(r.tolist()) for r in responses),
            ranking=tuple(int(r) for r in ranks),
        )
        for prompt, responses, ranks in zip(
            data["prompts"], data["responses"], data["ranks"], strict=True
        )
    ]


def save_arrays(folder: CellFolder, name: str, arrays: dict[str, np.ndarray]) -> None:
    """`results/NAME.npz`, atomically."""
    folder.results.mkdir(parents=True, exist_ok=True)
    tmp = folder.results / f".{name}.tmp.npz"
    np.savez(tmp, allow_pickle=False, **arrays)
    tmp.replace(folder.results / f"{name}.npz")
