"""Guarantees of `rlhf_jax.data.signals` and `rlhf_jax.rl.critique`."""

import dataclasses
import random

import numpy as np
import pytest
from tiny_models import GQA, mesh, noisy_params, numpy_logits

from rlhf_jax.data import tokenizer as tokenizers
from rlhf_jax.data.chat import prompt_ids
from rlhf_jax.data.feedback import Comparison, Correction, Critique, Demonstration
from rlhf_jax.data.signals import answer_of, comparisons_of, examples_of, verdict_prompt
from rlhf_jax.data.tokenizer import EOS
from rlhf_jax.model.sharding import AXES, place
from rlhf_jax.rl.critique import verdict_scores
from rlhf_jax.study.config import ConfigError
from rlhf_jax.train import Runtime

__all__ = ["mesh"]
RANKED = Comparison("p", ("a", "b", "c"), (2, 1, 3))
TIED = Comparison("p", ("a", "b", "c"), (1, 1, 2))
ALL_TIED = Comparison("p", ("a", "b"), (1, 1))
WHOLE = Critique("p", "r", "too short", "longer", "bad")
BARE = Critique("p", "r", "fine")


def test_every_kind_becomes_the_examples_that_are_documented():
    records = [RANKED, TIED, Demonstration("p", "d"), Correction("p", "r", "e"), WHOLE, BARE]
    assert examples_of(records) == [
        ("p", "b"),
        ("p", "d"),
        ("p", "e"),
        ("p", "longer"),
        ("p\n\n[response]\nr\n\n[critique]\n", "too short\n\n[verdict]\nbad"),
        ("p\n\n[response]\nr\n\n[verdict]\n", "bad"),
        ("p\n\n[response]\nr\n\n[critique]\ntoo short\n\n[revision]\n", "longer"),
        ("p\n\n[response]\nr\n\n[critique]\n", "fine"),
    ]


def test_every_preference_becomes_a_comparison():
    records = [
        RANKED,
        TIED,
        ALL_TIED,
        Demonstration("p", "d"),
        Correction("p", "", "e"),
        WHOLE,
        BARE,
    ]
    assert comparisons_of(records) == [
        RANKED,
        TIED,
        Comparison("p", ("e", ""), (1, 2)),
        Comparison("p", ("longer", "r"), (1, 2)),
    ]


def test_blank_best_responses_show_no_answer():
    assert answer_of(Comparison("p", (" ", "b"), (1, 2))) is None
    assert answer_of(ALL_TIED) is None


@pytest.fixture(scope="module")
def judge(mesh):
    """A tokenizer, a model for it, and its scorer of four rows at a time."""
    rng = random.Random(0)
    words = ["the", "good", "bad", "verdict", "response", "river", "house", "critique"]
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(200)]
    tokenizer = tokenizers.train(texts, 320)
    cfg = dataclasses.replace(GQA, layers=1, vocab=tokenizer.vocab, max_positions=128)
    params = noisy_params(cfg)
    placed = place(params, _axes(cfg), mesh)
    runtime = Runtime(mesh, AXES)
    return tokenizer, cfg, params, verdict_scores(placed, cfg, tokenizer, runtime, 64, batch=4)


def _axes(cfg):
    from rlhf_jax.model import param_axes

    return param_axes(cfg)


def test_verdict_scores_are_log_odds_of_whole_verdicts(judge):
    tokenizer, cfg, params, score = judge
    prompts = ["the river", "a house", "", "the", "critique"]
    responses = [" good", " bad house", "the", "", "river river"]
    expected = []
    for prompt, response in zip(prompts, responses, strict=True):
        start = prompt_ids(tokenizer, verdict_prompt(prompt, response))
        sums = []
        for verdict in ("good", "bad"):
            answer = [*tokenizer.encode(verdict), EOS]
            ids = start + answer
            logits = numpy_logits(params, cfg, ids, np.ones(len(ids), int), np.arange(len(ids)))
            norm = np.log(np.exp(logits).sum(-1))
            at = range(len(start) - 1, len(ids) - 1)
            sums.append(sum(logits[t, ids[t + 1]] - norm[t] for t in at))
        expected.append(sums[0] - sums[1])
    got = score(prompts, responses)
    assert got.shape == (5,) and got.dtype == np.float64
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_verdict_scores_do_not_depend_on_what_is_scored_beside(judge):
    *_, score = judge
    both = score(["the river", "a house"] * 3, [" good", " bad"] * 3)
    np.testing.assert_allclose(both[4:5], score(["the river"], [" good"]), atol=1e-5)
    with pytest.raises(ConfigError, match="prompt 1 takes"):
        score(["the", "the river " * 40], ["a", "a"])
