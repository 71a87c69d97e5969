"""The tokens that a benchmark feeds to a shape: random, from a fixed seed."""

from __future__ import annotations

import numpy as np

from rlhf_jax.tools.bench.shapes import Shape


def random_rows(shape: Shape, count: int, seed: int = 0) -> np.ndarray:
    """`count` batches of token ids: (count, B, T+1) int32, uniform over the vocabulary."""
    size = (count, shape.batch, shape.seq_len + 1)
    return np.random.default_rng(seed).integers(0, shape.vocab, size, np.int32)


def batch_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    """A training batch of rows (B, T+1): one document a row, every target counted."""
    tokens, targets = rows[:, :-1].copy(), rows[:, 1:].copy()
    ones = np.ones_like(tokens)
    return {
        "tokens": tokens,
        "targets": targets,
        "segments": ones,
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        "weights": ones.astype(np.float32),
        "bytes": ones,
    }
