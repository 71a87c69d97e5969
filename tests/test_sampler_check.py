"""Guarantee: in float32 and in bfloat16 PPO's check of the sampler passes honest runs, whose
kernels may differ, and stops a run whose trainer scores the sampled tokens as another model
would."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import GQA, LEARNED, mesh, noisy_params

from rlhf_jax.kinds import PPO, TaskConfig
from rlhf_jax.model import decays, dispatch, pointwise
from rlhf_jax.model.scoring import Sequences
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.objectives import language_modelling
from rlhf_jax.rl.rollout import Networks, SamplerMismatch, check_sampler, rollout, sampler_tolerance
from rlhf_jax.study.config import ModelConfig, OptimConfig
from rlhf_jax.train import init_state, make_train_step

__all__ = ["mesh"]
MODELS = {
    "rope": GQA,
    "learned": dataclasses.replace(LEARNED, vocab=64),
    "deep": dataclasses.replace(GQA, layers=9, qk_norm=True, activation="swiglu"),
}
# Of the trainer's attention: that of the sampler, or another.
KERNELS = {"rope": "reference", "learned": "cpu", "deep": "reference"}
P, R = 6, 8
CELL = PPO("p", task=TaskConfig(P, R), batch=32, algorithm="reinforce", temperature=0.7)
FAULTS = ("none", "jitter", "temperature", "positions", "padding", "segment", "stale")


class Faulty(NamedTuple):
    """A trainer with the fault of this number in the policy's parameters."""

    policy: ModelConfig
    critic: Any = None

    def outputs(self, params, rows, length, temperature, axes):
        is_ = lambda name: params["policy"]["fault"] == FAULTS.index(name)  # noqa: E731
        tokens, segments, positions = rows
        response = jnp.arange(tokens.shape[1]) >= tokens.shape[1] - length
        wrong = Sequences(
            tokens,
            jnp.where(
                is_("padding"), 1, jnp.where(is_("segment") & response, 2 * segments, segments)
            ),
            jnp.where(is_("positions") & response, positions + 1, positions),
        )
        # Adam's step at a learning rate of 1e-2; or what changes no more than the last bits.
        moved = jnp.where(is_("stale"), 1e-2, jnp.where(is_("jitter"), 1e-6, 0.0))
        policy = jax.tree.map(lambda x: x + moved * jnp.sign(jnp.sin(1e3 * x)), params["policy"])
        temperature = jnp.where(is_("temperature"), 1.1 * temperature, temperature)
        return Networks(self.policy, None).outputs(
            {"policy": policy}, wrong, length, temperature, axes
        )


def text(rng, rows, length):
    """Tokens of which each has three successors, one of them likely."""
    successors = np.random.default_rng(7).integers(3, 64, (64, 3))
    out, x = np.zeros((rows, length), np.int32), rng.integers(3, 64, rows)
    for t in range(length):
        out[:, t] = x
        x = successors[x, rng.choice(3, rows, p=[0.8, 0.15, 0.05])]
    return out


@functools.cache
def parameters(model, trained):
    cfg = MODELS[model]
    params = jax.tree.map(jnp.asarray, noisy_params(cfg))
    if not trained:
        return params
    optim, rng = OptimConfig(lr=1e-2), np.random.default_rng(0)
    step = make_train_step(
        lambda p, b: language_modelling(p, b, cfg, AXES),
        optim,
        functools.partial(decays, cfg),
        AXES,
    )
    state = init_state(params, optim, 60)
    for _ in range(60):
        rows = text(rng, 32, P + R + 1)
        ones = np.ones_like(rows[:, 1:])
        batch = {
            "tokens": rows[:, :-1],
            "targets": rows[:, 1:],
            "segments": ones,
            "bytes": ones,
            "positions": np.cumsum(ones, 1) - 1,
            "weights": ones.astype(np.float32),
        }
        state, _ = step(state, batch)
    return state.params


@functools.cache
def compiled(model, dtype):
    """The rollout's metrics, of a sampler with the platform's kernel."""
    cfg = dataclasses.replace(MODELS[model], compute=dtype)
    reward = lambda arrays, rows, mask_BR: jnp.sum(mask_BR, -1)  # noqa: E731

    def run(state, frozen, prompts):
        with pytest.MonkeyPatch.context() as patch:
            choose = lambda *given: ("cpu" if given[-1] else KERNELS[model], "")  # noqa: E731
            patch.setattr(dispatch, "choose", choose)
            key = jax.random.key(0)
            return rollout(CELL, Faulty(cfg), AXES, reward, state, frozen, prompts, key)[1]

    return cfg, jax.jit(run)


def metrics_of(mesh, model, dtype, fault="none", trained=False):
    cfg, run = compiled(model, dtype)
    policy = {**parameters(model, trained), "fault": jnp.float32(FAULTS.index(fault))}
    state = init_state({"policy": policy}, CELL.optim, 1, kl_coef=jnp.float32(0.1))
    prompts = text(np.random.default_rng(5), CELL.batch, P)
    for b in range(CELL.batch):
        prompts[b, : b % 5] = 0
    prompts = place_batch({"p": prompts}, mesh)["p"]
    return cfg, jax.device_get(run(state, {"reference": policy, "reward": ()}, prompts))


