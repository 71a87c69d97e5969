"""Guarantees of `rlhf_jax.model`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    GQA,
    LEARNED,
    full_logits,
    log_softmax,
    mesh,
    noisy_params,
    numpy_logits,
    packed_batch,
)

from rlhf_jax.cost.flops import flops_per_token, param_counts
from rlhf_jax.model import forward, init, init_cache, logits, param_axes, with_scalar_head
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.objectives import language_modelling
from rlhf_jax.study.config import ModelConfig

__all__ = ["mesh"]
T = 16
QK = dataclasses.replace(GQA, layers=1, qk_norm=True, activation="relu2", head_width=6)


@pytest.mark.parametrize(
    "cfg", [GQA, LEARNED, QK], ids=["rope-gqa-gelu", "learned-layer-swiglu-untied", "qk-relu2"]
)
def test_forward_equals_numpy_loops(cfg):
    params = noisy_params(cfg)
    batch = packed_batch(cfg, [[16], [5, 7]], T)
    got = np.asarray(full_logits(params, cfg, *batch))
    for b in range(2):
        real = batch[1][b] > 0
        expected = numpy_logits(params, cfg, *(x[b] for x in batch))
        np.testing.assert_allclose(got[b][real], expected[real], atol=2e-4, rtol=1e-4)


def test_a_token_changes_nothing_before_it():
    params = noisy_params(GQA)
    tokens, segments, positions = packed_batch(GQA, [[16], [5, 7]], T)
    before = np.asarray(full_logits(params, GQA, tokens, segments, positions))
    changed = tokens.copy()
    changed[0, 9] = (changed[0, 9] + 1) % 64
    after = np.asarray(full_logits(params, GQA, changed, segments, positions))
    np.testing.assert_allclose(after[0, :9], before[0, :9], atol=1e-6)
    assert np.all(np.abs(after[0, 9:] - before[0, 9:]).max(-1) > 1e-3)  # it reaches all that follow


def test_packed_documents_score_as_they_do_alone():
    params = noisy_params(GQA)
    tokens, segments, positions = packed_batch(GQA, [[16], [5, 7]], T)
    packed = log_softmax(full_logits(params, GQA, tokens, segments, positions))[1]
    alone_tokens, alone_segments, alone_positions = packed_batch(GQA, [[5], [7]], T, seed=1)
    alone_tokens[0, :5], alone_tokens[1, :7] = tokens[1, :5], tokens[1, 5:12]
    alone = log_softmax(full_logits(params, GQA, alone_tokens, alone_segments, alone_positions))
    np.testing.assert_allclose(packed[:5], alone[0, :5], atol=1e-5)
    np.testing.assert_allclose(packed[5:12], alone[1, :7], atol=1e-5)


@pytest.mark.parametrize("cfg", [GQA, LEARNED], ids=["rope", "learned"])
def test_padding_changes_nothing_whichever_side_it_is_on(cfg):
    params = noisy_params(cfg)
    tokens, segments, positions = packed_batch(cfg, [[16], [10]], T)
    right = np.asarray(full_logits(params, cfg, tokens, segments, positions))[1, :10]
    tokens[1, 10:] = 7
    other = np.asarray(full_logits(params, cfg, tokens, segments, positions))[1, :10]
    np.testing.assert_allclose(other, right, atol=1e-6)
    moved = [np.roll(x, 6, axis=1) for x in (tokens, segments, positions)]
    left = np.asarray(full_logits(params, cfg, *moved))[1, 6:]
    np.testing.assert_allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("cfg", [GQA, LEARNED], ids=["rope", "learned"])
def test_prefill_and_decode_equal_the_full_forward(mesh, cfg):
    params = noisy_params(cfg)
    tokens, segments, positions = packed_batch(cfg, [[16], [12]], T)
    for x in (tokens, segments, positions):
        x[1] = np.roll(x[1], 4)  # left-padded
    expected = np.asarray(full_logits(params, cfg, tokens, segments, positions))

    @jax.jit
    def step(cache, tokens, segments, positions):
        x, cache = forward(params, cfg, tokens, segments, positions, AXES, cache)
        return logits(params, cfg, x, AXES), cache

    def part(a, b):
        rows = {"t": tokens[:, a:b], "s": segments[:, a:b], "p": positions[:, a:b]}
        return place_batch(rows, mesh).values()

    cache, out = jax.jit(lambda: init_cache(cfg, 2, T, AXES))(), []
    for a, b in [(0, 8), *((t, t + 1) for t in range(8, T))]:
        got, cache = step(cache, *part(a, b))
        out.append(np.transpose(got, (1, 2, 0)))
    real = segments > 0
    np.testing.assert_allclose(np.concatenate(out, 1)[real], expected[real], atol=2e-5)
    assert int(cache.length) == T


@pytest.mark.parametrize("layers", [1, 2, 9], ids=["one", "unrolled", "scanned"])
def test_asking_for_the_last_positions_changes_nothing_but_the_work(mesh, layers):
    """Values and gradients, with the cache that a prefill leaves."""
    cfg = dataclasses.replace(GQA, layers=layers)
    params = jax.tree.map(jnp.asarray, noisy_params(cfg))
    rows = packed_batch(cfg, [[16], [12]], T)
    for x in rows:
        x[1] = np.roll(x[1], 4)
    rows = tuple(place_batch(dict(zip("tsp", rows, strict=True)), mesh).values())

    def states(params, last):
        cache = init_cache(cfg, 2, T, AXES)
        x, _ = forward(params, cfg, *rows, AXES, last=last)
        y, cache = forward(params, cfg, *rows, AXES, cache, last=last)
        return x[..., -5:], y[..., -5:], cache.layers

    weights = jax.random.normal(jax.random.key(0), (cfg.width, 2, 5))
    both = [
        jax.jit(
            jax.value_and_grad(
                lambda p, last=last: (jnp.sum(states(p, last)[0] * weights), states(p, last)),
                has_aux=True,
            )
        )(params)
        for last in (5, None)
    ]
    for got, expected in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(got, expected, atol=3e-5)


def _lm_batch(cfg):
    tokens, segments, positions = packed_batch(cfg, [[16], [5, 7]], T)
    targets, weights = np.roll(tokens, -1, 1), (segments > 0).astype(np.float32)
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "targets": targets,
        "weights": weights,
        "bytes": np.ones_like(tokens),
    }


def _loss_and_gradients(cfg, params, batch):
    def loss(p):
        total, weight, _ = language_modelling(p, batch, cfg, AXES)
        return total / weight

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))


@pytest.fixture(scope="module")
def plain_gradients(mesh):
    params = noisy_params(GQA)
    return params, _loss_and_gradients(GQA, params, _lm_batch(GQA))


@pytest.mark.parametrize("remat", ["dots", "offload", "full"])
def test_rematerialisation_gives_the_same_gradients(plain_gradients, remat):
    params, (loss, grads) = plain_gradients
    got_loss, got = _loss_and_gradients(
        dataclasses.replace(GQA, remat=remat), params, _lm_batch(GQA)
    )
    np.testing.assert_allclose(got_loss, loss, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), got, grads)


def test_rematerialisation_recomputes_what_it_says():
    """Products in the program of a step: `dots` makes attention's once more, `full` also those of
    the weights, but for the last, whose result no gradient needs."""

    def products(jaxpr):
        inner = [
            getattr(j, "jaxpr", j)
            for eqn in jaxpr.eqns
            for value in eqn.params.values()
            for j in (value if isinstance(value, (list, tuple)) else [value])
        ]
        here = sum(  # of matrices: a norm's sums over features are products with a vector here
            eqn.primitive.name == "dot_general" and all(v.aval.ndim > 1 for v in eqn.invars)
            for eqn in jaxpr.eqns
        )
        return here + sum(products(j) for j in inner if hasattr(j, "eqns"))

    params, batch = noisy_params(GQA), _lm_batch(GQA)
    count = {}
    for remat in ("none", "dots", "offload", "full"):
        cfg = dataclasses.replace(GQA, remat=remat)
        grad = jax.grad(lambda p, c=cfg: language_modelling(p, batch, c, AXES)[0])
        count[remat] = products(jax.make_jaxpr(grad)(params).jaxpr)
    L = GQA.layers  # of which the program holds one after the other
    attention = L * 2 * 2  # scores and values, each for two halves of the queries
    assert count["dots"] == count["offload"] == count["none"] + attention
    assert count["full"] == count["dots"] + L * len(("wq", "wk", "wv", "wo", "w_in"))


def test_bfloat16_compute_keeps_float32_parameters_and_gradients(plain_gradients):
    params, (loss, grads) = plain_gradients
    low = dataclasses.replace(GQA, compute="bfloat16")
    got_loss, got = _loss_and_gradients(low, params, _lm_batch(GQA))
    assert {p.dtype for p in jax.tree.leaves(init(low, jax.random.key(0)))} == {
        jnp.dtype("float32")
    }
    assert {g.dtype for g in jax.tree.leaves(got)} == {np.dtype("float32")}
    assert 0 < abs(got_loss - loss) < 0.03
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(grads), strict=True):
        cosine = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
        assert cosine > 0.99


def test_parameter_tree_has_the_counted_size():
    for cfg in (
        GQA,
        LEARNED,
        QK,
        ModelConfig(),
        ModelConfig(layers=3, width=48, heads=6, kv_heads=2, activation="swiglu", tied=False),
        ModelConfig(norm="layer", positions="learned", qk_norm=True, ff=100),
    ):
        tree = jax.eval_shape(lambda cfg=cfg: init(cfg, jax.random.key(0)))
        assert sum(x.size for x in jax.tree.leaves(tree)) == param_counts(cfg)["total"]
        names = param_axes(cfg)
        jax.tree.map(
            lambda x, n: pytest.fail(f"{n} for {x.shape}") if len(n) != x.ndim else None,
            tree,
            names,
        )


def test_initial_scales_are_those_documented():
    cfg = ModelConfig(layers=4, width=64, heads=4, vocab=512)
    params = init(cfg, jax.random.key(0))
    std = {k: float(jnp.std(v)) for k, v in params["layers"].items()}
    assert float(jnp.std(params["embed"])) == pytest.approx(64**-0.5, rel=0.03)
    assert std["wq"] == pytest.approx(64**-0.5, rel=0.03)
    assert std["wo"] == pytest.approx((64 * 8) ** -0.5, rel=0.03)
    assert std["w_out"] == pytest.approx((256 * 8) ** -0.5, rel=0.03)
    assert not with_scalar_head(params, cfg, None)["scalar"]["w"].any()
    wide = ModelConfig(width=20_000)
    head = with_scalar_head({}, wide, jax.random.key(0))["scalar"]
    assert float(jnp.std(head["w"])) == pytest.approx(20_001**-0.5, rel=0.03) and not head["b"]


def test_counted_flops_agree_with_the_compiler():
    cfg = ModelConfig(layers=1, width=256, heads=4, kv_heads=2, vocab=512)
    B, T = 2, 64
    params = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
    ids = jax.ShapeDtypeStruct((B, T), jnp.int32)
    compiled = full_logits.lower(params, cfg, ids, ids, ids).compile()
    counted = flops_per_token(cfg, T) / 3  # forward
    whole_square = (
        4 * cfg.heads * cfg.C * (T - (T + 1) / 2)
    )  # the compiler does not halve attention
    assert compiled.cost_analysis()["flops"] / (B * T) == pytest.approx(
        counted + whole_square, rel=0.03
    )
