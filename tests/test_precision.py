"""Guarantee: a float32 model is float32 on every platform, and in bfloat16 every product
accumulates in float32; scores, softmax, logits and the gradients of parameters are not rounded to
bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import Precision
from tiny_attention import loops
from tiny_models import GQA, LEARNED, mesh, noisy_params, numpy_logits, packed_batch

from rlhf_jax.kinds import PPO, TaskConfig
from rlhf_jax.model import (
    dense,
    dispatch,
    forward,
    logits,
    param_axes,
    pointwise,
    transformer,
    with_scalar_head,
)
from rlhf_jax.model.dispatch import attend, attention_mask
from rlhf_jax.model.sampler import generate
from rlhf_jax.model.sharding import AXES, make_mesh, place_batch, shardings
from rlhf_jax.objectives import language_modelling
from rlhf_jax.rl.ppo import make_ppo_step
from rlhf_jax.rl.rollout import Networks
from rlhf_jax.train import init_state

__all__ = ["mesh"]
T = 128  # of splash's blocks


def equations(jaxpr, inside=()):
    """(equation, names of those around it) of a program and of all programs in it."""
    for eqn in jaxpr.eqns:
        yield eqn, inside
        for value in eqn.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner, (*inside, eqn.primitive.name))


def text_batch(cfg, rows=2):
    tokens, segments, positions = packed_batch(cfg, [[T], [40, 30, 20]][:rows], T)
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "targets": np.roll(tokens, -1, 1),
        "weights": (segments > 0).astype(np.float32),
        "bytes": np.ones_like(tokens),
    }


def trained(cfg, mesh):
    batch = text_batch(cfg)
    grad = jax.grad(lambda p: language_modelling(p, batch, cfg, AXES)[0])
    return jax.make_jaxpr(grad)(noisy_params(cfg))


def iterated(cfg, mesh):
    cell = PPO("p", task=TaskConfig(4, T - 4), batch=2, minibatches=1, epochs=1, iterations=1)
    models = {"policy": noisy_params(cfg), "critic": with_scalar_head(noisy_params(cfg), cfg, None)}
    models = jax.tree.map(jnp.asarray, models)
    state = init_state(models, cell.optim, 1, kl_coef=jnp.float32(0.1))
    frozen = {"reference": models["policy"], "reward": (), "seed": jnp.uint32(0)}
    score = lambda arrays, rows, mask: jnp.sum(mask, -1)  # noqa: E731
    step = make_ppo_step(cell, Networks(cfg, cfg), AXES, score)
    prompts = place_batch({"p": np.ones((2, 4), np.int32)}, mesh)["p"]
    return jax.make_jaxpr(step)(state, frozen, prompts)


MODELS = {
    "unrolled": dataclasses.replace(GQA, qk_norm=True, activation="swiglu", max_positions=T),
    "scanned, layer norm": dataclasses.replace(LEARNED, layers=9, remat="dots", max_positions=T),
}


def on(platform, monkeypatch):
    """Programs are made as for a platform; cuDNN's kernel, which has no products to look at,
    cannot."""
    for module in (dense, dispatch, pointwise, transformer):
        monkeypatch.setattr(module, "platform", lambda: platform)
    if platform == "gpu":
        monkeypatch.setattr(dispatch, "choose", lambda *_: ("xla", ""))


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("program", [trained, iterated])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_product_asks_for_its_precision(mesh, monkeypatch, platform, model, program, dtype):
    """Of the gradients of a model and of an iteration of PPO, sampler included, in the program that
    is handed to the compiler, the kernels of attention included."""
    on(platform, monkeypatch)
    cfg = dataclasses.replace(MODELS[model], compute=dtype)
    count, kernels = {"float32": 0, "bfloat16": 0}, 0
    for eqn, inside in equations(program(cfg, mesh).jaxpr):
        kernels += eqn.primitive.name == "pallas_call"
        if eqn.primitive.name != "dot_general":
            continue
        a, b = (v.aval.dtype for v in eqn.invars)
        asked, out = eqn.params["precision"], eqn.outvars[0].aval.dtype
        assert a == b and out == jnp.float32, (eqn, inside)
        highest = asked == (Precision.HIGHEST, Precision.HIGHEST)
        if dtype == "bfloat16" and platform == "tpu" and "shard_map" in inside:
            continue  # splash's own, of float32 that was bfloat16 before: one pass
        assert highest == (a == jnp.float32), (eqn, inside)
        count[a.name] += 1
    assert count["float32" if platform == "cpu" else dtype] > 20
    assert (kernels > 0) == (platform == "tpu")


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_precision_reaches_the_program_of_the_platform(monkeypatch, platform):
    on("gpu", monkeypatch)
    batch = text_batch(GQA)
    grad = jax.jit(jax.grad(lambda p: language_modelling(p, batch, GQA, AXES)[0]))
    text = grad.trace(noisy_params(GQA)).lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) > 20
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


# --- numbers -------------------------------------------------------------------------------------


def bfloat16(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)


def relative(got, expected):
    return np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_their_gradients_are_not_rounded_to_bfloat16(tied, mesh):
    cfg = dataclasses.replace(GQA, width=64, tied=tied, compute="bfloat16")
    rng = np.random.default_rng(0)
    x_DBT = bfloat16(rng.standard_normal((64, 2, 512)))
    params = jax.tree.map(bfloat16, noisy_params(cfg))
    g_VBT = bfloat16(rng.standard_normal((64, 2, 512)))
    head = {n: params[n] for n in ("embed", "unembed") if n in params}

    @jax.jit
    def run(head, x, g):
        got, pull = jax.vjp(lambda p, x: logits(p, cfg, x, AXES), head, x.astype(jnp.bfloat16))
        return got, *pull(AXES.constrain(g, "vocab", "batch", None))

    got, to_head, to_x = run(head, x_DBT, g_VBT)
    w_VD = np.float64(params["embed"] if tied else params["unembed"].T)
    x, g = np.float64(x_DBT).reshape(64, -1), np.float64(g_VBT).reshape(64, -1)
    to_w = to_head["embed"] if tied else to_head["unembed"].T
    assert got.dtype == to_w.dtype == jnp.float32 and to_x.dtype == jnp.bfloat16
    assert relative(got.reshape(64, -1), w_VD @ x) < 1e-6
    assert relative(to_w, g @ x.T) < 1e-6
    assert relative(to_x.reshape(64, -1), w_VD.T @ g) < 2**-8  # rounded once


def test_gradients_of_a_table_are_added_up_in_float32():
    """Of one token, 4,096 times: in bfloat16 a sum stops growing at 256 times what is added."""
    table = jnp.ones((3, 2))
    ids = jnp.ones((2, 2048), jnp.int32)
    rows = AXES.spec("batch", None, None)

    def total(t):
        return dense.lookup(t, ids, rows, AXES, ("vocab", "embed"), "bfloat16").astype(float).sum()

    np.testing.assert_array_equal(jax.grad(total)(table), [[0, 0], [4096, 4096], [0, 0]])


@pytest.mark.parametrize("kernel", ["reference", "cpu", "xla", "splash"])
def test_attention_scores_are_not_rounded_to_bfloat16(kernel):
    """Scores of about 30, which bfloat16 rounds by up to 0.06, and weights by 6% with them."""
    rng = np.random.default_rng(0)
    _, segments, positions = packed_batch(GQA, [[T], [40, 30, 20]], T)
    q, k, v, g = (
        bfloat16(rng.standard_normal((2, T, heads, 16)) * scale)
        for heads, scale in ((4, 4), (2, 4), (2, 1), (4, 1))
    )
    g *= (segments > 0)[..., None, None]

    @jax.jit
    def run(q, k, v, g):
        def out(q, k, v):
            q, k, v = (jnp.transpose(x, (2, 0, 3, 1)).astype(jnp.bfloat16) for x in (q, k, v))
            q, k, v = (AXES.constrain(x, "heads", "batch", None, None) for x in (q, k, v))
            tokens = (segments, positions)
            mask = attention_mask(16, "bfloat16", tokens, tokens, cached=False, kernel=kernel)
            return jnp.transpose(attend(q, k, v, mask, AXES), (1, 3, 0, 2)).astype(float)

        out, pull = jax.vjp(out, q, k, v)
        return out, *pull(AXES.constrain(g, "batch", None, "heads", None))

    expected = loops(q, k, v, segments, positions, g)
    real = (segments > 0)[..., None, None]
    for name, a, b in zip(("out", "dq", "dk", "dv"), run(q, k, v, g), expected, strict=True):
        error = (np.asarray(a) - b) * (real if name == "out" else 1)
        assert np.sqrt(np.mean(error**2) / np.mean(b**2)) < 8e-3, name


def test_activations_and_norms_are_rounded_once():
    """By 2^-8 of a number at most, and by a third of it on average."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 512)) * 3, jnp.bfloat16)
    y, gain = jnp.flip(x), jnp.linspace(0.5, 2, 64)
    exact = np.asarray(x, np.float64)
    inner = np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)
    expected = {
        "gelu": (pointwise.gelu(x), 0.5 * exact * (1 + np.tanh(inner))),
        "swiglu": (pointwise.swiglu(y, x), exact[::-1, ::-1] * exact / (1 + np.exp(-exact))),
        "norm": (
            pointwise.norm(x, gain, None),
            exact / np.sqrt(np.mean(exact**2, 0) + 1e-6) * np.asarray(gain, np.float64)[:, None],
        ),
    }
    for name, (got, exact) in expected.items():
        assert got.dtype == jnp.bfloat16
        error = np.abs(np.asarray(got, np.float64) - exact)
        assert (error <= 2**-8 * np.abs(exact) + 1e-6).all(), name
        assert np.sqrt(np.mean(error**2) / np.mean(exact**2)) < 2**-9, name


