"""Comparison cells: a policy completes each prompt K times, simulated annotators rank the
completions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlhf_jax.data.annotators import rank_by_annotators
from rlhf_jax.data.feedback import Comparison, read, write
from rlhf_jax.evals.rankings import uninformative
from rlhf_jax.kinds.compare.cell import Compare
from rlhf_jax.kinds.compare.result import CompareResult, Comparisons
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.sampling import Arrays, Chunk, gold_of, load_arrays, sampled, save_arrays
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import Damaged

COMPARED = ("prompts", "responses", "mask", "ranks", "gold")  # what learners read


def run(ctx: Context, cell: Compare) -> CompareResult:
    """Sample, score with the gold labeller, rank. `results/comparisons.jsonl` is for people and
    other tools; `results/{train,validation}.npz` hold the very tokens that were sampled, which the
    reward model learns from. Training and held-out prompts come from different documents."""
    kept, gold, ranks = [], [], []
    splits = sampled(ctx, cell, lambda chunk: ranked(ctx, cell, chunk))
    for split, (asked, data) in splits.items():
        save_arrays(ctx.folder, split, data)
        kept += _records(ctx, asked, data)
        gold.append(data["gold"])
        ranks.append(data["ranks"])
    write(ctx.folder.results / "comparisons.jsonl", kept)
    scores, silent = np.concatenate(gold), uninformative(np.concatenate(ranks))
    if silent:
        ctx.runtime.log(
            f"{cell.name}: the completions of {silent} of {len(scores)} prompts all tie; nothing "
            f"is learned from those"
        )
    return CompareResult(
        Comparisons(
            prompts=len(scores),
            k=cell.k,
            without_information=silent,
            gold_mean=float(scores.mean()),
            gold_spread_within_prompt=float(scores.std(axis=1).mean()),
        )
    )


def records(ctx: Context, cell: Compare) -> tuple[Path, list[Comparison]]:
    """The rankings of training prompts, which come first in the file."""
    path = ctx.folders[cell.name].result_file("comparisons.jsonl")
    return path, read(path, Comparison)[: cell.prompts]


def comparisons(ctx: Context, cell: Compare, learner: Cell) -> dict[str, Arrays]:
    """The very tokens that were sampled, by split, with ranks and gold scores.

    Raises:
        ConfigError: a file is damaged or not there, or the learner's model is too short for them.
    """
    folder, found = ctx.folders[cell.name], {}
    for split in ("train", "validation"):
        try:
            arrays = load_arrays(folder.result_file(f"{split}.npz"))
        except Damaged:
            raise  # which says what to do
        except ConfigError as e:
            raise ConfigError(f"{e}; make the cell again with `--force {cell.name}`") from None
        found[split] = {k: arrays[k] for k in COMPARED if k in arrays}
    longest = sum(found["train"][k].shape[-1] for k in ("prompts", "responses"))
    if longest > (most := ctx.model.max_positions):
        raise ConfigError(
            f"{cell.name} has sequences of {longest} tokens, but the model of "
            f"{learner.parents()[0]!r} has max_positions = {most}; compare shorter responses or "
            "take a base with more positions"
        )
    return found


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
