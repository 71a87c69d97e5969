"""Guarantees of `rlhf_jax.data.packing` and `rlhf_jax.data.loader`."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_jax.data import pack_examples
from rlhf_jax.data.loader import batch_rows, permute
from rlhf_jax.data.packing import Example, batch_of, pack
from rlhf_jax.data.tokenizer import BOS, EOS, PAD
from rlhf_jax.study.config import ConfigError

BYTES = np.array([0] * 8 + [1] * 12, np.int32)  # V = 20
DOCUMENTS = st.lists(st.lists(st.integers(8, 19), max_size=20), min_size=1, max_size=12)


@given(documents=DOCUMENTS, seq_len=st.integers(1, 16))
def test_rows_hold_every_token_once_as_a_target_within_its_document(documents, seq_len):
    rows = pack(documents, seq_len, vocab=20, seed=0)
    assert rows.shape[1] == seq_len + 1
    batch = batch_of(rows, BYTES)
    weighted = batch["targets"][batch["weights"] > 0]
    assert sorted(weighted) == sorted([*itertools.chain(*documents), *[EOS] * len(documents)])
    assert batch["bytes"].sum() == sum(map(len, documents))
    assert (rows[:-1] != PAD).all()
    pairs = zip(batch["tokens"][batch["weights"] > 0], weighted, strict=True)
    seen = {p for d in documents for p in itertools.pairwise([BOS, *d, EOS])}
    assert {(int(a), int(b)) for a, b in pairs} == seen


@given(documents=DOCUMENTS, seq_len=st.integers(2, 16))
def test_segments_start_at_one_and_positions_restart(documents, seq_len):
    batch = batch_of(pack(documents, seq_len, vocab=20, seed=0), BYTES)
    for tokens, segments, positions in zip(
        batch["tokens"], batch["segments"], batch["positions"], strict=True
    ):
        assert segments[0] == 1
        for t in range(1, seq_len):
            if tokens[t] == PAD:
                assert segments[t] == 0
            elif tokens[t] == BOS:
                assert (segments[t], positions[t]) == (segments[t - 1] + 1, 0)
            else:
                assert (segments[t], positions[t]) == (segments[t - 1], positions[t - 1] + 1)


def test_document_order_depends_on_content_and_seed_alone():
    documents = [[8 + i, 9, 10] for i in range(10)]
    rows = pack(documents, 8, 20, seed=0)
    assert (rows == pack(documents[::-1], 8, 20, seed=0)).all()
    assert (rows != pack(documents, 8, 20, seed=1)).any()


def example(prompt, completion):
    return Example(prompt + completion, [0] * len(prompt) + [1] * len(completion))


def test_examples_learn_completions_only_and_do_not_see_each_other():
    pairs = [([BOS, 8, 9], [10, 11, EOS]), ([BOS, 12], [13, EOS]), ([BOS, 14, 15], [16, EOS])]
    batch = pack_examples([example(*pair) for pair in pairs], seq_len=8, token_bytes=BYTES)
    expected = {
        "tokens": [[1, 8, 9, 10, 11, 1, 12, 13], [1, 14, 15, 16, 0, 0, 0, 0]],
        "targets": [[8, 9, 10, 11, 2, 12, 13, 2], [14, 15, 16, 2, 0, 0, 0, 0]],
        "segments": [[1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0, 0]],
        "positions": [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 0, 0, 0]],
        "weights": [[0, 0, 1, 1, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0, 0, 0]],
        "bytes": [[0, 0, 1, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0, 0]],
    }
    for key, rows in expected.items():
        np.testing.assert_array_equal(batch[key], rows, err_msg=key)


def test_examples_without_a_prompt_or_a_completion_or_too_long_are_refused():
    for wrong, message in (
        (example([BOS, 8], []), "example 1 has 2 prompt and 0 completion"),
        (example([], [8, EOS]), "example 1 has 0 prompt and 2 completion"),
        (example([BOS, 8], [9, 10, 11, EOS]), "example 1 takes 5 inputs"),
    ):
        with pytest.raises(ConfigError, match=message):
            pack_examples([example([BOS], [8]), wrong], 4, BYTES)


@given(n=st.integers(1, 700), key=st.integers(0, 2**31))
@settings(max_examples=60)
def test_permutation_is_a_bijection(n, key):
    image = permute(np.arange(n), n, key)
    assert sorted(image) == list(range(n))
    assert permute(np.array([n - 1]), n, key)[0] == image[-1]


def test_permutation_is_fixed_forever():
    """Batch order enters results: a change of these numbers changes every run."""
    assert permute(np.arange(10), 10, 0, 0).tolist() == [6, 3, 0, 4, 1, 5, 9, 8, 7, 2]
    large = permute(np.arange(5), 10**12, 1)
    assert len(set(large.tolist())) == 5 and large.max() < 10**12


@given(n=st.integers(1, 50), size=st.integers(1, 40), seed=st.integers(0, 9))
def test_batches_tile_epochs_without_losing_a_row(n, size, seed):
    flat = np.concatenate([batch_rows(n, size, seed, t) for t in range(n)])  # `size` epochs
    for epoch in flat.reshape(size, n):
        assert sorted(epoch) == list(range(n))
