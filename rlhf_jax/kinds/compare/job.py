"""Comparison cells: a policy completes each prompt K times, simulated annotators rank the
completions."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_jax.data.annotators import rank_by_annotators
from rlhf_jax.data.feedback import Comparison, write
from rlhf_jax.evals.rankings import uninformative
from rlhf_jax.kinds.compare.cell import Compare
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.sampling import Arrays, Chunk, gold_of, sampled, save_arrays


def compare(ctx: Context, cell: Compare) -> dict[str, Any]:
    """Sample, score with the gold labeller, rank. `results/comparisons.jsonl` is for people and
    other tools; `results/{train,validation}.npz` hold the very tokens that were sampled, which the
    reward model learns from. Training and held-out prompts come from different documents."""
    records, gold, ranks = [], [], []
    splits = sampled(ctx, cell, lambda chunk: ranked(ctx, cell, chunk))
    for split, (asked, data) in splits.items():
        save_arrays(ctx.folder, split, data)
        records += _records(ctx, asked, data)
        gold.append(data["gold"])
        ranks.append(data["ranks"])
    write(ctx.folder.results / "comparisons.jsonl", records)
    scores, silent = np.concatenate(gold), uninformative(np.concatenate(ranks))
    if silent:
        ctx.runtime.log(
            f"{cell.name}: the completions of {silent} of {len(scores)} prompts all tie; nothing "
            f"is learned from those"
        )
    return {
        "compare": {
            "prompts": len(scores),
            "k": cell.k,
            "without_information": silent,  # prompts whose completions all tie
            "gold_mean": float(scores.mean()),
            "gold_spread_within_prompt": float(scores.std(axis=1).mean()),
        }
    }


def ranked(ctx: Context, cell: Compare, chunk: Chunk) -> Arrays:
    """Gold scores and ranks (n, K) of a chunk. Completions of the same text tie."""
    gold = gold_of(ctx, cell, chunk)
    bias = cell.length_bias * chunk.mask_NKR.sum(-1) if cell.length_bias else None
    ranks = [
        rank_by_annotators(
            g,
            cell.noise,
            cell.annotators,
            (cell.seed, int(chunk.split != "train"), chunk.first + i),
            cell.disagreement,
            None if bias is None else bias[i],
            first_same(chunk.texts[i * cell.k : (i + 1) * cell.k]),
        )
        for i, g in enumerate(gold)
    ]
    return {"gold": gold, "ranks": np.stack(ranks)}


def first_same(texts: list[str]) -> np.ndarray:
    """Of each text (K,) the first that is the same."""
    return np.array([texts.index(text) for text in texts])


def _records(ctx: Context, asked: list[str], data: Arrays) -> list[Comparison]:
    decode = ctx.corpus.tokenizer.decode
    return [
        Comparison(
            prompt=prompt,
            responses=tuple(decode(r.tolist()) for r in responses),
            ranking=tuple(int(r) for r in ranks),
        )
        for prompt, responses, ranks in zip(asked, data["responses"], data["ranks"], strict=True)
    ]
