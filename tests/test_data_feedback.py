"""Guarantees of `rlhf_jax.data.feedback`, `prompts` and `annotators`."""

import gzip
import itertools
import json
import random

import numpy as np
import pytest

from rlhf_jax.data import BOS, prepare
from rlhf_jax.data.annotators import (
    approved,
    correct,
    criticise,
    edit,
    gold_score,
    rank_by_annotators,
    sentiment,
    varied_sentiment,
)
from rlhf_jax.data.feedback import Comparison, Correction, Critique, Demonstration, read, write
from rlhf_jax.data.prompts import prompts_from
from rlhf_jax.study.config import ConfigError, CorpusConfig

COMPARISON = Comparison("p\u2028q", ("a", "", "c"), (2, 1, 2))
MIXED = [
    COMPARISON,
    Demonstration("p\n", "é\U0001d11e"),
    Correction("p", "", "b"),
    Critique("p", "a", "too short"),
    Critique("p", "a", "too short", "longer", "bad"),
]


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


def test_a_write_that_fails_leaves_the_records_that_were_there(tmp_path, monkeypatch):
    write(tmp_path / "d.jsonl", [Demonstration("p", "r")])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "d.jsonl", [Demonstration("p", "another")])
    assert read(tmp_path / "d.jsonl") == [Demonstration("p", "r")]
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl"]


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


def test_a_file_may_hold_every_kind(tmp_path):
    path = tmp_path / "all.jsonl"
    write(path, MIXED)
    assert read(path) == MIXED
    packed = tmp_path / "all.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == MIXED
    with pytest.raises(
        ConfigError, match=r"row 2: expected 'kind': 'comparison', .* got 'demonstr"
    ):
        read(path, Comparison)


def test_files_of_the_first_version_stay_readable(tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_text(
        '{"kind": "comparison", "version": 1, "prompt": "p", "responses": ["a", "b"], "ranking": '
        '[2, 1]}\n{"kind": "demonstration", "version": 1, "prompt": "p", "response": "a"}\n'
        '{"kind": "correction", "version": 1, "prompt": "p", "response": "a", "edited": "b"}\n'
        '{"kind": "critique", "version": 1, "prompt": "p", "response": "a", "critique": "c"}\n'
    )
    assert read(path) == [
        Comparison("p", ("a", "b"), (2, 1)),
        Demonstration("p", "a"),
        Correction("p", "a", "b"),
        Critique("p", "a", "c"),
    ]


@pytest.mark.parametrize(
    ("record", "change", "message"),
    [
        (MIXED[2], {"edited": ""}, "edited = ''"),
        (MIXED[2], {"response": "b"}, "edited is the same text as response"),
        (MIXED[2], {"revision": "c"}, "unknown field 'revision'"),
        (MIXED[4], {"critique": 3}, "critique = 3"),
        (MIXED[4], {"revision": "a"}, "revision is the same text as response"),
        (MIXED[4], {"verdict": "fine"}, "verdict = 'fine'; expected 'good', 'bad'"),
        (MIXED[4], {"verdict": ["good"]}, r"verdict = \['good'\]"),
        (MIXED[4], {"response": "\ud800"}, "response is not valid Unicode"),
        (MIXED[4], {"kind": "review"}, "kind = 'review'; expected one of: demonstration"),
        (MIXED[4], {"kind": ["critique"]}, "kind = "),
    ],
)
def test_rows_of_mixed_files_are_refused_with_number_and_field(tmp_path, record, change, message):
    path = tmp_path / "m.jsonl"
    write(path, [record])
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(ConfigError, match=rf"m\.jsonl, row 2: {message}"):
        read(path)


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
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="row 1: expected an object, got int"):
        read(path)
    with pytest.raises(ConfigError, match="no records to write"):
        write(path, [])
    with pytest.raises(ConfigError, match="record 2 is 'text'"):
        write(path, [COMPARISON, "text"])
    assert path.read_text() == "[1]"


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


