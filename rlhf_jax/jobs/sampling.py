"""A policy's responses to training and held-out prompts, for people to judge. They are sampled in chunks,
and a chunk that is on disk is not sampled again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax.cells import Compare, Feedback
from rlhf_jax.generate import Samples, generate
from rlhf_jax.jobs.context import Context, TaskPrompts
from rlhf_jax.parallel import place_batch
from rlhf_jax.runs import CellFolder
from rlhf_jax.train import Stopped

Arrays = dict[str, np.ndarray]
CHUNK = 64  # prompts sampled at a time


class Chunk(NamedTuple):
    """Responses to n prompts of a split, `first` and those after it.

    Attributes:
        asked: the prompts, n texts. texts: the responses, n x K, prompt by prompt.
        mask_NKR: 1 on their tokens, EOS included.
    """

    split: str
    first: int
    asked: list[str]
    texts: list[str]
    mask_NKR: np.ndarray


class Split(NamedTuple):
    """The prompts of a split as texts, and arrays: prompts (n, P), responses and mask (n, K, R), and what was
    found of them."""

    asked: list[str]
    arrays: Arrays


def sampled(
    ctx: Context, cell: Compare | Feedback, found: Callable[[Chunk], Arrays]
) -> dict[str, Split]:
    """`k` responses to each prompt of the `train` and the `validation` split, with the arrays that `found`
    adds to each chunk. Prompts of different splits come from different documents. Cells that agree in
    policy, task, k, temperature and seed get the same responses.

    Raises:
        Stopped: between two chunks.
    """
    params, axes = ctx.language_model(cell.policy), ctx.runtime.axes
    length, temperature = cell.task.response_len, cell.temperature

    @jax.jit
    def sample(params: Any, prompts_BP: jax.Array, key: jax.Array) -> Samples:
        return generate(
            params, ctx.model, prompts_BP, key,
            length=length, temperature=temperature, axes=axes, samples=cell.k,
        )  # fmt: skip

    counts = {"train": cell.prompts, "validation": cell.heldout_prompts}
    total, done, splits = sum(counts.values()), 0, {}
    for split, n in counts.items():
        prompts = ctx.prompts(cell.task, split, n, cell.seed)
        chunks = []
        for i in range(0, n, CHUNK):
            ctx.beat.progress(step=done, steps=total, phase=f"sampling {split} completions")
            chunks.append(_chunk(ctx, cell, partial(sample, params), found, prompts, split, i))
            done += len(chunks[-1]["prompts"])
            if ctx.runtime.stop.is_set():
                raise Stopped(f"stopped after {done} of {total} prompts; finished chunks are kept")
        arrays = {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}
        splits[split] = Split(prompts.texts, arrays)
    return splits


def _chunk(
    ctx: Context,
    cell: Compare | Feedback,
    sample: Callable[..., Samples],
    found: Callable[[Chunk], Arrays],
    prompts: TaskPrompts,
    split: str,
    first: int,
) -> Arrays:
    path = ctx.folder.results / f"chunk-{split}-{first}.npz"
    if path.exists():
        return dict(np.load(path, allow_pickle=False))
    ids, asked = prompts.ids[first : first + CHUNK], prompts.texts[first : first + CHUNK]
    fill = CHUNK - len(ids)  # one compiled shape
    batch = place_batch(
        {"prompts": np.pad(ids, ((0, fill), (0, 0)), mode="edge")}, ctx.runtime.mesh
    )
    key = jax.random.fold_in(jax.random.key(cell.seed), first + (10**6 if split != "train" else 0))
    got = jax.device_get(sample(batch["prompts"], key))
    n, K, R = len(ids), cell.k, cell.task.response_len
    responses = got.tokens_BR.reshape(-1, K, R)[:n]
    mask = got.mask_BR.reshape(-1, K, R)[:n]
    more = found(Chunk(split, first, asked, decoded(ctx, responses), mask))
    data = {"prompts": ids, "responses": responses, "mask": mask, **more}
    save_arrays(ctx.folder, path.stem, data)
    return data


def decoded(ctx: Context, tokens_NKR: np.ndarray) -> list[str]:
    """The texts (N x K) of responses."""
    rows = tokens_NKR.reshape(-1, tokens_NKR.shape[-1])
    return [ctx.corpus.tokenizer.decode(row.tolist()) for row in rows]


def gold_of(ctx: Context, cell: Compare | Feedback, chunk: Chunk) -> np.ndarray:
    """The labeller's scores (n, K) of a chunk's responses."""
    asked = [prompt for prompt in chunk.asked for _ in range(cell.k)]
    return ctx.gold(cell.task, asked, chunk.texts).reshape(len(chunk.asked), cell.k)


def save_arrays(folder: CellFolder, name: str, arrays: Arrays) -> None:
    """`results/NAME.npz`, atomically."""
    folder.results.mkdir(parents=True, exist_ok=True)
    tmp = folder.results / f".{name}.tmp.npz"
    np.savez(tmp, allow_pickle=False, **arrays)
    tmp.replace(folder.results / f"{name}.npz")
