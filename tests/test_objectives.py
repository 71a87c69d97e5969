"""Guarantees of `rlhf_jax.objectives`."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    GQA,
    LEARNED,
    log_softmax,
    mesh,
    noisy_params,
    numpy_hidden,
    numpy_logits,
    packed_batch,
)

from rlhf_jax.kinds.rankings import INPUTS, rows_of
from rlhf_jax.model import forward, scoring
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.objectives import (
    language_modelling,
    preference_optimisation,
    ranked_scores,
    ranking_loss,
    reward_modelling,
)
from rlhf_jax.study.config import ConfigError
from rlhf_jax.train.step import gradients

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
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "targets": rng.integers(0, cfg.vocab, tokens.shape).astype(np.int32),
        "weights": np.where(segments > 0, rng.random(tokens.shape), 0).astype(np.float32),
        "bytes": np.ones_like(tokens),
    }


GELU = dataclasses.replace(LEARNED, activation="gelu", tied=True, qk_norm=True)
RELU = dataclasses.replace(GQA, layers=2, activation="relu2")


@pytest.mark.parametrize("cfg", [CFG, RELU, LEARNED, GELU], ids=["gqa", "relu2", "swiglu", "gelu"])
def test_gradients_equal_differences_of_the_loops_in_float64(cfg):
    """Every hand-written backward pass at once: a step along a random direction of each
    parameter."""
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
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 4 * CFG.vocab * 2 * T // blocks)
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


# --- losses on rankings
# ----------------------------------------------------------------------------


def scored(scores, ranks, *options):
    """`ranking_loss` of given scores and ranks: sum, weight, accuracy."""
    scores, ranks = jnp.asarray(scores, jnp.float32), jnp.asarray(ranks, jnp.int32)
    total, weight, metrics = ranking_loss(scores, ranks, *options)
    return float(total), float(weight), float(metrics["accuracy"])


def some_rankings():
    """Scores and ranks of prompts with five completions: with ties, with absent ones, with
    nothing."""
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permutation(5) + 1 for _ in range(6)])
    ranks[1] = [1, 1, 2, 3, 3]  # ties
    ranks[2] = [2, 1, 3, -1, -1]  # three completions
    ranks[3] = [1, -1, 2, -1, -1]  # two
    ranks[4] = [1, 1, 1, -1, -1]  # nothing to learn
    return rng.standard_normal((6, 5)), ranks


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def loop_over_pairs(scores, ranks, of=lambda d, apart: -math.log(sigmoid(d))):
    """The sum over prompts of a function's mean over untied pairs, prompts with pairs, accuracy."""
    total = weight = accuracy = 0.0
    for s, r in zip(scores, ranks, strict=True):
        losses, right = [], []
        for i in range(len(s)):
            for j in range(len(s)):
                if r[i] >= 0 and r[j] >= 0 and r[i] < r[j]:  # i is preferred to j
                    losses.append(of(s[i] - s[j], r[j] - r[i]))
                    right.append(s[i] > s[j])
        if losses:
            total, weight = total + sum(losses) / len(losses), weight + 1
            accuracy += sum(right) / len(right)
    return total, weight, accuracy


def test_kwise_equals_a_loop_over_untied_pairs():
    scores, ranks = some_rankings()
    got = scored(scores, ranks)
    np.testing.assert_allclose(got, loop_over_pairs(scores, ranks), rtol=1e-5)
    assert got[1] == 5


def test_a_margin_is_asked_for_each_rank_between_two_completions():
    scores, ranks = some_rankings()
    expected = loop_over_pairs(scores, ranks, lambda d, apart: -math.log(sigmoid(d - 0.3 * apart)))
    np.testing.assert_allclose(scored(scores, ranks, "kwise", 0.3), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["kwise", "plackett_luce", "best_of_n"])
