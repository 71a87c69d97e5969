"""Time and memory of preparing corpora of growing size.

    python -m rlhf_jax.tools.bench.scale_corpus 20 60 200

The text is generated: words of random syllables by Zipf's law, whose number of kinds grows with the
text, sentences and paragraphs of varied length, and one document in fifty nearly a copy of another,
so that deduplication and the tokenizer have to do what real text asks of them. Each size is
prepared in a process of its own; its memory is the peak of the resident set, which includes about
0.3 GB of imports.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rlhf_jax.tools.bench.machine import command_use

KINDS = 300_000  # of words
COPIES = 0.02  # share of documents that nearly repeat another
_SYLLABLES = [c + v for c in "bdfghklmnprstvz" for v in ("a", "e", "i", "o", "u", "ai", "en", "or")]


def texts(megabytes: float, seed: int = 0) -> Iterator[str]:
    """Documents of about `megabytes` in all."""
    rng = np.random.default_rng(seed)
    lengths = rng.geometric(0.4, KINDS) + (np.arange(KINDS) > 100)
    parts = rng.integers(0, len(_SYLLABLES), (KINDS, int(lengths.max())))
    words = np.array(
        ["".join(_SYLLABLES[p] for p in row[:n]) for row, n in zip(parts, lengths, strict=True)],
        object,
    )
    frequency = 1 / (np.arange(KINDS) + 2.7) ** 1.05
    cumulative = np.cumsum(frequency / frequency.sum())
    left, earlier = megabytes * 1e6, [words[:100]]
    while left > 0:
        if rng.random() < COPIES:
            chosen = earlier[int(rng.integers(len(earlier)))].copy()
            chosen[rng.integers(0, len(chosen), max(1, len(chosen) // 50))] = words[7]
        else:
            count = int(np.clip(rng.lognormal(5.8, 0.9), 30, 20_000))
            chosen = words[np.searchsorted(cumulative, rng.random(count))]
            earlier = [*earlier[-200:], chosen]
        text = _document(chosen, rng)
        left -= len(text)
        yield text


def _document(words: np.ndarray, rng: np.random.Generator) -> str:
    sentences, at = [], 0
    while at < len(words):
        n = int(rng.integers(4, 25))
        sentence = " ".join(words[at : at + n]).capitalize()
        sentences.append(sentence + (".\n\n" if rng.random() < 0.2 else ". "))
        at += n
    return "".join(sentences).strip()


def write(path: Path, megabytes: float) -> int:
    """A file of JSON lines; returns the bytes of its text."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for text in texts(megabytes):
            size += len(text.encode())
            file.write(json.dumps({"text": text}) + "\n")
    return size


PREPARE = """
import sys
from rlhf_jax.study import CorpusConfig
from rlhf_jax.data.corpus import prepare
corpus = prepare(CorpusConfig((sys.argv[1],), vocab=4096, seq_len=256), sys.argv[2], print)
print(corpus.content_hash)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("megabytes", type=float, nargs="*", default=[20, 60, 200])
    args = parser.parse_args()
    print(
        f"{'text MB':>8} {'seconds':>8} {'of CPU':>8} {'memory GB':>10} {'memory / text':>14}  "
        "corpus"
    )
    for megabytes in args.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.jsonl"
            size, begin = write(path, megabytes), time.monotonic()
            used = command_use(
                [sys.executable, "-c", PREPARE, str(path), str(Path(folder) / "runs")]
            )
            seconds = time.monotonic() - begin
        memory = used.peak_mib * 2**20
        print(
            f"{size / 1e6:8.1f} {seconds:8.1f} {used.cpu_seconds:8.1f} {memory / 1e9:10.2f} "
            f"{memory / size:14.2f}  {used.printed.split()[-1]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
