"""Guarantees of `rlhf_jax.train`: gradients, schedules and the optimizer."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import GQA, copied, mesh, noisy_params, packed_batch

from rlhf_jax.model import decays
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.objectives import language_modelling
from rlhf_jax.study.config import ConfigError, OptimConfig
from rlhf_jax.train import gradients, init_state, make_train_step
from rlhf_jax.train.metrics import Throughput, peak_flops
from rlhf_jax.train.state import hyper_parameters, learning_rate

__all__ = ["mesh"]
CFG = dataclasses.replace(GQA, layers=1)
T = 16


def objective(params, batch):
    return language_modelling(params, batch, CFG, AXES)


@pytest.fixture(scope="module")
def ragged(mesh):
    """Parameters, and a batch of 8 rows with 0 to 16 weighted targets each."""
    tokens, segments, positions = packed_batch(
        CFG, [[16], [3, 9], [7], [16], [1], [5, 5, 5], [12], [16]], T
    )
    weights = (segments > 0).astype(np.float32)
    weights[3] = 0
    weights[7, :11] = 0
    return noisy_params(CFG), {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "segments": segments,
        "positions": positions,
        "weights": weights,
        "bytes": np.full_like(tokens, 3),
    }


@pytest.fixture(scope="module")
def big_batch(ragged):
    params, batch = ragged
    compiled = jax.jit(lambda p, b: gradients(objective, p, b, AXES))
    return compiled, jax.device_get(compiled(params, batch))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_the_big_batch_with_ragged_masks(ragged, big_batch, mesh, accumulate):
    params, batch = ragged
    got, metrics = jax.jit(lambda p, b: gradients(objective, p, b, AXES, accumulate))(
        params, place_batch(batch, mesh)
    )
    expected, expected_metrics = big_batch[1]
    for name in ("loss", "weight", "bytes"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), got, expected)


def test_a_batch_that_cannot_be_split_is_refused(ragged):
    params, batch = ragged
    with pytest.raises(ConfigError, match="3 accumulation steps do not divide a batch of 8"):
        gradients(objective, params, batch, AXES, 3)


def test_rows_without_weight_change_nothing(ragged, big_batch):
    params, batch = ragged
    compiled, (expected, _) = big_batch
    other = {**batch, "tokens": batch["tokens"].copy(), "targets": batch["targets"].copy()}
    other["tokens"][3], other["targets"][3] = 5, 9
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
        jax.device_get(compiled(params, other)[0]),
        expected,
    )


# --- schedules ---------------------------------------------------------------------------------


def rates(optim, start, end):
    """The rate of every step in [start, end), and the one that the schedule runs down to."""
    state = init_state({"w": jnp.zeros((2, 2))}, optim, end)
    state = state.replace(hyper=hyper_parameters(optim, start, end))
    at = jax.jit(jax.vmap(lambda t: learning_rate(optim, state.replace(step=t))))
    return np.asarray(at(jnp.arange(start, end + 1)))


def expected_rates(optim, n):
    out, warmup = [], round(optim.warmup * n)
    for t in range(n + 1):
        rate = optim.lr * min(1, (t + 1) / max(warmup, 1))
        after = {"wsd": round((1 - optim.decay) * n)}.get(optim.schedule, warmup)
        done = max(0.0, (t - after) / (n - after))
        if optim.schedule == "cosine":
            rate *= optim.final + (1 - optim.final) * (1 + np.cos(np.pi * done)) / 2
        elif optim.schedule != "constant":
            rate *= 1 - (1 - optim.final) * done
        out.append(rate)
    return np.array(out)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
def test_schedules_have_their_shapes(schedule):
    optim = OptimConfig(lr=2e-3, schedule=schedule, warmup=0.1, final=0.1, decay=0.25)
    got = rates(optim, 0, 80)
    np.testing.assert_allclose(got, expected_rates(optim, 80), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(got[:8], 2e-3 * np.arange(1, 9) / 8, rtol=1e-5)  # warmup
    assert got[-1] == pytest.approx(2e-3 * (1.0 if schedule == "constant" else 0.1), rel=1e-4)
    if schedule in ("wsd", "constant"):
        assert np.all(got[7:61] == np.float32(2e-3))  # plateau
    # A cell that continues another has the schedule over its own steps.
    np.testing.assert_allclose(rates(optim, 40, 120), got, rtol=1e-6)


def test_a_schedule_without_warmup_starts_at_its_peak():
    optim = OptimConfig(lr=1e-3, schedule="linear", warmup=0.0, final=0.0)
    np.testing.assert_allclose(
        rates(optim, 0, 5), 1e-3 * np.array([1, 0.8, 0.6, 0.4, 0.2, 0]), rtol=1e-5, atol=1e-9
    )


# --- the optimizer -----------------------------------------------------------------------------

OPTIM = OptimConfig(lr=0.1, schedule="constant", warmup=0.0, weight_decay=0.3, clip=1.0, b2=0.9)


def matrices(rng):
    return {
        "embed": rng.standard_normal((4, 3)).astype(np.float32),
        "layers": {
            "wq": rng.standard_normal((2, 3, 3)).astype(np.float32),
            "norm1": rng.standard_normal((2, 3)).astype(np.float32),
        },
        "scalar": {"w": rng.standard_normal(3).astype(np.float32)},
    }


def wq_decays(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "wq", params)


def linear(params, batch):
    """An objective whose gradient is the batch's `slope`, for whatever weight."""
    total = sum(
        jnp.sum(p * s[0]) for p, s in zip(jax.tree.leaves(params), batch["slopes"], strict=True)
    )
    return total * 2.0, jnp.float32(2.0), {}


