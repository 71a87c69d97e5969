"""Documents to rows of T+1 tokens, and rows to batches.

A document is [BOS] tokens [EOS]. The documents of a split, in a shuffled order, are one stream that
is cut into rows of T+1 tokens with stride T, so every token is a target exactly once. Nothing but
token ids is stored: segments, positions, weights and byte counts follow from where BOS stands.

Dimension letters: N rows, B batch, T time, V vocabulary.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from rlhf_jax.data.tokenizer import BOS, EOS, PAD
from rlhf_jax.study.config import ConfigError

BLOCK = 4096  # rows made at once

Batch = dict[str, np.ndarray]
"""tokens, targets, segments, positions, bytes int32 and weights float32, each (B, T).

tokens: inputs. targets: the next tokens. segments: which document of the row an input belongs to,
from 1; 0 is padding. positions: index within the segment, from 0. weights: 1 where the target
continues the input's document, else 0. bytes: UTF-8 bytes of the target, 0 where the weight is 0;
EOS counts 0. Bits per byte = sum(weights * nll) / ln 2 / sum(bytes).
"""


class Example(NamedTuple):
    """Token ids, and a mask: 1 for those that are learned, the assistant's turns with their EOS."""

    ids: list[int]
    mask: list[int]


def pack(
    documents: Iterable[Sequence[int]],
    seq_len: int,
    vocab: int,
    seed: int,
    path: Path | None = None,
) -> np.ndarray:
    """Rows (N, T+1) of the documents' token ids.

    Args:
        documents: token ids of each document, without BOS and EOS.
        seq_len: T.
        vocab: V; it decides the dtype.
        seed: of the order of documents, which depends on their tokens and the seed alone.
        path: the .npy file to write the rows to, a block at a time, so that memory does not grow.

    Returns:
        (N, T+1) uint16 or uint32, the last row padded with PAD. N = ceil((tokens - 1) / T). With
        `path` they are memory-mapped.
    """
    dtype = np.dtype(np.uint16 if vocab <= 1 << 16 else np.uint32)
    key = str(seed).encode()
    found: list[tuple[bytes, int, int]] = []  # hash of a document, where its tokens begin and end
    with tempfile.SpooledTemporaryFile(1 << 26, dir=str(path.parent) if path else None) as file:
        end = 0
        for ids in documents:
            raw = np.array([BOS, *ids, EOS], dtype).tobytes()
            order = hashlib.blake2b(raw, digest_size=16, key=key).digest()
            file.write(raw)
            found.append((order, end, end := end + len(raw)))
        found.sort()
        n_rows = -(-(max(1, end // dtype.itemsize) - 1) // seq_len)
        blocks = _blocks(file, found, dtype, seq_len, n_rows)
        if path is None:
            return np.concatenate([np.zeros((0, seq_len + 1), dtype), *blocks])
        with path.open("wb") as out:
            header = {"descr": dtype.str, "fortran_order": False, "shape": (n_rows, seq_len + 1)}
            np.lib.format.write_array_header_1_0(out, header)
            for block in blocks:
                out.write(np.ascontiguousarray(block).data)
    rows: np.ndarray = np.load(path, mmap_mode="r")
    return rows


def _blocks(
    file: IO[bytes],
    documents: Iterable[tuple[bytes, int, int]],
    dtype: np.dtype,
    seq_len: int,
    n_rows: int,
) -> Iterator[np.ndarray]:
    """Blocks of rows of the stream of documents, in this order, the last row padded with PAD."""
    parts, held = [], 0
    for _, start, stop in documents:
        file.seek(start)
        parts.append(np.frombuffer(file.read(stop - start), dtype))
        held += len(parts[-1])
        if (full := (held - 1) // seq_len) >= BLOCK:
            stream = np.concatenate(parts)
            yield _windows(stream, seq_len, full)
            parts, n_rows = [stream[full * seq_len :]], n_rows - full
            held = len(parts[0])
    padded = np.full(n_rows * seq_len + 1, PAD, dtype)
    if parts:
        padded[:held] = np.concatenate(parts)
    if n_rows:
        yield _windows(padded, seq_len, n_rows)


def _windows(stream: np.ndarray, seq_len: int, rows: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(stream, seq_len + 1)
    return np.ascontiguousarray(windows[::seq_len][:rows])


def batch_of(rows: np.ndarray, token_bytes: np.ndarray) -> Batch:
    """The `Batch` of packed rows (B, T+1); `token_bytes` is `Tokenizer.token_bytes` (V,)."""
    rows = rows.astype(np.int32)
    starts = rows == BOS
    segments = np.cumsum(starts, axis=1, dtype=np.int32) + (rows[:, :1] != BOS)
    segments = np.where(rows == PAD, 0, segments).astype(np.int32)
    tokens, targets = rows[:, :-1], rows[:, 1:]
    weights = (segments[:, :-1] == segments[:, 1:]) & (targets != PAD)
    return _batch(tokens, targets, segments[:, :-1], weights, token_bytes)


def _batch(
    tokens: np.ndarray,
    targets: np.ndarray,
    segments: np.ndarray,
    weights: np.ndarray,
    token_bytes: np.ndarray,
) -> Batch:
    length = np.arange(tokens.shape[1], dtype=np.int32)
    new = np.ones_like(segments, bool)
    new[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = np.maximum.accumulate(np.where(new, length, 0), axis=1)
    return {
        "tokens": np.ascontiguousarray(tokens, np.int32),
        "targets": np.ascontiguousarray(targets, np.int32),
        "segments": np.ascontiguousarray(segments, np.int32),
        "positions": np.where(segments == 0, 0, length - start).astype(np.int32),
        "weights": weights.astype(np.float32),
        "bytes": np.where(weights, token_bytes[targets], 0).astype(np.int32),
    }


def pack_examples(examples: Iterable[Example], seq_len: int, token_bytes: np.ndarray) -> Batch:
    """Supervised examples, several to a row, each its own segment.

    Args:
        examples: nothing is added to them: a prompt brings its BOS, and an answer that is to teach
            the model to stop ends in EOS.
        seq_len: T; an example of n tokens takes n - 1 inputs.
        token_bytes: `Tokenizer.token_bytes` (V,).

    Returns:
        The `Batch`, whose weights are 1 on learned targets alone. Rows are filled first-fit in the
        order given.

    Raises:
        ConfigError: an example that is too long, that does not begin with a given token, or of
            which nothing is learned.
    """
    filled: list[list[Example]] = []
    free: list[int] = []
    for i, example in enumerate(examples):
        ids, mask = example
        if not ids or mask[0] or not any(mask):
            raise ConfigError(
                f"example {i} has {mask.count(0)} prompt and {mask.count(1)} completion tokens; it "
                "must begin with a token of a prompt, and some must be learned"
            )
        size = len(ids) - 1
        if size > seq_len:
            raise ConfigError(
                f"example {i} takes {size} inputs, a row holds {seq_len}; raise seq_len or shorten "
                "the example"
            )
        row = next((r for r, room in enumerate(free) if room >= size), None)
        if row is None:
            row = len(free)
            free.append(seq_len)
            filled.append([])
        free[row] -= size
        filled[row].append(example)
    shape = (len(filled), seq_len)
    tokens, targets = np.full(shape, PAD, np.int32), np.full(shape, PAD, np.int32)
    segments, weights = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, in_row in enumerate(filled):
        at = 0
        for segment, (ids, mask) in enumerate(in_row, 1):
            here = np.s_[row, at : at + len(ids) - 1]
            tokens[here], targets[here] = ids[:-1], ids[1:]
            segments[here], weights[here] = segment, mask[1:]
            at += len(ids) - 1
    return _batch(tokens, targets, segments, weights, token_bytes)


def left_padded(examples: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Token ids (n, length) int32, each example at the right end, PAD before it.

    Raises:
        ConfigError: an example is empty or longer than `length`.
    """
    out = np.full((len(examples), length), PAD, np.int32)
    for i, ids in enumerate(examples):
        if not 0 < len(ids) <= length:
            raise ConfigError(
                f"prompt {i} takes {len(ids)} tokens, expected 1 to {length}; raise prompt_len or "
                "shorten it"
            )
        out[i, length - len(ids) :] = ids
    return out
