"""Guarantees of `rlhf_jax.objectives`."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (  # fmt: skip
    GQA,
    LEARNED,
    log_softmax,
    mesh,
    noisy_params,
    numpy_hidden,
    numpy_logits,
    packed_batch,
)

from rlhf_jax.objectives import kwise, language, language_modelling, ranked_scores
from rlhf_jax.parallel import AXES, place_batch

__all__ = ["mesh"]
CFG = dataclasses.replace(GQA, layers=1)
T = 12


def test_language_modelling_is_the_weighted_sum_of_negative_log_likelihoods():
    params = noisy_params(CFG)
    batch = language_batch(CFG, [[12], [4, 6]])
    batch["bytes"] = (batch["weights"] > 0) * np.arange(T, dtype=np.int32)
    tokens, segments, positions = (batch[n] for n in ("tokens", "segments", "positions"))
    weights, targets = batch["weights"], batch["targets"]
    total, weight, metrics = language_modelling(params, batch, CFG, AXES)
    expected = 0.0
    for b in range(2):
        lp = log_softmax(numpy_logits(params, CFG, tokens[b], segments[b], positions[b]))
        expected -= sum(weights[b, t] * lp[t, targets[b, t]] for t in range(T))
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(weight) == pytest.approx(weights.sum(), rel=1e-6)
    assert float(metrics["bytes"]) == batch["bytes"].sum()


def language_batch(cfg, rows):
    tokens, segments, positions = packed_batch(cfg, rows, T)
    rng = np.random.default_rng(1)
    return {
        "tokens": tokens, "segments": segments, "positions": positions,
        "targets": rng.integers(0, cfg.vocab, tokens.shape).astype(np.int32),
        "weights": np.where(segments > 0, rng.random(tokens.shape), 0).astype(np.float32),
        "bytes": np.ones_like(tokens),
    }  # fmt: skip


GELU = dataclasses.replace(LEARNED, activation="gelu", tied=True, qk_norm=True)
RELU = dataclasses.replace(GQA, layers=2, activation="relu2")


@pytest.mark.parametrize("cfg", [CFG, RELU, LEARNED, GELU], ids=["gqa", "relu2", "swiglu", "gelu"])
def test_gradients_equal_differences_of_the_loops_in_float64(cfg):
    """Every hand-written backward pass at once: a step along a random direction of each parameter."""
    params = jax.tree.map(np.float64, noisy_params(cfg))
    batch = language_batch(cfg, [[12], [4, 6]])

    def loss(params):
        total = 0.0
        for b in range(2):
            at = (batch[n][b] for n in ("tokens", "segments", "positions"))
            lp = log_softmax(numpy_logits(params, cfg, *at))
            total -= np.sum(batch["weights"][b] * lp[np.arange(T), batch["targets"][b]])
        return total

    single = jax.tree.map(np.float32, params)
    grads = jax.jit(jax.grad(lambda p: language_modelling(p, batch, cfg, AXES)[0]))(single)
    rng, h = np.random.default_rng(2), 1e-5
    flat, treedef = jax.tree.flatten(params)
    for i, (path, g) in enumerate(jax.tree_util.tree_leaves_with_path(grads)):
        direction = rng.standard_normal(g.shape)
        moved = [
            loss(jax.tree.unflatten(treedef, [*flat[:i], flat[i] + s * direction, *flat[i + 1 :]]))
            for s in (h, -h)
        ]
        expected = (moved[0] - moved[1]) / (2 * h)
        got = np.sum(np.asarray(g, np.float64) * direction)
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-4), jax.tree_util.keystr(path)


@pytest.mark.parametrize("blocks", [2, 3, 12])
def test_the_loss_in_blocks_is_the_whole_loss_with_its_gradients(monkeypatch, blocks):
    params, batch = noisy_params(CFG), language_batch(CFG, [[12], [4, 6]])

    def loss_and_gradients():
        loss = lambda p: language_modelling(p, batch, CFG, AXES)[0]  # noqa: E731
        program = jax.jit(jax.value_and_grad(loss)).lower(params)
        return program.as_text().count("while"), program.compile()(params)

    loops, (loss, grads) = loss_and_gradients()
    monkeypatch.setattr(language, "LOGITS_BYTES", 4 * CFG.vocab * 2 * T // blocks)
    loops_in_blocks, (in_blocks, grads_in_blocks) = loss_and_gradients()
    assert loops_in_blocks > loops
    assert float(in_blocks) == pytest.approx(float(loss), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads_in_blocks, grads
    )


def test_scores_are_read_at_the_last_real_token(mesh):
    rng = np.random.default_rng(0)
    head = {"w": rng.standard_normal(16).astype(np.float32), "b": np.float32(0.3)}
    params = {**noisy_params(CFG), "scalar": head}
    tokens, segments, positions = packed_batch(CFG, [[12], [7], [9], [1]], T)
    last = (segments > 0).sum(-1) - 1
    rows = {"tokens": tokens, "segments": segments, "positions": positions}
    batch = {k: v.reshape(2, 2, T) for k, v in rows.items()} | {"last": last.reshape(2, 2)}
    score = jax.jit(lambda p, b: ranked_scores(p, b, CFG, AXES))
    got = np.asarray(score(params, place_batch(batch, mesh))).reshape(-1)
    for b in range(4):
        x = numpy_hidden(params, CFG, tokens[b], segments[b], positions[b])
        assert got[b] == pytest.approx(x[last[b]] @ head["w"] + 0.3, abs=1e-4)


@pytest.fixture
def scored(monkeypatch):
    """`kwise` of given scores and ranks."""
    monkeypatch.setattr("rlhf_jax.objectives.rankings.ranked_scores", lambda params, *_: params)

    def run(scores, ranks):
        batch = {"ranks": jnp.asarray(ranks, jnp.int32)}
        total, weight, metrics = kwise(jnp.asarray(scores, jnp.float32), batch, CFG, AXES)
        return float(total), float(weight), float(metrics["accuracy"])

    return run


def loop_over_pairs(scores, ranks):
    total = weight = accuracy = 0.0
    for s, r in zip(scores, ranks, strict=True):
        losses, right = [], []
        for i in range(len(s)):
            for j in range(len(s)):
                if r[i] >= 0 and r[j] >= 0 and r[i] < r[j]:  # i is preferred to j
                    losses.append(math.log1p(math.exp(-(s[i] - s[j]))))
                    right.append(s[i] > s[j])
        if losses:
            total, weight = total + sum(losses) / len(losses), weight + 1
            accuracy += sum(right) / len(right)
    return total, weight, accuracy


def test_kwise_equals_a_loop_over_untied_pairs(scored):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((6, 5))
    ranks = np.stack([rng.permutation(5) + 1 for _ in range(6)])
    ranks[1] = [1, 1, 2, 3, 3]  # ties
    ranks[2] = [2, 1, 3, -1, -1]  # three completions
    ranks[3] = [1, -1, 2, -1, -1]  # two
    ranks[4] = [1, 1, 1, -1, -1]  # nothing to learn
    got = scored(scores, ranks)
    np.testing.assert_allclose(got, loop_over_pairs(scores, ranks), rtol=1e-5)
    assert got[1] == 5


def test_two_completions_are_bradley_terry(scored):
    total, weight, accuracy = scored([[0.3, 1.5]], [[2, 1]])
    assert total == pytest.approx(-math.log(1 / (1 + math.exp(-1.2))), rel=1e-5)
    assert (weight, accuracy) == (1, 1)
    assert scored([[0.3, 1.5]], [[1, 2]])[2] == 0


def test_a_prompt_whose_completions_are_all_tied_has_no_weight(scored):
    assert scored([[0.3, 1.5, -2.0]], [[1, 1, 1]]) == (0, 0, 0)