def test_two_completions_are_bradley_terry(loss):
    total, weight, accuracy = scored([[0.3, 1.5]], [[2, 1]], loss)
    assert total == pytest.approx(-math.log(sigmoid(1.2)), rel=1e-5)
    assert (weight, accuracy) == (1, 1)
    assert scored([[0.3, 1.5]], [[1, 2]], loss)[2] == 0
    assert scored([[0.3, 1.5, 9.0]], [[2, 1, -1]], loss) == (total, weight, accuracy)


def test_equal_scores_rank_a_pair_right_half_the_time():
    assert scored([[0.0, 0.0]], [[1, 2]]) == (pytest.approx(np.log(2)), 1, 0.5)
    assert scored([[1.0, 1.0, 0.0]], [[1, 2, 3]])[2] == pytest.approx((0.5 + 1 + 1) / 3)


@pytest.mark.parametrize("loss", ["kwise", "plackett_luce", "best_of_n"])
def test_a_prompt_whose_completions_are_all_tied_has_no_weight_and_no_gradient(loss):
    scores, ranks = [[0.3, 1.5, -2.0], [1.0, 2.0, 3.0]], [[1, 1, 1], [2, 2, -1]]
    assert scored(scores, ranks, loss, 0.0, 0.01) == (0, 0, 0)
    grad = jax.grad(lambda s: ranking_loss(s, jnp.asarray(ranks), loss, 0.0, 0.01)[0])
    assert (np.asarray(grad(jnp.asarray(scores))) == 0).all()


def test_plackett_luce_is_the_likelihood_of_drawing_the_ranking_without_replacement():
    """The probability of each ranking of three, by enumeration of draws; all six add up to 1."""
    strengths = np.array([0.5, 2.0, 1.25])
    likelihoods = []
    for order in itertools.permutations(range(3)):
        left, p = list(range(3)), 1.0
        for k in order:
            p *= strengths[k] / strengths[left].sum()
            left.remove(k)
        ranks = np.argsort(order) + 1
        total, weight, _ = scored(np.log(strengths)[None], ranks[None], "plackett_luce")
        assert total == pytest.approx(-math.log(p), rel=1e-5) and weight == 1
        likelihoods.append(math.exp(-total))
    assert sum(likelihoods) == pytest.approx(1, rel=1e-5)


def test_plackett_luce_with_ties_equals_a_loop_in_which_ties_do_not_compete():
    scores, ranks = some_rankings()
    expected = 0.0
    for s, r in zip(scores, ranks, strict=True):
        for i in range(len(s)):
            if r[i] >= 0:
                rivals = [s[j] for j in range(len(s)) if j == i or r[j] > r[i]]
                expected += math.log(sum(map(math.exp, rivals))) - s[i]
    assert scored(scores, ranks, "plackett_luce")[0] == pytest.approx(expected, rel=1e-5)
    swapped = scores[1:2][:, [1, 0, 2, 4, 3]]
    assert scored(swapped, ranks[1:2], "plackett_luce")[0] == pytest.approx(
        scored(scores[1:2], ranks[1:2], "plackett_luce")[0], rel=1e-6
    )


def test_best_of_n_is_the_cross_entropy_of_the_best_and_ties_share_it():
    scores, ranks = some_rankings()
    expected = 0.0
    for n in (0, 1, 2, 3, 5):
        log_p = log_softmax(scores[n][ranks[n] >= 0])
        expected -= log_p[ranks[n][ranks[n] >= 0] == 1].mean()
    assert scored(scores, ranks, "best_of_n")[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["kwise", "plackett_luce", "best_of_n"])
def test_losses_do_not_change_when_absent_completions_do(loss):
    scores, ranks = some_rankings()
    other = np.where(ranks < 0, 50.0, scores)
    assert scored(scores, ranks, loss, 0.0, 0.1) == scored(other, ranks, loss, 0.0, 0.1)
    grads = jax.grad(lambda s: ranking_loss(s, jnp.asarray(ranks), loss, 0.0, 0.1)[0])
    got = np.asarray(grads(jnp.asarray(other, jnp.float32)))
    assert np.isfinite(got).all() and (got[ranks < 0] == 0).all()