def test_rankings_of_default_annotators_are_those_of_the_first_release():
    """Comparison cells of old studies must come out as they did."""
    scores = np.linspace(-1, 1, 12).reshape(2, 6)
    ranks = rank_by_annotators(scores, 0.5, 3, seed=(1, 0, 5))
    assert ranks.tolist() == [[3, 4, 3, 3, 2, 1], [4, 3, 1, 3, 2, 2]]
    same = rank_by_annotators(scores, 0.5, 3, (1, 0, 5), disagreement=0.0, bias=np.zeros(6))
    assert (ranks == same).all()


def test_whole_rankings_follow_plackett_luce():
    utilities = np.array([1.0, 0.3, -0.2])
    n = 40_000
    ranks = rank_by_annotators(np.tile(utilities, (n, 1)), noise=0.7, annotators=1, seed=3)
    weights = np.exp(utilities / 0.7)
    for order in itertools.permutations(range(3)):
        expected, left = 1.0, weights.sum()
        for i in order:
            expected *= weights[i] / left
            left -= weights[i]
        found = (ranks[:, list(order)] == [1, 2, 3]).all(1).mean()
        assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / n)


def test_many_annotators_recover_the_true_ranking():
    scores = np.random.default_rng(1).normal(size=(40, 5)) * 2
    truth = rank_by_annotators(scores, noise=0.0, annotators=1, seed=0)
    gaps = np.diff(np.sort(scores)).min(1)
    panel = rank_by_annotators(scores, 1.0, 3000, seed=1, disagreement=0.5)
    assert (panel == truth)[gaps > 0.15].all() and (gaps > 0.15).sum() > 10


def test_disagreement_is_gaussian_taste_of_each_annotator():
    """Without noise, a beats b with probability Phi(difference / (sqrt(2) disagreement))."""
    scores = np.tile([0.5, 0.0], (40_000, 1))
    first = rank_by_annotators(scores, 0.0, 1, seed=0, disagreement=0.5)[:, 0] == 1
    assert abs(first.mean() - 0.76025) < 4 * np.sqrt(0.76 * 0.24 / 40_000)


def test_bias_shifts_what_annotators_see_and_no_draw():
    scores = np.random.default_rng(0).normal(size=(30, 4))
    bias = 0.3 * np.arange(4)
    assert (
        rank_by_annotators(scores, 0.0, 1, 0, bias=bias) == 5 - _from_worst(scores + bias)
    ).all()
    biased = rank_by_annotators(scores, 1.0, 3, 7, bias=bias)
    assert (biased == rank_by_annotators(scores + bias, 1.0, 3, 7)).all()
    assert (biased != rank_by_annotators(scores, 1.0, 3, 7)).any()
    with pytest.raises(ConfigError, match="disagreement = -1"):
        rank_by_annotators(scores, 1.0, 3, 7, disagreement=-1)


def _from_worst(scores):
    return scores.argsort(1).argsort(1) + 1


def test_corrections_raise_the_score_and_change_nothing_else():
    response = " the sad king saw a horrible river and love."
    edited = edit(response, threshold=1.0)
    assert edited == " the king saw a river and love."
    correction = correct("p", response)
    assert gold_score([correction.edited])[0] > gold_score([response])[0]
    for text in ("the river", "hate", "not bad at all", "happy love"):
        assert correct("p", text, threshold=0.9) is None


def test_critiques_name_the_strongest_words_and_agree_with_the_gold_score():
    response = "Good king, sad and horrible house."
    said = "Most negative word: horrible; most positive word: good."
    assert criticise("p", response) == Critique("p", response, said, "Good king, and house.", "bad")
    assert criticise("p", " a river") == Critique(
        "p", " a river", "No negative word; no positive word.", None, "good"
    )


def test_repeated_words_cost_what_they_are_said_to():
    texts = ["my heart my heart My heart", "a lovely heart", ""]
    lost = sentiment([], texts) - varied_sentiment([], texts)
    np.testing.assert_allclose(lost, [1.5 * (1 - 2 / 6), 0, 0])
