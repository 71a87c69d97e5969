"""Near-duplicate removal: a document goes when half of its word 8-grams were seen before.

Containment of hashed word n-grams (Broder 1997), exact rather than sketched: at these sizes one
sort of all n-grams is cheap. Duplicates are found within a source and across sources, and what is
kept does not depend on the order in which documents or sources are given.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

NGRAM = 8
SEEN = 0.5

_WORD = re.compile(rb"[a-z0-9\x80-\xff]+")


def near_duplicates(texts: Sequence[str], digests: Sequence[bytes]) -> np.ndarray:
    """Which documents to drop.

    Args:
        texts: the documents.
        digests: a hash of each; documents are visited in order of their hash.

    Returns:
        (len(texts),) bool: True where at least half of the document's word 8-grams (of a shorter
        document: its one n-gram) already occur in documents that are kept.
    """
    grams = _grams(texts)
    sizes = np.array([len(g) for g in grams], np.int64)
    ends = np.cumsum(sizes)
    flat = np.concatenate(grams) if grams else np.zeros(0, np.uint64)
    unique, ids = np.unique(flat, return_inverse=True)
    seen = np.zeros(len(unique), bool)
    drop = np.zeros(len(texts), bool)
    for i in sorted(range(len(texts)), key=lambda i: (digests[i], i)):
        mine = ids[ends[i] - sizes[i] : ends[i]]
        if seen[mine].mean() >= SEEN:
            drop[i] = True
        else:
            seen[mine] = True
    return drop


def _grams(texts: Sequence[str]) -> list[np.ndarray]:
    """Per text the 64-bit hashes of its word n-grams; case and punctuation do not count."""
    known: dict[bytes, int] = {}
    factors = np.array([pow(0x9E3779B97F4A7C15, k, 1 << 64) for k in range(NGRAM)], np.uint64)
    out = []
    for text in texts:
        words = _WORD.findall(text.encode().lower()) or [text.encode()]
        for word in words:
            if word not in known:
                digest = hashlib.blake2b(word, digest_size=8).digest()
                known[word] = int.from_bytes(digest, "little")
        hashes = np.fromiter((known[w] for w in words), np.uint64, len(words))
        n = min(NGRAM, len(hashes))
        count = len(hashes) - n + 1
        gram = np.full(count, n, np.uint64)
        for k in range(n):
            gram += hashes[k : k + count] * factors[k]
        out.append(gram)
    return out
