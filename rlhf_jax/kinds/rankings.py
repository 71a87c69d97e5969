"""Comparisons as arrays, for everything that learns from rankings: of compare or feedback cells, or
of a file of records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlhf_jax.data.chat import Template, prompt_ids
from rlhf_jax.data.feedback import Comparison
from rlhf_jax.data.files import LeftOut
from rlhf_jax.data.layouts import load
from rlhf_jax.data.loader import batch_rows
from rlhf_jax.data.packing import left_padded
from rlhf_jax.data.signals import comparisons_of
from rlhf_jax.data.tokenizer import EOS, PAD
from rlhf_jax.evals.rankings import annotators_agree, untied_pairs
from rlhf_jax.kinds.bases import FromRankings, Sampled
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.task import task_of
from rlhf_jax.study.cell import Cell, names_cell
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.graph import Study

if TYPE_CHECKING:
    import jax

Arrays = dict[str, np.ndarray]
VALIDATION = 0.1  # of a file's prompts, at least one
SPLITS = ("train", "validation")
AGREE = "two annotators agree"  # of a report's baselines
INPUTS = ("tokens", "segments", "positions", "last", "mask", "ranks")


def rankings(ctx: Context, cell: FromRankings) -> dict[str, Arrays]:
    """The training and validation rows of a cell's comparisons, those of `comparisons` before those
    of `earlier`; of the training rows the first `prompts`.

    Arrays, of N prompts with up to K completions of up to R tokens after prompts of up to P: NKT
    inputs tokens, segments and positions, T = P + R, prompts padded on the left and completions on
    the right; mask NKR; and NK last (the last real token), length (of the completion), ranks
    (negative where there are fewer than K completions), and gold where every source has it.

    Raises:
        ConfigError: sequences longer than model.max_positions, a file that cannot be read or split,
            or a split without an untied pair.
    """
    sources = [_source(ctx, cell, name) for name in cell.compared]
    data = {s: _joined([source[s] for source in sources]) for s in SPLITS}
    data["train"] = {k: v[: cell.most_prompts] for k, v in data["train"].items()}
    for split, arrays in data.items():
        if not len(untied_pairs(arrays["ranks"])[0]):
            raise ConfigError(
                f"{cell.name}: the {len(arrays['ranks'])} {split} comparisons have no two "
                f"completions of different rank; nothing can be learned or measured. Compare more "
                "prompts"
            )
    return {split: rows_of(arrays) for split, arrays in data.items()}


def check_comparisons(ctx: Context, cell: FromRankings) -> None:
    """Refuses files of comparisons that cannot be read, split or fill a batch; of a cell's own
    comparisons nothing is known before it has run."""
    files = [name for name in cell.compared if not names_cell(name)]
    if len(files) == len(cell.compared):
        training_steps(cell, len(rankings(ctx, cell)["train"]["ranks"]))
        return
    for name in files:
        _source(ctx, cell, name)


def ceilings(ctx: Context, cell: FromRankings, rows: Arrays) -> dict[str, float]:
    """How often two annotators of a cell's comparisons order a pair alike, as a baseline for its
    report; nothing where annotators are not simulated, or not all alike."""
    names = cell.compared
    cells = [ctx.study[n] if names_cell(n) else None for n in names]
    habits = {c.habits if isinstance(c, Sampled) else None for c in cells}
    if len(habits) > 1 or not (alike := habits.pop()):
        return {}
    return {AGREE: annotators_agree(rows, *alike)}


def rows_of(data: Arrays) -> Arrays:
    """Model inputs of prompts (N, P) and responses with their mask (N, K, R), side by side."""
    K = data["responses"].shape[1]
    prompts = np.repeat(data["prompts"][:, None], K, axis=1)
    tokens = np.concatenate([prompts, data["responses"]], axis=-1).astype(np.int32)
    segments = np.concatenate([prompts != PAD, data["mask"] > 0], axis=-1).astype(np.int32)
    length = data["mask"].sum(-1).astype(np.int32)
    return {
        **data,
        "tokens": tokens,
        "segments": segments,
        "positions": (np.cumsum(segments, axis=-1, dtype=np.int32) - 1) * segments,
        "last": prompts.shape[-1] + length - 1,
        "ranks": data["ranks"].astype(np.int32),
        "length": length,
    }


def _source(ctx: Context, cell: FromRankings, name: str) -> dict[str, Arrays]:
    """Prompts, responses, mask, ranks and perhaps gold of a cell or a file, by split."""
    if names_cell(name):
        found: dict[str, Arrays] = ctx.play("comparisons", name, cell)
        return found
    records = fitting(ctx, cell, ctx.study.unchanged(name))
    whole = encoded(records)
    held = heldout_prompts([r.prompt for r in records], name)
    return {"train": _only(whole, ~held), "validation": _only(whole, held)}


def template_of(study: Study, cell: Cell) -> Template:
    """How prompts are written for a model: as in the task that it, or what it started from,
    learned."""
    task = task_of(study, cell)
    return task.template if task else "plain"


def compared_in(ctx: Context, path: str) -> dict[int, Comparison]:
    """The comparisons that a file of records shows, by row."""
    loaded = load(path)
    left, found = loaded.left_out, {}
    for row, record in zip(loaded.rows, loaded.records, strict=True):
        if comparisons := comparisons_of([record]):
            found[row] = comparisons[0]
        else:
            left.add(row, "it prefers no response to another")
    ctx.leave_out(path, left, loaded.unread)
    if not found:
        raise ConfigError(
            f"{path}: {len(loaded.records)} records of layout {loaded.layout!r} that prefer no "
            f"response to another; expected comparisons, or corrections or critiques with a better "
            "response"
        )
    return found


def _only(data: Arrays, chosen: np.ndarray) -> Arrays:
    return {k: v[chosen] for k, v in data.items()}


def heldout_prompts(prompts: Sequence[str], name: str) -> np.ndarray:
    """Which records (n,) are for validation: those of the tenth of the prompts that hash lowest, so
    all records of a prompt are on one side, wherever they stand in the file called `name`."""
    different = sorted(set(prompts), key=lambda p: hashlib.sha256(p.encode()).digest())
    if len(different) < 2:
        raise ConfigError(
            f"{name}: {len(different)} prompt; expected at least 2, one of them to hold out"
        )
    held = set(different[: max(1, int(VALIDATION * len(different)))])
    return np.array([p in held for p in prompts])


class Encoded(NamedTuple):
    """A comparison as token ids: its prompt, and its responses, which end in EOS."""

    prompt: str
    prompt_ids: list[int]
    responses: list[list[int]]
    ranking: tuple[int, ...]


def fitting(ctx: Context, cell: FromRankings, path: str) -> list[Encoded]:
    """The comparisons of a file of records that the cell's model has positions for; the others are
    left out and counted.

    Raises:
        ConfigError: none is.
    """
    template, longest = template_of(ctx.study, cell), ctx.model.max_positions
    tokenizer, found, left = ctx.corpus.tokenizer, [], LeftOut()
    for row, record in compared_in(ctx, path).items():
        prompt = prompt_ids(tokenizer, record.prompt, template)
        responses = [[*tokenizer.encode(text), EOS] for text in record.responses]
        size = len(prompt) + max(map(len, responses))
        if size > longest:
            left.add(
                row,
                f"{size} tokens ({len(prompt)} of prompt), but the model has max_positions = "
                f"{longest}",
            )
            continue
        found.append(Encoded(record.prompt, prompt, responses, record.ranking))
    if not found:
        raise ConfigError(
            "{}, row {}: {}; shorten its rows, or take a base with more positions".format(
                path, *left.first
            )
        )
    ctx.leave_out(path, left)
    return found


def encoded(records: Sequence[Encoded]) -> Arrays:
    """Prompts (n, P), responses and mask (n, K, R) and ranks (n, K) of comparisons."""
    K = max(len(r.responses) for r in records)
    R = max(len(t) for r in records for t in r.responses)
    out = np.full((len(records), K, R), PAD, np.int32)
    mask, ranks = np.zeros(out.shape, np.float32), np.full(out.shape[:2], -1, np.int32)
    for i, record in enumerate(records):
        ranks[i, : len(record.ranking)] = record.ranking
        for k, ids in enumerate(record.responses):
            out[i, k, : len(ids)] = ids
            mask[i, k, : len(ids)] = 1
    padded = left_padded([r.prompt_ids for r in records], max(len(r.prompt_ids) for r in records))
    return {"prompts": padded, "responses": out, "mask": mask, "ranks": ranks}


def _joined(sources: Sequence[Arrays]) -> Arrays:
    """Rows of several sources, padded to the longest prompt, the longest response and the most
    completions; absent completions have rank -1."""
    shared = [k for k in sources[0] if all(k in s for s in sources)]
    P = max(s["prompts"].shape[1] for s in sources)
    K, R = (max(s["responses"].shape[axis] for s in sources) for axis in (1, 2))

    def padded(key: str, x: np.ndarray) -> np.ndarray:
        if key == "prompts":
            return np.pad(x, ((0, 0), (P - x.shape[1], 0)), constant_values=PAD)
        width = [(0, 0), (0, K - x.shape[1]), *([(0, R - x.shape[2])] if x.ndim == 3 else [])]
        fill = {"ranks": -1, "responses": PAD}.get(key, 0)
        return np.pad(x, width, constant_values=fill)

    return {k: np.concatenate([padded(k, s[k]) for s in sources]) for k in shared}


def training_batches(
    ctx: Context, cell: FromRankings, rows: Arrays, *more: str
) -> tuple[int, Callable[[int], dict[str, jax.Array]]]:
    """(optimizer steps, batch of step t) of a cell's training rows: the model's inputs, and arrays
    called `more`."""
    from rlhf_jax.model.sharding import place_batch

    run, n = ctx.runtime, len(rows["ranks"])
    steps = training_steps(cell, n)

    def batch_at(t: int) -> dict[str, jax.Array]:
        chosen = batch_rows(n, cell.batch, cell.seed, t)
        return place_batch({k: rows[k][chosen] for k in (*INPUTS, *more)}, run.mesh, run.axes)

    return steps, batch_at


def training_steps(cell: FromRankings, prompts: int) -> int:
    """Optimizer steps on so many compared prompts."""
    if prompts < cell.batch:
        raise ConfigError(
            f"{cell.name}: {prompts} prompts are compared, less than one batch of {cell.batch}; "
            f"compare more or lower batch"
        )
    return cell.epochs * (prompts // cell.batch)


def over_rows(
    ctx: Context, of: Callable[[dict[str, jax.Array]], jax.Array], rows: Arrays, batch: int
) -> np.ndarray:
    """`of(batch)` of all rows, a micro-batch of `batch` rows at a time."""
    from rlhf_jax.model.sharding import joined, map_rows

    inputs, rows_at_once = {k: rows[k] for k in INPUTS}, max(1, batch // ctx.runtime.accumulate)
    found: np.ndarray = joined(map_rows(of, inputs, rows_at_once, ctx.runtime.mesh))
    return found
