"""Which rows make batch t: arithmetic, not state.

Row order is a keyed permutation of row indices, a new one each epoch, evaluated at single points in
constant memory: a four-round Feistel network over the next even power of two (Luby & Rackoff 1988)
with cycle walking down to the number of rows (Black & Rogaway 2002). Batch t is therefore a function
of (seed, t) alone, whatever was loaded before, and by however many hosts.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

T = TypeVar("T")
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


def prefetch(fn: Callable[[int], T], start: int, depth: int = 2) -> Iterator[T]:
    """fn(start), fn(start + 1), ... computed by a thread up to `depth` ahead.

    An exception in `fn` is raised where its item is asked for. Closing the iterator (or leaving it
    to the garbage collector) stops the thread, after the call that it is in.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.05)
            except queue.Full:
                continue

    def work() -> None:
        t = start
        while not stop.is_set():
            try:
                put((fn(t), None))
            except BaseException as e:
                return put((None, e))
            t += 1

    thread = threading.Thread(target=work, daemon=True, name="prefetch")

    def items() -> Iterator[T]:
        thread.start()
        try:
            while True:
                value, error = ready.get()
                if error is not None:
                    raise error
                yield value  # type: ignore[misc]
        finally:
            stop.set()
            thread.join()

    return items()
