"""A policy's responses to training and held-out prompts, for people to judge. They are sampled in
chunks, and a chunk that is on disk is not sampled again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.kinds.bases import Sampled
from rlhf_jax.kinds.context import Context, TaskPrompts
from rlhf_jax.model.sampler import generate, sample_keys
from rlhf_jax.model.sharding import joined, map_rows
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.train import Stopped

Arrays = dict[str, np.ndarray]
CHUNK = 64  # prompts sampled at a time; what is sampled does not depend on it
SPLITS = ("train", "validation", "test")


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
    """The prompts of a split as texts, and arrays: prompts (n, P), responses and mask (n, K, R),
    and what was found of them."""

    asked: list[str]
    arrays: Arrays


def sampled(ctx: Context, cell: Sampled, found: Callable[[Chunk], Arrays]) -> dict[str, Split]:
    """`k` responses to each prompt of the `train` and the `validation` split, with the arrays that
    `found` adds to each chunk. Prompts of different splits come from different documents. Cells
    that agree in policy, task, k, temperature and seed get the same responses.

    Raises:
        Stopped: between two chunks.
    """
    params, sample = ctx.language_model(cell.policy), _sampler(ctx, cell)
    counts = {"train": cell.prompts, "validation": cell.heldout_prompts}
    total, done, splits = sum(counts.values()), 0, {}
    for split, n in counts.items():
        prompts = ctx.prompts(cell.task, split, n, cell.seed)
        of, chunks = partial(sample, params, split_key(cell.seed, split)), []
        for i in range(0, n, CHUNK):
            ctx.beat.progress(step=done, steps=total, phase=f"sampling {split} completions")
            chunks.append(_chunk(ctx, cell, of, found, prompts, split, i))
            done += len(chunks[-1]["prompts"])
            if ctx.runtime.stop.is_set():
                raise Stopped(f"stopped after {done} of {total} prompts; finished chunks are kept")
        splits[split] = Split(prompts.texts, joined(chunks))
    return splits


def split_key(seed: int, split: str) -> jax.Array:
    """The key of all samples of a split's prompts; `generate.sample_keys` makes one for each of
    it."""
    return jax.random.fold_in(jax.random.key(seed), SPLITS.index(split))


def _sampler(ctx: Context, cell: Sampled) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(params, key of the split, batch of prompts and their items) -> responses and mask, (B, K,
    R)."""
    axes, R, K = ctx.runtime.axes, cell.task.response_len, cell.k

    @jax.jit
    def sample(
        params: Any, key: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        prompts_BP = batch["prompts"]
        B = len(prompts_BP)
        keys = sample_keys(key, batch["items"], jnp.tile(jnp.arange(K), (B, 1)), axes)
        got = generate(
            params,
            ctx.model,
            prompts_BP,
            keys,
            length=R,
            temperature=cell.temperature,
            axes=axes,
            samples=K,
        )
        shape, layout = (B, K, R), axes.spec("batch", None, None)
        return (
            got.tokens_BR.reshape(shape, out_sharding=layout),
            got.mask_BR.reshape(shape, out_sharding=layout),
        )

    return sample


def _chunk(
    ctx: Context,
    cell: Sampled,
    sample: Callable[[dict[str, jax.Array]], tuple[jax.Array, jax.Array]],
    found: Callable[[Chunk], Arrays],
    prompts: TaskPrompts,
    split: str,
    first: int,
) -> Arrays:
    name, ids = f"chunk-{split}-{first}", prompts.ids[first : first + CHUNK]
    asked = {"items": np.arange(first, first + len(ids), dtype=np.int32), "prompts": ids}
    if (kept := kept_chunk(ctx, name, asked)) is not None:
        return kept
    responses, mask = joined(map_rows(sample, asked, CHUNK, ctx.runtime.mesh))
    texts = prompts.texts[first : first + CHUNK]
    more = found(Chunk(split, first, texts, decoded(ctx, responses), mask))
    data = {**asked, "responses": responses, "mask": mask, **more}
    save_arrays(ctx.folder, name, data)
    return data


def kept_chunk(ctx: Context, name: str, asked: Arrays) -> Arrays | None:
    """The arrays of a chunk that is on disk, if it is whole and holds `asked`; None: it is to be
    sampled."""
    path = ctx.folder.results / f"{name}.npz"
    if not path.exists():
        return None
    try:
        data = load_arrays(path)
    except ConfigError as e:
        ctx.runtime.log(f"{ctx.cell.name}: {e}; its prompts are sampled again")
        return None
    same = all(k in data and np.array_equal(data[k], v) for k, v in asked.items())
    return data if same else None


def decoded(ctx: Context, tokens_NKR: np.ndarray) -> list[str]:
    """The texts (N x K) of responses."""
    rows = tokens_NKR.reshape(-1, tokens_NKR.shape[-1])
    return [ctx.corpus.tokenizer.decode(row.tolist()) for row in rows]


def gold_of(ctx: Context, cell: Sampled, chunk: Chunk) -> np.ndarray:
    """The labeller's scores (n, K) of a chunk's responses."""
    asked = [prompt for prompt in chunk.asked for _ in range(cell.k)]
    return ctx.gold(cell.task, asked, chunk.texts).reshape(len(chunk.asked), cell.k)


def save_arrays(folder: CellFolder, name: str, arrays: Arrays) -> None:
    """`results/NAME.npz`, atomically."""
    folder.results.mkdir(parents=True, exist_ok=True)
    tmp = folder.results / f".{name}.tmp.npz"
    try:
        np.savez(tmp, allow_pickle=False, **arrays)
        tmp.replace(folder.results / f"{name}.npz")
    finally:
        tmp.unlink(missing_ok=True)


def load_arrays(path: Path) -> Arrays:
    """All arrays of such a file, whose checksums are compared as they are read.

    Raises:
        ConfigError: the file is damaged.
    """
    content = path.read_bytes()
    try:
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except MemoryError:
        raise
    except Exception as e:  # zipfile and numpy raise many kinds, by what is damaged
        raise ConfigError(f"{path} is damaged ({type(e).__name__}: {e})") from None
