"""Guarantees of `rlhf_jax.data.corpus`, on small generated files."""

import dataclasses
import json
import multiprocessing
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from rlhf_jax.data import corpus as corpus_module
from rlhf_jax.data import find, prepare
from rlhf_jax.data.corpus import SPLITS, recipe
from rlhf_jax.data.packing import batch_of
from rlhf_jax.data.tokenizer import BOS, EOS, PAD
from rlhf_jax.study.config import ConfigError, CorpusConfig

WORDS = [
    a + b
    for a in ["b", "c", "d", "f", "g", "l", "m", "n", "p", "r", "s", "t", "v"]
    for b in ["an", "el", "ir", "od", "ut"]
]


def quiet(_: str) -> None:
    pass


def sentences(rng: random.Random, n: int) -> str:
    """n generated sentences with capitals, punctuation, line breaks and some non-ASCII."""
    out = []
    for _ in range(n):
        words = [rng.choice(WORDS) + rng.choice(WORDS[:9]) for _ in range(rng.randint(4, 12))]
        out.append(" ".join(words).capitalize() + rng.choice([".", "?", "!", " – é."]))
    return "\n".join(out)


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    return [sentences(rng, rng.randint(3, 12)) for _ in range(150)]


def config(*sources, **changes):
    base = CorpusConfig(
        sources=sources, vocab=320, seq_len=32, validation=0.1, test=0.1, heldout_tokens=500
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def corpus(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return prepare(config(write_jsonl(folder / "a.jsonl", texts)), folder / "runs", quiet)


def test_text_is_read_back_whole_and_splits_are_disjoint(corpus, texts):
    parts = {s: [d["text"] for d in corpus.documents(s)] for s in SPLITS}
    assert Counter(t for part in parts.values() for t in part) == Counter(texts)
    assert all(parts.values())
    for split, part in parts.items():
        assert corpus.manifest["splits"][split]["bytes"] == sum(len(t.encode()) for t in part)


def test_every_token_is_a_target_exactly_once_and_bytes_are_utf8_length(corpus):
    for split in SPLITS:
        batch = batch_of(corpus.rows(split), corpus.token_bytes)
        assert batch["weights"].sum() == corpus.tokens(split)
        assert batch["bytes"].sum() == corpus.manifest["splits"][split]["bytes"]
        stream = batch["targets"][batch["targets"] != PAD]
        texts = [d["text"] for d in corpus.documents(split)]
        expected = Counter(i for t in texts for i in corpus.tokenizer.encode(t))
        got = Counter(stream.tolist())
        assert got.pop(EOS) == len(texts)
        assert got.pop(BOS) == len(texts) - 1
        assert got == expected


def test_no_target_lies_in_another_document(corpus):
    batch = batch_of(corpus.rows("train"), corpus.token_bytes)
    live = batch["weights"] > 0
    assert not (live & (batch["tokens"] == EOS)).any()
    assert not (live & np.isin(batch["targets"], [BOS, PAD])).any()
    assert (live | np.isin(batch["tokens"], [EOS, PAD]) | (batch["targets"] == PAD)).all()


def test_each_row_comes_once_per_epoch_and_batches_depend_on_seed_and_t_alone(corpus):
    n = len(corpus.rows("train"))
    batches = [corpus.batch("train", 7, seed=3, t=t) for t in range(n)]
    seen = np.concatenate([b["tokens"] for b in batches])
    for epoch in range(7):
        rows = sorted(map(bytes, seen[epoch * n : (epoch + 1) * n]))
        assert rows == sorted(map(bytes, corpus.rows("train")[:, :-1].astype(np.int32)))
    again = corpus.batch("train", 7, seed=3, t=n // 2)
    assert all((again[k] == batches[n // 2][k]).all() for k in again)
    assert (seen[:n] != seen[n : 2 * n]).any()
    other = corpus.batch("train", 7, seed=4, t=0)
    assert (other["tokens"] != batches[0]["tokens"]).any()


def test_a_subset_repeats_its_own_rows_lies_in_larger_ones_and_ignores_the_seed(corpus):
    def rows(subset, seed, batches):
        found = [corpus.batch("train", 4, seed, t, subset)["tokens"] for t in batches]
        return [row.tobytes() for batch in found for row in batch]

    n = len(corpus.rows("train"))
    epoch = rows(8, 0, range(2))
    assert len(set(epoch)) == 8
    assert sorted(epoch) == sorted(rows(8, 0, range(2, 4))) == sorted(rows(8, 1, range(2)))
    assert epoch != rows(8, 1, range(2))
    assert set(epoch) < set(rows(16, 0, range(4)))
    assert set(rows(None, 0, range(n // 4 + 1))) == set(rows(n, 0, range(n // 4 + 1)))


def test_heldout_set_is_exact_and_the_same_for_every_batch_size(corpus):
    first = np.concatenate([b["targets"][b["weights"] > 0] for b in corpus.heldout(64)])
    for size in (1, 5, 64):
        batches = corpus.heldout(size)
        assert all(b["tokens"].shape == (size, 32) for b in batches)
        kept = [b["targets"][b["weights"] > 0] for b in batches]
        targets = np.concatenate(kept)
        assert len(targets) == 500
        assert sum(b["bytes"].sum() for b in batches) == corpus.token_bytes[targets].sum()
        assert (targets == first).all()


def test_heldout_larger_than_the_validation_split_is_refused(corpus):
    small = dataclasses.replace(corpus, cfg=dataclasses.replace(corpus.cfg, heldout_tokens=10**6))
    with pytest.raises(ConfigError, match=str(corpus.tokens("validation"))):
        small.heldout()


def test_content_hash_depends_on_content_not_on_files_order_or_root(corpus, texts, tmp_path):
    shuffled = texts[:]
    random.Random(5).shuffle(shuffled)
    a = write_jsonl(tmp_path / "z.jsonl", shuffled[:40])
    b = write_jsonl(tmp_path / "b.jsonl", shuffled[40:])
    for i, sources in enumerate([(a, b), (b, a)]):
        other = prepare(config(*sources), tmp_path / str(i), quiet)
        assert other.content_hash == corpus.content_hash
        for split in SPLITS:
            assert (other.rows(split) == corpus.rows(split)).all()
    fewer = write_jsonl(tmp_path / "c.jsonl", texts[1:])
    assert prepare(config(fewer), tmp_path / "2", quiet).content_hash != corpus.content_hash


def test_near_duplicates_across_sources_are_removed(texts, tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", texts)
    altered = [t.lower().replace(".", " ;") + "\nOne more line here" for t in texts[:30]]
    b = write_jsonl(tmp_path / "b.jsonl", altered)
    corpus = prepare(config(a, b), tmp_path, quiet)
    dropped = [s["near_duplicates"]["documents"] for s in corpus.manifest["sources"].values()]
    assert sum(dropped) == 30
    kept = prepare(config(a, b, dedup=False), tmp_path, quiet)
    documents = [sum(c.manifest["splits"][s]["documents"] for s in SPLITS) for c in (corpus, kept)]
    assert documents == [150, 180]


def test_second_call_finds_the_corpus_without_building(texts, tmp_path, monkeypatch):
    cfg = config(write_jsonl(tmp_path / "a.jsonl", texts))
    assert find(cfg, tmp_path) is None
    first = prepare(cfg, tmp_path, quiet)
    monkeypatch.setattr(corpus_module, "_build", None)
    assert prepare(cfg, tmp_path, quiet).content_hash == first.content_hash
    assert find(dataclasses.replace(cfg, heldout_tokens=9), tmp_path).folder == first.folder
    write_jsonl(tmp_path / "a.jsonl", texts[1:])
    assert find(cfg, tmp_path) is None


def test_interrupted_prepare_leaves_nothing_half_written_and_recovers(texts, tmp_path, monkeypatch):
    cfg = config(write_jsonl(tmp_path / "a.jsonl", texts))
    data = tmp_path / "data"
    (data / ".building-killed").mkdir(parents=True)
    with monkeypatch.context() as m:
        m.setattr(corpus_module, "pack", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(cfg, tmp_path, quiet)
    assert sorted(p.name for p in data.iterdir()) == ["index", "prepare.lock"]
    assert find(cfg, tmp_path) is None
    assert len(prepare(cfg, tmp_path, quiet).rows("train")) > 10


def _prepare(cfg, root, queue):
    queue.put(prepare(cfg, root, quiet).content_hash)


def test_two_processes_prepare_at_once(texts, tmp_path, corpus):
    cfg = config(write_jsonl(tmp_path / "a.jsonl", texts))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_prepare, args=(cfg, tmp_path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    hashes = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert hashes == {corpus.content_hash}


def test_rows_are_decoded_again_where_the_memory_map_is_missing(texts, tmp_path, corpus):
    other = prepare(config(write_jsonl(tmp_path / "a.jsonl", texts)), tmp_path, quiet)
    (other.folder / "rows-train.npy").unlink()
    assert (other.rows("train") == corpus.rows("train")).all()


def test_neither_tensorflow_nor_jax_is_imported_by_prepare_and_batch(texts, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    code = f"""
import sys
from pathlib import Path
from rlhf_jax.study import CorpusConfig
from rlhf_jax.data import find, prepare
cfg = CorpusConfig(({source!r},), vocab=320, seq_len=32, validation=0.1, test=0.1)
root = Path({str(tmp_path)!r})
assert find(cfg, root) is None and "tensorflow_datasets" not in sys.modules
prepare(cfg, root).batch("train", 4, 0, 0)
assert list(find(cfg, root).documents("test"))
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_too_small_a_corpus_says_what_to_do(texts, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts[:3])
    with pytest.raises(ConfigError, match="split got none of 3 documents"):
        prepare(config(source, validation=0.001, test=0.0), tmp_path, quiet)
    with pytest.raises(ConfigError, match="vocab = 60000"):
        prepare(config(source, validation=0.0, test=0.0, vocab=60000), tmp_path, quiet)
    with pytest.raises(ConfigError, match="at least 300"):
        prepare(config(source, validation=0.0, test=0.0, vocab=256), tmp_path, quiet)


def test_recipe_ignores_the_order_of_sources(tmp_path):
    assert recipe(config("kjv", "wiki")) == recipe(config("wiki", "kjv"))
    assert recipe(config("kjv")) != recipe(config("kjv", seed=1))


def test_an_empty_split_is_refused_by_name(corpus):
    with pytest.raises(ConfigError, match="this corpus has train, validation, test"):
        corpus.rows("valid")
