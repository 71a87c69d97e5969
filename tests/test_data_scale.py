"""A corpus is built in files, a block at a time, and is what it was when all of it stood in
memory."""

import hashlib
import json
import random
import re
import tracemalloc

import numpy as np
import pytest

from rlhf_jax.data import dedup, packing
from rlhf_jax.data.collected import Collected
from rlhf_jax.data.corpus import prepare
from rlhf_jax.data.packing import pack
from rlhf_jax.data.passages import PASSAGE, passages
from rlhf_jax.data.tokenizer import BOS, EOS, PAD
from rlhf_jax.study.config import CorpusConfig

# Of the corpus of `written` at the last commit that built corpora in memory (20528b6).
GOLDEN = {
    "content_hash": "da987dad5fccf7da",
    "tokenizer_hash": "aeb8aa4f66ef2f53",
    "near_duplicates": {"documents": 16, "bytes": 21213},
    "rows": {
        "train": "339466050acf28ab",
        "validation": "6074e1564e775d20",
        "test": "561198b5a2a1607f",
    },
}


def near_duplicates(texts, digests):
    """Which texts are dropped, in the order of their digests."""
    shingles = dedup.Shingles()
    for text in texts:
        shingles.add(text)
    return shingles.duplicates(sorted(range(len(texts)), key=lambda i: (digests[i], i)))


def written(path, documents=150):
    """A text of words of three letters; every ninth document repeats one before it, nearly."""
    rng = random.Random(3)

    def below(n):
        return int(rng.random() * n)

    words = ["".join("aeiou bcdfé"[below(11)] for _ in range(3)) for _ in range(400)]
    texts = []
    for i in range(documents):
        if i % 9 == 8:
            text = texts[below(i)] + " and more of it."
        else:
            text = " ".join(words[int(400 * rng.random() ** 2)] for _ in range(60 + below(600)))
        texts.append(text)
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


@pytest.mark.parametrize("small", [False, True])
def test_a_corpus_is_what_it_was_whatever_the_size_of_blocks(tmp_path, monkeypatch, small):
    if small:
        monkeypatch.setattr(packing, "BLOCK", 3)
        monkeypatch.setattr(dedup, "PART", 5000)
        monkeypatch.setattr(dedup, "KNOWN", 100)
    source = written(tmp_path / "a.jsonl")
    cfg = CorpusConfig((str(source),), vocab=330, seq_len=32, validation=0.1, test=0.1)
    corpus = prepare(cfg, tmp_path / "runs", lambda _: None)
    rows = {s: hashlib.sha256(corpus.rows(s).tobytes()).hexdigest()[:16] for s in GOLDEN["rows"]}
    (of_source,) = corpus.manifest["sources"].values()
    assert {
        "content_hash": corpus.content_hash,
        "tokenizer_hash": corpus.manifest["tokenizer_hash"][:16],
        "near_duplicates": of_source["near_duplicates"],
        "rows": rows,
    } == GOLDEN


