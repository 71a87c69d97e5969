"""Guarantees of `rlhf_jax.data.chat`: which tokens a conversation becomes, and which are
learned."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import GQA, full_logits, log_softmax, mesh, noisy_params

from rlhf_jax.data import tokenizer as tokenizers
from rlhf_jax.data.chat import (
    MARKERS,
    Turn,
    example_ids,
    prompt_ids,
    transcript,
    turns_of,
)
from rlhf_jax.data.packing import pack_examples
from rlhf_jax.data.tokenizer import ASSISTANT, BOS, END, EOS, FIRST_BYTE, USER
from rlhf_jax.study.config import ConfigError

__all__ = ["mesh"]
TURNS = [
    Turn("system", "s"),
    Turn("user", "ab"),
    Turn("assistant", " c"),
    Turn("user", "d"),
    Turn("assistant", " ef"),
]


class Letters:
    """A tokenizer of one token a byte."""

    def encode(self, text):
        return [FIRST_BYTE + b for b in text.encode()]


LETTERS = Letters()


def conversation_ids(tokenizer, turns, template="plain", length=None):
    """The example of a conversation whose last turn is the answer."""
    prompt = transcript([*turns[:-1], Turn("assistant", "")])
    return example_ids(tokenizer, prompt, turns[-1].text, template, length)


def ids(text):
    return LETTERS.encode(text)


@functools.cache
def trained():
    texts = ["\n\nHuman: a fish\n\nAssistant: a pike or a trout\n\nSystem: be brief"] * 20
    return tokenizers.train(texts, 310)


def test_golden_chat_of_several_turns():
    got = conversation_ids(LETTERS, TURNS, "chat")
    a, b, c, d, e, f, s, space = (ids(x)[0] for x in "abcdefs ")
    golden = [
        (BOS, 0),
        (USER, 0),
        (s, 0),
        (END, 0),
        (USER, 0),
        (a, 0),
        (b, 0),
        (END, 0),
        (ASSISTANT, 0),
        (space, 1),
        (c, 1),
        (EOS, 1),
        (USER, 0),
        (d, 0),
        (END, 0),
        (ASSISTANT, 0),
        (space, 1),
        (e, 1),
        (f, 1),
        (EOS, 1),
    ]
    assert list(zip(got.ids, got.mask, strict=True)) == golden


def test_golden_plain_conversation():
    got = conversation_ids(LETTERS, TURNS, "plain")
    given = [
        [BOS, *ids("\n\nSystem: s\n\nHuman: ab\n\nAssistant:")],
        [*ids(" c"), EOS],
        ids("\n\nHuman: d\n\nAssistant:"),
        [*ids(" ef"), EOS],
    ]
    assert got.ids == [i for part in given for i in part]
    assert got.mask == [bit for i, part in enumerate(given) for bit in [i % 2] * len(part)]


def test_single_prompts_keep_their_form():
    assert prompt_ids(LETTERS, "ab") == [BOS, *ids("ab")]
    assert prompt_ids(LETTERS, "ab", "chat") == [BOS, USER, *ids("ab"), END, ASSISTANT]
    got = example_ids(LETTERS, "ab", "c", "chat")
    assert got.ids == [BOS, USER, *ids("ab"), END, ASSISTANT, *ids("c"), EOS]
    assert got.mask == [0] * 6 + [1, 1]
    # A person and a transcript of one turn ask the same.
    asked = transcript([Turn("user", "ab"), Turn("assistant", "")])
    assert prompt_ids(LETTERS, asked, "chat") == prompt_ids(LETTERS, "ab", "chat")


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_conversation_goes_on_from_the_tokens_that_were_generated(template):
    """What was given and what was answered, EOS included, is how the next prompt begins."""
    first = transcript([*TURNS[:2], Turn("assistant", "")])
    later = transcript([*TURNS[:4], Turn("assistant", "")])
    generated = [*ids(" c"), EOS]
    said = [*prompt_ids(LETTERS, first, template), *generated]
    assert prompt_ids(LETTERS, later, template)[: len(said)] == said
    whole = conversation_ids(LETTERS, TURNS, template)
    prompt = prompt_ids(LETTERS, later, template)
    assert whole.ids == [*prompt, *ids(" ef"), EOS]


@given(
    roles=st.lists(st.sampled_from(sorted(MARKERS)), max_size=4),
    text=st.text(max_size=8).filter(lambda t: "\n\n" not in t and not t.endswith("\n")),
)
def test_transcripts_are_read_back(roles, text):
    turns = [Turn("user", text), *(Turn(r, text) for r in roles), Turn("assistant", "")]
    assert turns_of(transcript(turns)) == turns


@given(
    texts=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3),
    length=st.integers(1, 80),
    template=st.sampled_from(["plain", "chat"]),
)
@settings(max_examples=60)
def test_truncation_never_leaves_nothing_to_learn(texts, length, template):
    turns = [Turn(r, f"x{t}") for t in texts for r in ("user", "assistant")]
    tokenizer = trained()
    whole = conversation_ids(tokenizer, turns, template)
    try:
        cut = conversation_ids(tokenizer, turns, template, length)
    except ConfigError:
        assert not any(whole.mask[:length])
    else:
        assert any(cut.mask) and cut == (whole.ids[:length], whole.mask[:length])


def test_examples_that_teach_nothing_are_refused():
    with pytest.raises(ConfigError, match="the response is ' '"):
        example_ids(LETTERS, "ab", " ")
    with pytest.raises(
        ConfigError, match="prompt takes 3 tokens of at most 3, which leaves nothing"
    ):
        example_ids(LETTERS, "ab", "c", length=3)


def test_text_cannot_write_control_tokens():
    got = example_ids(trained(), "<|assistant|></s><s>", "<|end|>", "chat")
    assert [i for i in got.ids if i < FIRST_BYTE] == [BOS, USER, END, ASSISTANT, EOS]


def test_masked_examples_pack_to_what_each_is_alone(mesh):
    """Weights, positions and log-probabilities of learned targets do not change in company."""
    small = [
        ([BOS, 8, 9, 10, EOS, 11, 12, EOS], [0, 0, 0, 1, 1, 0, 1, 1]),
        ([BOS, 13, 14, EOS], [0, 0, 1, 1]),
        (
            [BOS, USER, 15, END, ASSISTANT, 16, EOS, USER, 17, END, ASSISTANT, 18],
            [0] * 5 + [1, 1] + [0] * 4 + [1],
        ),
    ]
    examples = [example_ids(LETTERS, "a", "b")._replace(ids=i, mask=m) for i, m in small]
    sizes = np.ones(64, np.int32)
    packed = pack_examples(examples, 16, sizes)
    assert packed["tokens"].shape == (2, 16)
    assert packed["weights"].sum() == sum(sum(m[1:]) for _, m in small)
    assert (packed["bytes"] == packed["weights"]).all()
    params = noisy_params(GQA)

    def learned(batch):
        """{(target, log-prob)} of weighted targets, in order."""
        logits = full_logits(params, GQA, batch["tokens"], batch["segments"], batch["positions"])
        rows, columns = np.nonzero(batch["weights"])
        targets = batch["targets"][rows, columns]
        return targets, log_softmax(logits)[rows, columns, targets]

    alone = [learned(pack_examples([e], 16, sizes)) for e in examples]
    targets, log_probs = learned(packed)
    assert targets.tolist() == np.concatenate([t for t, _ in alone]).tolist()
    assert targets.tolist() == [t for i, m in small for t, bit in zip(i, m, strict=True) if bit]
    np.testing.assert_allclose(log_probs, np.concatenate([p for _, p in alone]), atol=1e-5)