def test_centring_is_the_square_of_the_sum_of_a_pair_and_leaves_differences_alone():
    plain, centred = (
        scored([[0.3, 1.5]], [[2, 1]]),
        scored([[0.3, 1.5]], [[2, 1]], "kwise", 0.0, 0.01),
    )
    assert centred[0] - plain[0] == pytest.approx(0.01 * 1.8**2, rel=1e-4)
    scores, ranks = (jnp.asarray(x) for x in some_rankings())
    grads = [
        jax.grad(lambda s, c=c: ranking_loss(s, ranks, centre=c)[0])(scores) for c in (0.0, 1.0)
    ]
    pull = np.asarray(grads[1] - grads[0])
    for n in (0, 1, 2, 3, 5):
        present = np.asarray(ranks[n]) >= 0
        mean = np.asarray(scores[n])[present].mean()
        np.testing.assert_allclose(pull[n][present], 8 * mean / present.sum(), rtol=1e-4, atol=1e-5)


def test_what_the_ranking_loss_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'kwise'"):
        scored([[0.0, 1.0]], [[1, 2]], "kwize")
    with pytest.raises(ConfigError, match="needs loss = 'kwise'"):
        scored([[0.0, 1.0]], [[1, 2]], "plackett_luce", 0.5)


def comparisons(K, N=4, P=3, R=4, seed=0):
    """A batch of N prompts with up to K completions, as `rows_of` makes them; ragged if N > 1."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(R) < rng.integers(1, R + 1, (N, K, 1))).astype(np.float32)
    ranks = np.stack([rng.permutation(K) + 1 for _ in range(N)])
    if N > 1:
        ranks[0, 2:] = -1
        ranks[1, -1] = ranks[1, 0]
    rows = rows_of(
        {
            "prompts": rng.integers(8, CFG.vocab, (N, P)),
            "responses": np.where(mask > 0, rng.integers(8, CFG.vocab, (N, K, R)), 0),
            "mask": mask * (ranks >= 0)[..., None],
            "ranks": ranks,
        }
    )
    return {k: rows[k] for k in INPUTS} | {
        "reference": rng.standard_normal((N, K)).astype("f") - 20
    }


OBJECTIVES = {
    "kwise": lambda p, b: reward_modelling(p, b, CFG, AXES, "kwise", 0.1, 0.01),
    "dpo": lambda p, b: preference_optimisation(p, b, CFG, AXES),
}


def head_params():
    w = np.random.default_rng(1).standard_normal(CFG.width).astype(np.float32)
    return {**noisy_params(CFG), "scalar": {"w": w, "b": np.float32(0.1)}}


@pytest.mark.parametrize("name", ["kwise", "dpo"])
def test_nine_completions_cost_nine_forward_rows_and_not_72(name, monkeypatch):
    rows = []

    def counted(params, cfg, tokens_BT, *rest, **options):
        rows.append(tokens_BT.shape[0])
        return forward(params, cfg, tokens_BT, *rest, **options)

    monkeypatch.setattr(scoring, "forward", counted)
    batch = jax.tree.map(jnp.asarray, comparisons(9, N=1))
    jax.eval_shape(jax.grad(lambda p: OBJECTIVES[name](p, batch)[0]), head_params())
    assert rows == [9]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_accumulation_equals_the_big_batch_with_ragged_rankings(mesh, name):
    params, batch = head_params(), place_batch(comparisons(5), mesh)

    def run(accumulate):
        return jax.jit(lambda p, b: gradients(OBJECTIVES[name], p, b, AXES, accumulate))(
            params, batch
        )

    (grads, metrics), (expected, once) = run(4), run(1)
    for k in once:
        assert float(metrics[k]) == pytest.approx(float(once[k]), rel=1e-4, abs=1e-5), k
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), grads, expected
    )
