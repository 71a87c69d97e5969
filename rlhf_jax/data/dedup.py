"""Near-duplicate removal: a document is dropped if half of its word 8-grams are in kept documents.
A document of fewer words has a single n-gram. If a quarter of a text is in scripts without spaces,
their characters count as words, and 24-grams are used.

Containment of hashed word n-grams (Broder 1997), exact rather than sketched. Duplicates are found
within a source and across sources, and the result does not depend on the order in which documents
or sources are given. N-grams are kept in a file; only those that occur more than once are held in
memory.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

NGRAM = 8
CHARACTERS = 24  # about 8 words
SEEN = 0.5
PART = 1 << 25  # n-grams that are sorted at once
READ = 1 << 22  # n-grams that are read at once
KNOWN = 1 << 20  # words whose hashes are remembered

_WORD = re.compile(rb"[a-z0-9\x80-\xff]+")
# Scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, kana, Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


class Shingles:
    """The n-grams of documents, in a temporary file in `folder`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.ends = array("q", [0])  # n-grams before each document
        self.known: dict[bytes, int] = {}

    def add(self, text: str) -> None:
        gram = _grams(text, self.known)
        self.file.write(gram.data)
        self.ends.append(self.ends[-1] + len(gram))

    def duplicates(self, order: Iterable[int]) -> np.ndarray:
        """Which documents, numbered as they were added, to drop, (n,) bool: near-duplicates of
        documents that come before them in `order` and are kept."""
        self.file.flush()
        repeated = self._repeated()
        seen = np.zeros(len(repeated) + 1, bool)  # last: all n-grams that occur once
        drop = np.zeros(len(self.ends) - 1, bool)
        for i in order:
            grams = self._read(self.ends[i], self.ends[i + 1])
            mine = np.searchsorted(repeated, grams)
            if len(repeated):
                found = repeated[np.minimum(mine, len(repeated) - 1)] == grams
                mine = np.where(found, mine, len(repeated))
            if seen[mine].mean() >= SEEN:
                drop[i] = True
            else:
                seen[mine] = True
                seen[-1] = False
        return drop

    def _read(self, start: int, stop: int) -> np.ndarray:
        self.file.seek(8 * start)
        return np.frombuffer(self.file.read(8 * (stop - start)), np.uint64)

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, self.ends[-1], READ):
            yield self._read(start, min(start + READ, self.ends[-1]))

    def _repeated(self) -> np.ndarray:
        """The n-grams that occur more than once, sorted, by parts of the range of hashes."""
        bits = max(0, -(-self.ends[-1] // PART) - 1).bit_length()
        found = []
        for part in range(1 << bits):
            held, size, most = [np.zeros(0, np.uint64)], 0, 2 * PART
            for block in self._blocks():
                held.append(block[block >> np.uint64(64 - bits) == part] if bits else block)
                size += len(held[-1])
                if size > most:  # hashes are not spread evenly
                    held = [_at_most_twice(np.concatenate(held))]
                    size, most = len(held[0]), 2 * max(PART, len(held[0]))
            grams = _at_most_twice(np.concatenate(held))
            found.append(grams[1:][grams[1:] == grams[:-1]])
        return np.concatenate(found)


def _at_most_twice(grams: np.ndarray) -> np.ndarray:
    """N-grams, sorted, without the third and later copies of each."""
    grams.sort()
    keep = np.ones(len(grams), bool)
    keep[2:] = grams[2:] != grams[:-2]
    return grams[keep]


def _grams(text: str, known: dict[bytes, int]) -> np.ndarray:
    """The 64-bit hashes of a text's word n-grams; case and punctuation do not count."""
    n = NGRAM
    if not text.isascii() and 4 * len(_UNSPACED.findall(text)) >= len(text):
        text, n = _UNSPACED.sub(r" \g<0> ", text), CHARACTERS
    words = _WORD.findall(text.encode().lower()) or [text.encode()]
    if len(known) > KNOWN:
        known.clear()
    for word in words:
        if word not in known:
            digest = hashlib.blake2b(word, digest_size=8).digest()
            known[word] = int.from_bytes(digest, "little")
    hashes = np.fromiter((known[w] for w in words), np.uint64, len(words))
    n = min(n, len(hashes))
    count = len(hashes) - n + 1
    gram = np.full(count, n, np.uint64)
    for k in range(n):
        gram += hashes[k : k + count] * _FACTORS[k]
    return gram


_FACTORS = np.array([pow(0x9E3779B97F4A7C15, k, 1 << 64) for k in range(CHARACTERS)], np.uint64)
