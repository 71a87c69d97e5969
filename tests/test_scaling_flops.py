"""FLOP accounting against published totals and counts done by hand."""

import pytest

from rlhf_jax.cost import flops
from rlhf_jax.study.config import ConfigError, ModelConfig

PALM = ModelConfig(
    layers=118,
    width=18432,
    heads=48,
    kv_heads=1,
    head_width=256,
    ff=4 * 18432,
    vocab=256_000,
    activation="swiglu",
    max_positions=2048,
)


def test_palm_540b_matches_its_published_size_and_training_flops():
    assert flops.param_counts(PALM)["total"] == pytest.approx(540.35e9, rel=1e-4)
    c = flops.train_flops(PALM, 2048, 780e9, "palm")
    assert c == pytest.approx(2.557e24, rel=3e-4)
    assert f"{c:.2e}" == "2.56e+24"


def test_chinchilla_is_5_88e23_flops_without_integer_overflow():
    import numpy as np

    assert flops.six_nd(np.int64(70_000_000_000), np.int64(1_400_000_000_000)) == pytest.approx(
        5.88e23, rel=1e-12
    )


def test_chinchilla_70b_is_12_l_d_squared_plus_embeddings():
    cfg = ModelConfig(layers=80, width=8192, heads=64, vocab=32_000)
    counts = flops.param_counts(cfg)
    assert counts["attention"] + counts["feed_forward"] == 12 * 80 * 8192**2
    assert counts["matmul"] == 12 * 80 * 8192**2 + 32_000 * 8192
    assert flops.flops_per_token(cfg, 2048, "porian") == 6.0 * (12 * 80 * 8192**2 + 32_000 * 8192)


def test_every_matrix_of_a_small_model_is_counted_once():
    D, H, K, C, F, V, L, P = 8, 4, 2, 2, 12, 20, 3, 16
    cfg = ModelConfig(
        layers=L,
        width=D,
        heads=H,
        kv_heads=K,
        ff=F,
        vocab=V,
        tied=False,
        qk_norm=True,
        activation="swiglu",
        norm="layer",
        positions="learned",
        max_positions=P,
    )
    layer = 2 * D * H * C + 2 * D * K * C + 3 * D * F
    norms = L * (2 * 2 * D + 2 * C) + 2 * D
    counts = flops.param_counts(cfg)
    assert counts["total"] == 2 * V * D + P * D + L * layer + norms
    assert counts["non_embedding"] == L * layer + norms
    assert counts["matmul"] == L * layer + V * D
    tied = flops.param_counts(ModelConfig(width=8, heads=4, vocab=20))
    assert tied["unembedding"] == 0
    assert tied["matmul"] == tied["attention"] + tied["feed_forward"] + 20 * 8


def test_exact_attention_is_the_causal_sum_over_the_row():
    cfg = ModelConfig(layers=2, width=16, heads=4, vocab=32)
    s = 7
    matmul = flops.param_counts(cfg)["matmul"]
    keys = sum(range(1, s + 1))  # a query at position t sees t+1 keys
    row = 3 * (2 * matmul * s + 2 * 2 * (2 * 4 * 4) * keys)
    assert flops.train_flops(cfg, s, s) == pytest.approx(row, rel=1e-14)


def test_conventions_differ_only_as_named():
    cfg = ModelConfig(layers=2, width=16, heads=4, vocab=32)
    c = flops.all_conventions(cfg, 64, 1.0)
    counts = flops.param_counts(cfg)
    assert set(c) == set(flops.CONVENTIONS)
    assert c["6nd"] - c["kaplan"] == 6 * counts["embedding"]
    assert c["palm"] - c["6nd"] == 2 * (c["porian_attention"] - c["porian"])
    assert c["exact"] == pytest.approx(
        c["porian"] + (c["porian_attention"] - c["porian"]) * 65 / 64
    )


def test_an_unknown_convention_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"'kaplna' does not exist. Did you mean 'kaplan'"):
        flops.flops_per_token(ModelConfig(), 8, "kaplna")
    with pytest.raises(ConfigError, match="seq_len is 0"):
        flops.flops_per_token(ModelConfig(), 0)