def test_rows_on_disk_are_the_stream_cut_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "BLOCK", 2)
    rng = np.random.default_rng(0)
    documents = [rng.integers(8, 300, int(n)).tolist() for n in rng.integers(0, 40, 30)]
    rows = pack(iter(documents), 7, 300, 5, tmp_path / "r.npy")
    raw = [np.array([BOS, *ids, EOS], np.uint16) for ids in documents]
    raw.sort(key=lambda x: hashlib.blake2b(x.tobytes(), digest_size=16, key=b"5").digest())
    stream = np.concatenate(raw).tolist()
    n = -(-(len(stream) - 1) // 7)
    stream += [PAD] * (n * 7 + 1 - len(stream))
    expected = [stream[7 * i : 7 * i + 8] for i in range(n)]
    assert rows.dtype == np.uint16 and rows.tolist() == expected
    assert pack(documents, 7, 300, 5).tolist() == expected
    np.save(tmp_path / "other.npy", np.array(expected, np.uint16))
    assert (tmp_path / "r.npy").read_bytes() == (tmp_path / "other.npy").read_bytes()


def test_near_duplicates_are_those_of_sets_of_word_eight_grams(monkeypatch):
    """Against sets of tuples of words, with n-grams sorted in many parts."""
    monkeypatch.setattr(dedup, "PART", 64)
    rng = random.Random(0)
    texts = []
    for i in range(120):
        words = [f"w{rng.randrange(300)}" for _ in range(rng.randrange(1, 60))]
        if i % 3 == 2:
            words = [*texts[rng.randrange(len(texts))].split(), *words[: rng.randrange(40)]]
        texts.append(" ".join(words))
    digests = [hashlib.sha256(t.encode()).digest() for t in texts]
    seen, expected = set(), [False] * len(texts)
    for i in sorted(range(len(texts)), key=lambda i: (digests[i], i)):
        words = texts[i].split()
        n = min(8, len(words))
        grams = [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]
        if sum(g in seen for g in grams) >= len(grams) / 2:
            expected[i] = True
        else:
            seen |= set(grams)
    assert 5 < sum(expected) < 60
    assert near_duplicates(texts, digests).tolist() == expected


@pytest.mark.parametrize(
    "letters", ["\u4e00", "\u3042", "\u0e01"], ids=["Chinese", "Japanese", "Thai"]
)
def test_near_duplicates_are_seen_where_no_spaces_are(letters):
    rng = random.Random(1)
    new = lambda: "".join(chr(ord(letters) + rng.randrange(40)) for _ in range(400))  # noqa: E731
    a, b = new(), new()
    copy = a[:200] + "\u3002" + a[201:]
    digests = [bytes([i]) for i in range(3)]
    assert near_duplicates([a, b, copy], digests).tolist() == [False, False, True]


def by_blank_lines(text):
    """Passages as they have always been of texts with blank lines."""
    passage = ""
    for paragraph in re.split(r"(?:\r?\n){2,}", text):
        passage += f"\n\n{paragraph}" if passage else paragraph
        if len(passage) >= PASSAGE:
            yield passage
            passage = ""
    if passage.strip():
        yield passage


def test_passages_of_text_with_blank_lines_do_not_depend_on_how_it_is_read(monkeypatch):
    monkeypatch.setattr("rlhf_jax.data.passages.SHARES", 0)  # read no further than a block ahead
    rng = random.Random(2)
    ends = ["\n", "\r\n", "\n\n", "\r\n\r\n", "\n\n\n", "\r", "\n \n", "\n\n\r"]
    for _ in range(300):
        pieces = ["word " * rng.randrange(120) + rng.choice(ends) for _ in range(rng.randrange(80))]
        text = "\n\n".join(["".join(pieces), "end"])
        blocks, at = [], 0
        while at < len(text):
            size = rng.choice([1, 2, 50, 3000])
            blocks.append(text[at : at + size])
            at += size
        assert list(passages(blocks, shares=1)) == list(by_blank_lines(text))


@pytest.mark.parametrize(
    "text",
    [
        "The river is old.\n" * 1000,
        "The river is old. " * 1000,
        "\u6cb3\u6d41\u5f88\u53e4\u8001\u3002" * 3000,
        "x" * 20_000,
        "Title\n\n" + "The river is old.\n" * 1000,
        "\n\n" + "The river is old.\r\n" * 1000 + "\n\n",
    ],
    ids=["a sentence a line", "one line", "Chinese", "one word", "a title", "blank ends"],
)
def test_a_text_that_blank_lines_do_not_divide_is_cut_into_passages(text):
    found = list(passages([text]))
    assert 100 <= len(found) <= 250 and max(map(len, found)) <= 500
    assert re.sub(r"\s", "", "".join(found)) == re.sub(r"\s", "", text)
    assert len(list(passages([text], shares=1))) == 1  # of many files each stays a document


@pytest.mark.parametrize("same", [False, True], ids=["different", "all the same"])
def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch, same):
    """0.7 MB more of text, with 1 MB of n-grams, take less than 0.3 MB more of memory."""
    for name, value in (("PART", 1 << 13), ("READ", 1 << 11), ("KNOWN", 1000)):
        monkeypatch.setattr(dedup, name, value)
    peaks = []
    for documents in (20, 140):
        source = tmp_path / f"{documents}.jsonl"
        source.write_text(
            "".join(
                json.dumps({"text": " ".join(str((i * (not same) + 1) * w) for w in range(1000))})
                + "\n"
                for i in range(documents)
            )
        )
        tracemalloc.start()
        with Collected(CorpusConfig((str(source),)), tmp_path, tmp_path, lambda _: None) as found:
            kept, _ = found.deduplicated(lambda _: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(kept) == (1 if same else documents)
    assert peaks[1] - peaks[0] < 300_000