@pytest.mark.parametrize("cfg", [GQA, LEARNED], ids=["rope-gqa-gelu", "layer-swiglu-untied"])
def test_bfloat16_logits_are_near_the_exact_ones_of_the_rounded_weights(cfg):
    """What is left is the rounding of activations, 2^-9 each time."""
    params = jax.tree.map(bfloat16, noisy_params(cfg))
    rows = packed_batch(cfg, [[16], [5, 7]], 16)
    low = dataclasses.replace(cfg, compute="bfloat16")

    @jax.jit
    def run(params):
        return logits(params, low, forward(params, low, *rows, AXES)[0], AXES)

    got = np.transpose(run(params), (1, 2, 0))
    for b in range(2):
        real = rows[1][b] > 0
        expected = numpy_logits(params, cfg, *(x[b] for x in rows))[real]
        error = np.sqrt(np.mean((got[b][real] - expected) ** 2) / np.mean(expected**2))
        assert 1e-4 < error < 1.5e-2, error


# --- what is sent between devices ----------------------------------------------------------------


def test_weights_are_cast_before_they_are_gathered():
    mesh = make_mesh({"fsdp": 2}, jax.devices()[:2])
    cfg = dataclasses.replace(LEARNED, compute="bfloat16", max_positions=T + 2)
    with jax.set_mesh(mesh):
        tree = param_axes(cfg)
        layout = shardings(mesh, tree)
        params = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            noisy_params(cfg),
            layout,
        )
        batch = text_batch(dataclasses.replace(cfg, max_positions=T))

        def loss(params, batch):
            return language_modelling(params, batch, cfg, AXES)[0]

        rows = {
            n: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=jax.NamedSharding(mesh, AXES.spec("batch", None))
            )
            for n, x in batch.items()
        }
        jaxpr = jax.make_jaxpr(jax.grad(loss))(params, rows)
        sample = jax.make_jaxpr(
            lambda p, x, k: generate(p, cfg, x, k, length=2, temperature=1.0, axes=AXES)
        )(params, rows["tokens"], jax.random.key(0))

    def gathers(jaxpr):
        """dtypes of what lies over `fsdp` alone before, and not after."""
        for eqn, _ in equations(jaxpr.jaxpr):
            if eqn.primitive.name == "reshard":
                a, b = (v.aval for v in (eqn.invars[0], eqn.outvars[0]))
                before, after = str(a.sharding.spec), str(b.sharding.spec)
                if "fsdp" in before and "data" not in before and "fsdp" not in after:
                    yield a.dtype

    for program in (jaxpr, sample):
        found = list(gathers(program))
        assert len(found) >= 9 and set(found) == {jnp.dtype("bfloat16")}
