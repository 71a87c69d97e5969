"""Guarantees of `rlhf_jax.data.tokenizer`."""

import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.data.tokenizer import CONTROL, FIRST_BYTE, Tokenizer, train
from rlhf_jax.study.config import ConfigError

TRICKY = ["▁", " ⁇ ", "<unk>", "<s>", "</s>", "<pad>", "<0x0A>", "\n\n", "\r\n", "\t", "\0", "  "]


def corpus_texts():
    rng = random.Random(1)
    words = ["the", "king", "said", "Let", "there", "be", "naïve", "light,", "and", "1999", "it's"]
    return ["\n".join(" ".join(rng.choices(words, k=9)) for _ in range(20)) for _ in range(50)]


@pytest.fixture(scope="module")
def tokenizer():
    return train(corpus_texts(), 310)


text_strategy = st.lists(
    st.one_of(st.text(), st.sampled_from([*TRICKY, *CONTROL, "the king", " "])), max_size=8
).map("".join)


@given(text=text_strategy)
def test_decode_of_encode_is_the_text_and_holds_no_control_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(i >= FIRST_BYTE for i in ids)
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_vocabulary_is_exact_and_control_tokens_have_fixed_ids(tokenizer):
    assert tokenizer.vocab == 310 == len(tokenizer.token_bytes)
    assert [tokenizer.piece(i) for i in range(8)] == ["<pad>", "<s>", "</s>", "<unk>", *CONTROL]
    assert tokenizer.decode([1, *tokenizer.encode("light"), 6, 2, 0]) == "light"
    assert (tokenizer.token_bytes[:FIRST_BYTE] == 0).all()
    assert (tokenizer.token_bytes[FIRST_BYTE:] > 0).all()


def test_training_is_deterministic_and_hash_survives_pickling(tokenizer):
    again = train(corpus_texts(), 310)
    assert again.content_hash == tokenizer.content_hash
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("the light") == tokenizer.encode("the light")


def test_saved_model_loads(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "m")
    assert Tokenizer.load(tmp_path / "m").content_hash == tokenizer.content_hash


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"character 1 of 2 .* half of a surrogate pair.*UTF-8"):
        tokenizer.encode("a\ud800")


def test_sampled_broken_utf8_decodes_to_the_replacement_character(tokenizer):
    assert tokenizer.decode([FIRST_BYTE + 0xE2]) == "\ufffd"
    assert tokenizer.token_bytes.dtype == np.int32
