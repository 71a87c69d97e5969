"""Guarantees of `rlhf_jax.data.feedback`."""

import json
import random

import numpy as np
import pytest

from rlhf_jax.config import ConfigError, CorpusConfig
from rlhf_jax.data import BOS, prepare
from rlhf_jax.data.annotators import approved, gold_score, rank_by_annotators
from rlhf_jax.data.feedback import Comparison, Demonstration, read, write
from rlhf_jax.data.prompts import prompts_from

COMPARISON = Comparison("p\u2028q", ("a", "", "c"), (2, 1, 2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = random.Random(0)
    words = [
        "the",
        "good",
        "bad",
        "king",
        "love",
        "hate",
        "saw",
        "river",
        "happy",
        "sad",
        "of",
        "and",
        "a",
        "house",
    ]
    folder = tmp_path_factory.mktemp("feedback")
    with (folder / "a.jsonl").open("w") as file:
        for i in range(120):
            sentences = [" ".join(rng.choices(words, k=14)).capitalize() + "." for _ in range(6)]
            text = "\n\n".join([" ".join(sentences[:3]), "\n".join(sentences[3:])])
            file.write(json.dumps({"text": f"Story {i}. {text}"}) + "\n")
    cfg = CorpusConfig((str(folder / "a.jsonl"),), vocab=310, seq_len=32, validation=0.2, test=0.2)
    return prepare(cfg, folder, lambda _: None)


def test_records_survive_a_round_trip(tmp_path):
    records = [Demonstration("p\n", "é\U0001d11e"), Demonstration("q", " r")]
    write(tmp_path / "d.jsonl", records)
    assert read(tmp_path / "d.jsonl", Demonstration) == records
    write(tmp_path / "c.jsonl", [COMPARISON])
    assert read(tmp_path / "c.jsonl", Comparison) == [COMPARISON]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.jsonl", "d.jsonl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranking": [1, 2]}, "2 ranks for 3 responses"),
        ({"ranking": [0, 1, 2]}, "integers from 1"),
        ({"ranking": "first"}, "ranking: expected a list"),
        ({"responses": ["a"]}, "1 responses"),
        ({"responses": ["a", 3, "b"]}, "responses = 3"),
        ({"prompt": ""}, "not empty"),
        ({"prompt": None}, "prompt = None"),
        ({"kind": "demonstration"}, "expected 'kind': 'comparison'"),
        ({"version": 2}, "expected 'version': 1"),
        ({"promt": "x"}, "unknown field 'promt'. Did you mean 'prompt'"),
    ],
)
def test_malformed_rows_are_refused_with_their_number(tmp_path, change, message):
    path = tmp_path / "c.jsonl"
    write(path, [COMPARISON])
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row) + "\n\n" + json.dumps(row | change) + "\n")
    with pytest.raises(ConfigError, match=rf"c\.jsonl, row 3: .*{message}"):
        read(path, Comparison)


def test_missing_fields_bad_json_and_empty_files_are_refused(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"kind": "demonstration", "version": 1, "prompt": "p"}\n')
    with pytest.raises(ConfigError, match="row 1: no field 'response'"):
        read(path, Demonstration)
    path.write_text("{\n")
    with pytest.raises(ConfigError, match="row 1: not JSON"):
        read(path, Demonstration)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="no records"):
        read(path, Demonstration)
    with pytest.raises(ConfigError, match="expected one kind"):
        write(path, [COMPARISON, Demonstration("a", "b")])


def test_prompts_have_exact_length_and_true_continuations(corpus):
    prompts = prompts_from(corpus, "train", 25, length=9, seed=0, max_response=20)
    texts = [d["text"] for d in corpus.documents("train")]
    assert len({p.prompt for p in prompts}) == 25
    for p in prompts:
        assert len(p.prompt_ids) == 9
        assert p.prompt_ids[0] == BOS
        assert 1 <= len(p.response_ids) <= 20
        assert corpus.tokenizer.decode(p.prompt_ids) == p.prompt
        assert corpus.tokenizer.decode(p.response_ids) == p.response
        assert corpus.tokenizer.encode(p.prompt) == list(p.prompt_ids[1:])
        assert p.prompt[0].isupper()
        assert p.response[0] in " \n"
        assert p.response.endswith(".")
        assert p.response.count(".") == 1
        assert any(p.prompt + p.response in t for t in texts)


def test_prompts_are_a_function_of_the_seed_and_splits_do_not_overlap(corpus):
    parts = {s: prompts_from(corpus, s, 20, 9, 1) for s in ("train", "validation", "test")}
    assert prompts_from(corpus, "train", 10, 9, 1) == parts["train"][:10]
    assert prompts_from(corpus, "train", 20, 9, 2) != parts["train"]
    documents = [{p.document for p in part} for part in parts.values()]
    assert not (documents[0] & documents[1] or documents[0] & documents[2])
    assert not documents[1] & documents[2]


def test_too_many_prompts_are_refused_with_what_there_is(corpus):
    with pytest.raises(ConfigError, match=r"asked for 100000 prompts .* split has \d+"):
        prompts_from(corpus, "test", 100_000, 9, 0)


def test_demonstrations_are_what_the_labeller_approves_of(corpus):
    prompts = prompts_from(corpus, "train", 40, 9, 0)
    kept = approved(prompts, threshold=0.3)
    assert 0 < len(kept) < 40
    assert (gold_score(p.response for p in kept) >= 0.3).all()
    assert (gold_score(p.response for p in prompts if p not in kept) < 0.3).all()
    good, bad = gold_score(["a happy, lovely day", "a horrible, sad day"])
    assert good > 0.3 > -0.3 > bad


def test_annotators_without_noise_give_the_true_ranking_with_ties():
    scores = np.array([[0.1, 0.5, 0.5, -0.3], [1.0, 2.0, 3.0, 4.0]])
    ranking = rank_by_annotators(scores, noise=0.0, annotators=3, seed=0)
    assert ranking.tolist() == [[2, 1, 1, 3], [4, 3, 2, 1]]


def test_one_annotator_prefers_with_the_bradley_terry_probability():
    scores = np.tile([1.0, 0.0], (20_000, 1))
    first = rank_by_annotators(scores, noise=0.5, annotators=1, seed=0)[:, 0] == 1
    assert abs(first.mean() - 1 / (1 + np.exp(-2))) < 0.01
    panel = rank_by_annotators(scores, noise=0.5, annotators=5, seed=0)[:, 0] == 1
    assert panel.mean() > first.mean() + 0.05


def test_rankings_are_dense_and_a_function_of_the_seed():
    scores = np.random.default_rng(0).normal(size=(50, 6))
    a = rank_by_annotators(scores, 1.0, 4, seed=7)
    assert (a == rank_by_annotators(scores, 1.0, 4, seed=7)).all()
    assert (a != rank_by_annotators(scores, 1.0, 4, seed=8)).any()
    for row in a:
        assert sorted(set(row)) == list(range(1, max(row) + 1))
    assert any(len(set(row)) < 6 for row in a)