def hand_written_adamw(params, slopes, optim):
    m = v = [0.0] * len(params)
    norms = []
    for t, grads in enumerate(slopes, 1):
        grads = [g.astype(np.float64) for g in grads]
        norms.append(np.sqrt(sum(np.sum(g**2) for g in grads)))
        grads = [g * min(1.0, optim.clip / norms[-1]) for g in grads]
        m = [optim.b1 * a + (1 - optim.b1) * g for a, g in zip(m, grads, strict=True)]
        v = [optim.b2 * a + (1 - optim.b2) * g**2 for a, g in zip(v, grads, strict=True)]
        new = []
        for p, a, b, decayed in zip(params, m, v, (False, False, True, False), strict=True):
            step = (a / (1 - optim.b1**t)) / (np.sqrt(b / (1 - optim.b2**t)) + optim.eps)
            new.append(p - optim.lr * (step + optim.weight_decay * decayed * p))
        params = new
    return params, norms


@pytest.fixture(scope="module")
def toy_step(mesh):
    return make_train_step(linear, OPTIM, wq_decays, AXES)


def test_three_steps_equal_a_hand_written_adamw_with_clipping(toy_step):
    rng = np.random.default_rng(0)
    params = matrices(rng)
    order = jax.tree.leaves(params)  # embed, norm1, wq, scalar
    slopes = [
        [scale * rng.standard_normal(p.shape).astype(np.float32) for p in order]
        for scale in (3.0, 0.01, 0.3)
    ]
    expected, norms = hand_written_adamw([p.astype(np.float64) for p in order], slopes, OPTIM)
    state, seen = init_state(params, OPTIM, 3), []
    for s in slopes:
        state, metrics = toy_step(state, {"slopes": [x[None] for x in s]})
        seen.append(float(metrics["grad_norm"]))
    for got, want in zip(jax.tree.leaves(state.params), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(seen, norms, rtol=1e-5)  # before clipping
    assert norms[0] > 1 > norms[1] and int(state.step) == 3


def test_changing_learning_rate_decay_and_length_does_not_recompile(toy_step):
    params = matrices(np.random.default_rng(1))
    batch = {"slopes": [np.ones((1, *p.shape), np.float32) for p in jax.tree.leaves(params)]}
    moved = {}
    toy_step(init_state(params, OPTIM, 7), batch)
    before = toy_step._cache_size()
    for lr, decay, end in ((0.1, 0.3, 7), (0.2, 0.3, 7), (0.1, 0.0, 9)):
        optim = dataclasses.replace(OPTIM, lr=lr, weight_decay=decay)
        state, _ = toy_step(init_state(params, optim, end), batch)
        moved[lr, decay] = params["layers"]["wq"] - np.asarray(state.params["layers"]["wq"])
    assert toy_step._cache_size() == before
    np.testing.assert_allclose(moved[0.2, 0.3], 2 * moved[0.1, 0.3], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        moved[0.1, 0.3] - moved[0.1, 0.0], 0.03 * params["layers"]["wq"], atol=1e-6
    )


def test_weight_decay_touches_the_matrices_of_layers_only(ragged, mesh):
    """With a gradient of zero everything that moves is decayed."""
    params, batch = ragged
    names = {"wq", "wk", "wv", "wo", "w_in", "w_out"}
    optim = OptimConfig(lr=0.1, schedule="constant", warmup=0.0, weight_decay=0.5)
    step = make_train_step(
        lambda p, b: (0.0 * jnp.sum(p["embed"]), jnp.float32(1), {}),
        optim,
        functools.partial(decays, CFG),
        AXES,
    )
    before = copied(params)
    state, _ = step(init_state(params, optim, 1), batch)
    for path, old in jax.tree_util.tree_leaves_with_path(before):
        new = np.asarray(
            state.params["layers"][path[-1].key] if len(path) > 1 else state.params[path[-1].key]
        )
        factor = 0.95 if path[-1].key in names else 1.0
        np.testing.assert_allclose(new, factor * old, rtol=1e-6)


# --- throughput --------------------------------------------------------------------------------


def test_throughput_leaves_out_the_first_call_and_is_smoothed(monkeypatch):
    now = iter((0.0, 10.0, 11.0, 13.0))
    monkeypatch.setattr("rlhf_jax.train.metrics.time.perf_counter", lambda: next(now))
    monkeypatch.setattr("rlhf_jax.train.metrics.peak_flops", lambda: 4000.0)
    throughput = Throughput(flops_per_token=8.0)
    rates = [throughput(100)["tokens_per_second"] for _ in range(2)]
    assert rates == pytest.approx([10, 100])  # 10 s with compilation, then 1 s
    found = throughput(100)
    assert found["tokens_per_second"] == pytest.approx(100 / (0.9 * 1 + 0.1 * 2))
    assert found["mfu"] == pytest.approx(found["tokens_per_second"] * 8 / 4000)


def test_the_peak_of_known_chips_is_of_all_of_them(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind="NVIDIA H100 80GB")])
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert peak_flops.__wrapped__() == 8 * 989e12