HONEST = [("rope", "float32"), ("learned", "float32"), *((m, "bfloat16") for m in MODELS)]


@pytest.mark.parametrize("trained", [False, True], ids=["initial", "trained"])
@pytest.mark.parametrize(("model", "dtype"), HONEST)
def test_honest_runs_pass_with_room(mesh, model, dtype, trained):
    """In bfloat16 also with weights so changed that other roundings come out."""
    for fault in ("none", "jitter") if dtype == "bfloat16" else ("none",):
        cfg, metrics = metrics_of(mesh, model, dtype, fault, trained)
        check_sampler(1, metrics, cfg)
        most_kl, most_gap = sampler_tolerance(cfg, metrics["logprob_variance"])
        assert metrics["approx_kl_before"] < most_kl / 1.3
        assert metrics["max_logprob_gap"] < most_gap / 1.5
        assert (metrics["approx_kl_before"] > 1e-8) <= (dtype == "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["rope", "learned"])
@pytest.mark.parametrize("fault", FAULTS[2:])
def test_a_faulty_trainer_is_stopped_in_either_dtype(mesh, model, dtype, fault):
    cfg, metrics = metrics_of(mesh, model, dtype, fault)
    with pytest.raises(SamplerMismatch, match=f"iteration 7: before any update.* in {dtype}"):
        check_sampler(7, metrics, cfg)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["rope", "learned"])
@pytest.mark.parametrize("fault", ["temperature", "stale", "segment"])
def test_faults_of_a_trained_policy_are_found(mesh, model, dtype, fault):
    cfg, metrics = metrics_of(mesh, model, dtype, fault, trained=True)
    with pytest.raises(SamplerMismatch):
        check_sampler(1, metrics, cfg)


def test_the_spread_is_that_of_the_log_probs(mesh):
    """Of a trainer that gives every token of the vocabulary the same logit it is 0."""
    params = {**parameters("rope", False), "fault": jnp.float32(0)}
    params = {**params, "final_norm": jnp.zeros_like(params["final_norm"])}
    cfg, run = compiled("rope", "float32")
    state = init_state({"policy": params}, CELL.optim, 1, kl_coef=jnp.float32(0.1))
    prompts = place_batch({"p": text(np.random.default_rng(5), CELL.batch, P)}, mesh)["p"]
    metrics = jax.device_get(run(state, {"reference": params, "reward": ()}, prompts))
    assert metrics["entropy"] == pytest.approx(np.log(cfg.vocab), rel=1e-5)
    assert metrics["logprob_variance"] == pytest.approx(0, abs=1e-10)


def test_one_wrong_token_among_many_is_found_by_its_size(mesh):
    cfg, metrics = metrics_of(mesh, "rope", "bfloat16")
    _, most_gap = sampler_tolerance(cfg, metrics["logprob_variance"])
    with pytest.raises(SamplerMismatch):
        check_sampler(1, {**metrics, "max_logprob_gap": 1.1 * most_gap}, cfg)
    with pytest.raises(SamplerMismatch):
        check_sampler(1, {**metrics, "approx_kl_before": np.nan}, cfg)


def test_another_epsilon_of_the_norms_is_found_in_float32(mesh, monkeypatch):
    """1e-3 for 1e-6 in the trainer: less than what bfloat16 rounds."""
    normalized, faulty = pointwise._normalized, []

    def of_trainer(x, centred, axis):
        y, scale = normalized(x, centred, axis)
        if not faulty:
            return y, scale
        other = jax.lax.rsqrt(1 / jnp.square(scale) + 1e-3)
        return y / scale * other, other

    monkeypatch.setattr(pointwise, "_normalized", of_trainer)
    outputs = Networks.outputs

    def trainer(*arguments):
        faulty.append(True)
        out = outputs(*arguments)
        faulty.clear()
        return out

    monkeypatch.setattr(Networks, "outputs", trainer)
    compiled.cache_clear()
    cfg, metrics = metrics_of(mesh, "rope", "float32")
    compiled.cache_clear()
    with pytest.raises(SamplerMismatch):
        check_sampler(1, metrics, cfg)


def test_the_tolerance_grows_with_the_roundoff_and_what_it_is_of():
    f32, bf16 = (ModelConfig(layers=4, compute=dtype) for dtype in ("float32", "bfloat16"))
    assert sampler_tolerance(f32, 5.0) == pytest.approx((1e-8, 1e-4), rel=0.3)
    kl, gap = sampler_tolerance(bf16, 5.0)
    assert kl == pytest.approx(88 * 2.0**-16 * 5 / 2, rel=1e-3)
    assert gap == pytest.approx(20 * (2 * kl) ** 0.5, rel=1e-2)
    assert 7 * kl < 0.1**2 * 5 / 2  # a temperature that is off by 10%
