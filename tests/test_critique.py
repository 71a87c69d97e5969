"""Guarantees of a critique model as a reward inside compiled programs."""

import dataclasses
import random

import jax
import numpy as np
import pytest
from tiny_models import LEARNED, mesh, noisy_params

from rlhf_jax.data import tokenizer as tokenizers
from rlhf_jax.data.chat import prompt_ids
from rlhf_jax.data.packing import left_padded
from rlhf_jax.data.tokenizer import EOS, FIRST_BYTE, PAD
from rlhf_jax.model import param_axes
from rlhf_jax.model.scoring import join
from rlhf_jax.model.sharding import AXES, place, place_batch
from rlhf_jax.rl.critique import verdict_reward, verdict_scores
from rlhf_jax.rl.scores import Member
from rlhf_jax.study.config import ConfigError
from rlhf_jax.train import Runtime

__all__ = ["mesh"]
PROMPTS = ["the river", "a house\nand", "the", "critique\n\nof the good"]
RESPONSES = [" good", " bad house\n", " response river river", ""]
STOPPED = (True, False, True, True)
TALK = "\n\nHuman: a house\n\nAssistant: the river\n\nHuman: the\n\nAssistant:"
R = 12


@pytest.fixture(scope="module")
def judge(mesh):
    """A tokenizer, the model of a critic with learned positions, and its parameters."""
    rng = random.Random(0)
    words = ["the", "good", "bad", "verdict", "response", "river", "house", "critique"]
    tokenizer = tokenizers.train([" ".join(rng.choices(words, k=12)) for _ in range(200)], 320)
    cfg = dataclasses.replace(LEARNED, vocab=tokenizer.vocab, max_positions=128)
    return tokenizer, cfg, place(noisy_params(cfg), param_axes(cfg), mesh)


def sampled(tokenizer, prompts, template="plain", P=40, responses=RESPONSES):
    """Prompts (B, P), responses and mask (B, R) as the sampler leaves them."""
    tokens = np.full((len(prompts), R), PAD, np.int32)
    for row, text, stopped in zip(tokens, responses, STOPPED, strict=False):
        ids = [*tokenizer.encode(text), *([EOS] if stopped else [])]
        row[: len(ids)] = ids
    ids = left_padded([prompt_ids(tokenizer, p, template) for p in prompts], P)
    return ids, tokens, (tokens != PAD).astype(np.float32)


def on_device(mesh, judge, arrays, template="plain", gain=1.0, bias=0.0):
    tokenizer, cfg, params = judge
    reward = verdict_reward(Member(params, gain, bias), cfg, tokenizer, AXES, template)
    placed = place_batch(dict(zip("ptm", arrays, strict=True)), mesh)

    @jax.jit
    def score(arrays, p, t, m):
        return reward.score(arrays, join(p, t, m), m)

    return np.asarray(score(reward.arrays, *(placed[k] for k in "ptm")))


def by_text(mesh, judge, prompts, responses, template="plain"):
    tokenizer, cfg, params = judge
    score = verdict_scores(params, cfg, tokenizer, Runtime(mesh, AXES), 100, template, batch=4)
    return score(prompts, responses)


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_scores_on_device_equal_those_of_the_texts(mesh, judge, template):
    arrays = sampled(judge[0], PROMPTS, template)
    expected = by_text(mesh, judge, PROMPTS, RESPONSES, template)
    assert expected.std() > 0.01
    np.testing.assert_allclose(on_device(mesh, judge, arrays, template), expected, atol=1e-4)


def test_ends_of_turns_within_a_conversation_are_left_out(mesh, judge):
    prompts, responses = [TALK] * 2, RESPONSES[:2]
    arrays = sampled(judge[0], prompts, P=80, responses=responses)
    assert (arrays[0] == EOS).any()
    judge = (judge[0], dataclasses.replace(judge[1], max_positions=160), judge[2])
    expected = by_text(mesh, judge, prompts, responses)
    np.testing.assert_allclose(on_device(mesh, judge, arrays), expected, atol=1e-4)


def test_scores_do_not_depend_on_padding_and_are_scaled(mesh, judge):
    narrow = on_device(mesh, judge, sampled(judge[0], PROMPTS))
    wide = on_device(mesh, judge, sampled(judge[0], PROMPTS, P=48), gain=2.0, bias=-3.0)
    np.testing.assert_allclose(wide, 2 * narrow - 3, atol=1e-4)


def test_other_ids_of_a_text_are_scored_as_they_are(mesh, judge):
    """The condition of equality: a response spelled in bytes decodes to the same text."""
    prompts, tokens, mask = sampled(judge[0], PROMPTS)
    usual = on_device(mesh, judge, (prompts, tokens, mask))
    spelled = [FIRST_BYTE + b for b in RESPONSES[0].encode()]
    tokens[0, : len(spelled) + 1] = [*spelled, EOS]
    assert judge[0].decode(spelled) == RESPONSES[0]
    got = on_device(mesh, judge, (prompts, tokens, (tokens != PAD).astype(np.float32)))
    assert abs(got[0] - usual[0]) > 1e-3
    np.testing.assert_allclose(got[1:], usual[1:], atol=1e-5)


def test_prompts_beyond_the_models_positions_are_refused(mesh, judge):
    with pytest.raises(ConfigError, match=r"of 132 tokens make a verdict prompt of \d+"):
        on_device(mesh, judge, sampled(judge[0], PROMPTS, P=120))
