"""The rows of batch t: arithmetic, not state.

Row order is a keyed permutation of row indices, a new one each epoch, evaluated at single points in
constant memory: a four-round Feistel network over the next even power of two (Luby & Rackoff 1988)
with cycle walking down to the number of rows (Black & Rogaway 2002). Batch t is therefore a
function of (seed, t) alone, whatever was loaded before, and by however many hosts.
"""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 4


def permute(index: np.ndarray, n: int, *key: int) -> np.ndarray:
    """Where a keyed permutation of range(n) sends each index.

    Args:
        index: integers in [0, n), any shape.
        n: size of the permuted range.
        key: integers that choose the permutation.

    Returns:
        int64 of the same shape. Memory does not depend on n; the expected number of network
        evaluations per index is at most 4.
    """
    half = np.uint64(max(1, -(-int(n - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8")
    out = np.array(index, np.uint64)
    walking = np.ones(out.shape, bool)
    while walking.any():
        x = out[walking]
        left, right = x >> half, x & mask
        for k in keys:
            left, right = right, left ^ (_mix(right ^ k) & mask)
        out[walking] = (left << half) | right
        walking &= out >= n
    return out.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014), on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def batch_rows(n_rows: int, batch_size: int, seed: int, t: int) -> np.ndarray:
    """Row indices (B,) of batch t: examples t B .. t B + B - 1 of the endless sequence of epochs,
    each of which holds every row exactly once. A batch may span two epochs."""
    examples = np.arange(t * batch_size, (t + 1) * batch_size, dtype=np.int64)
    epochs, index = np.divmod(examples, n_rows)
    out = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = permute(index[here], n_rows, seed, int(epoch))
    return out
