"""What reading batches costs the product's loop on a shape, as a process."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.data import Batch, Corpus, prepare
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.study.config import CorpusConfig, from_json
from rlhf_jax.tools.bench.peers import serve
from rlhf_jax.tools.bench.shapes import Shape
from rlhf_jax.tools.bench.train_program import Training

DOCUMENTS, WORDS = 400, 300  # of a document; a thousand rows or two in all
READS = 50


def corpus(root: Path, shape: Shape) -> Corpus:
    """A corpus of made-up words, prepared as every corpus is; kept in `root` for the next shape."""
    text = root / "words.jsonl"
    if not text.exists():
        rng = random.Random(0)
        syllables = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "lnrs "]
        lexicon = ["".join(rng.choices(syllables, k=2)).replace(" ", "") for _ in range(3000)]
        with text.open("w") as file:
            for _ in range(DOCUMENTS):
                file.write(json.dumps({"text": " ".join(rng.choices(lexicon, k=WORDS))}) + "\n")
    cfg = CorpusConfig(
        (str(text),), vocab=shape.vocab, seq_len=shape.seq_len, heldout_tokens=1, dedup=False
    )
    return prepare(cfg, root / "runs", lambda _: None)


def measure(shape: dict[str, Any], rounds: int, seconds: float, root: str) -> dict[str, Any]:
    """Seconds to read a batch and to place it, and of a step in the product's loop: with the loader
    called in the loop (as the product does), and with one batch that is there already. In turns of
    about `seconds`; medians over `rounds`."""
    at = from_json(Shape, shape)
    text, training = corpus(Path(root), at), Training(at)

    def read(t: int) -> Batch:
        return text.batch("train", at.batch, 0, t)

    def batch_at(t: int) -> dict[str, jax.Array]:
        return place_batch(read(t), training.mesh, AXES)

    ready = batch_at(0)
    training.run([ready] * 2)
    count = max(2, round(seconds * 5 / _seconds(lambda: training.run([ready] * 5))))

    turns: dict[str, Callable[[], Any]] = {
        "step_seconds": lambda: training.run(map(batch_at, range(count))),
        "step_without_loader": lambda: training.run([ready] * count),
    }
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for n in range(rounds):
        for name in list(turns)[:: 1 if n % 2 == 0 else -1]:
            taken[name].append(_seconds(turns[name]) / count)
    steps = {name: statistics.median(each) for name, each in taken.items()}
    read_seconds = statistics.median(_seconds(read, t) for t in range(READS))
    batch = read(0)
    place_seconds = statistics.median(
        _seconds(lambda: jax.block_until_ready(place_batch(batch, training.mesh, AXES)))
        for _ in range(READS)
    )
    return {
        "read_seconds": read_seconds,
        "place_seconds": place_seconds,
        **steps,
        "share_of_step": (read_seconds + place_seconds) / steps["step_seconds"],
    }


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    serve({"measure": measure})
