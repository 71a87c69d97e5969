"""The choices of a PPO cell: presets, critics, siblings, where KL and score go, averages,
pretraining."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LEARNED, mesh, noisy_params, packed_batch

from rlhf_jax.kinds import PPO, Reward, TaskConfig
from rlhf_jax.kinds.ppo.memory import rlhf_bytes
from rlhf_jax.model import with_scalar_head
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.objectives import language_modelling
from rlhf_jax.rl import ppo
from rlhf_jax.rl.advantages import Rollout, estimated, kl_loss
from rlhf_jax.rl.diagnosis import diagnose
from rlhf_jax.rl.presets import NAMES, ppo_preset, reward_preset
from rlhf_jax.rl.rollout import Networks, rollout
from rlhf_jax.study.config import ConfigError, ModelConfig, OptimConfig
from rlhf_jax.train import apply_gradients, init_state
from rlhf_jax.train.state import learning_rate

__all__ = ["mesh"]

CFG = dataclasses.replace(LEARNED, vocab=16, layers=1)
CELL = PPO(
    "p",
    task=TaskConfig(4, 6),
    batch=8,
    epochs=1,
    iterations=10,
    kl_coef=0.1,
    no_eos="keep",
    optim=OptimConfig(lr=1e-2, schedule="constant", warmup=0.0, weight_decay=0.0, b2=0.999),
)
REWARDED = 7


def reward(arrays, rows, mask_BR):
    return jnp.mean((rows.tokens_BT[:, -mask_BR.shape[1] :] == REWARDED).astype(jnp.float32), -1)


def started(cell, mesh, seed=0):
    """(networks, state, frozen, prompts) of a cell."""
    policy = jax.tree.map(jnp.asarray, noisy_params(CFG, seed))
    models, critic = {"policy": policy}, None
    if cell.algorithm == "ppo":
        critic = CFG
        if cell.critic == "shared":
            models = {"policy": with_scalar_head(policy, CFG, None)}
        else:
            trunk = jax.tree.map(jnp.asarray, noisy_params(CFG, seed + 1))
            models["critic"] = with_scalar_head(trunk, CFG, None)
    state = init_state(models, cell.optim, cell.iterations, kl_coef=jnp.float32(cell.kl_coef))
    if cell.ema is not None:
        average = jax.tree.map(jnp.copy, models["policy"])
        state = state.replace(params={**models, "ema": average})
    reference = jax.tree.map(jnp.asarray, noisy_params(CFG, seed + 2))
    frozen = {"reference": reference, "reward": (), "seed": jnp.uint32(cell.seed)}
    prompts = np.random.default_rng(seed).integers(3, 16, (cell.batch, 4)).astype(np.int32)
    prompts[::2, :2] = 0
    return Networks(CFG, critic), state, frozen, place_batch({"p": prompts}, mesh)["p"]


def iterated(cell, mesh, n=1, accumulate=1, text=None):
    networks, state, frozen, prompts = started(cell, mesh)
    step = ppo.make_ppo_step(cell, networks, AXES, reward, accumulate)
    history = []
    for _ in range(n):
        state, metrics = step(state, frozen, prompts, text)
        history.append(jax.device_get(metrics))
    return state, history


# --- presets ---------------------------------------------------------------------------------

PUBLISHED = {  # PPO: lr, batch, minibatches, epochs, beta, target, temperature, response length
    "openai2019": (1e-5, 512, 1, 4, 0.15, 6.0, 0.7, 24),
    "stiennon2020": (1.5e-5, 512, 1, 4, 0.05, None, 0.7, None),
    "instructgpt2022": (9.65e-6, 512, 8, 1, 0.02, None, 1.0, None),
    "nplus2024": (3e-6, 512, 1, 4, 0.05, None, 0.7, 53),
}


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_the_published_ones(name):
    lr, batch, minibatches, epochs, beta, target, temperature, length = PUBLISHED[name]
    cell = PPO("p", **ppo_preset(name, iterations=100))
    got = (
        cell.optim.lr,
        cell.batch,
        cell.minibatches,
        cell.epochs,
        cell.kl_coef,
        cell.kl_target,
        cell.temperature,
        cell.task.response_len if length else None,
    )
    assert got == (lr, batch, minibatches, epochs, beta, target, temperature, length)
    assert (cell.gamma, cell.clip) == (1.0, 0.2) and cell.optim.eps == 1e-5
    model = Reward("r", **reward_preset(name))
    published = {
        "openai2019": (5e-5, 32),
        "stiennon2020": (1.5e-5, 64),
        "instructgpt2022": (9e-6, 64),
        "nplus2024": (3e-6, 64),
    }
    assert (model.optim.lr, model.batch) == published[name] and model.epochs == 1


def test_presets_keep_what_tells_them_apart():
    cells = {name: PPO("p", **ppo_preset(name, iterations=100)) for name in NAMES}
    assert cells["openai2019"].optim.adam == "tensorflow" and cells["openai2019"].whiten_rewards
    assert cells["openai2019"].critic == "shared" and cells["openai2019"].kl_horizon == 10_000
    assert (cells["instructgpt2022"].ptx_coef, cells["instructgpt2022"].ema) == (27.8, 0.992)
    assert cells["instructgpt2022"].critic_lr == 9e-6
    assert (cells["nplus2024"].no_eos_score, cells["nplus2024"].score_at) == (-1.0, "after")
    assert ppo_preset("nplus2024", batch=8)["batch"] == 8
    with pytest.raises(ConfigError, match="Did you mean 'nplus2024'"):
        ppo_preset("nplus24")


def test_preset_schedules_fall_to_zero_or_warm_up_for_ten_iterations():
    def rates(name, n=100):
        optim = ppo_preset(name, iterations=n)["optim"]
        state = init_state({"w": jnp.zeros(1)}, optim, n)
        return [float(learning_rate(optim, state.replace(step=jnp.int32(t)))) for t in range(n)]

    linear = rates("nplus2024")
    np.testing.assert_allclose(linear, [3e-6 * (1 - t / 100) for t in range(100)], rtol=1e-5)
    warm = rates("instructgpt2022")
    np.testing.assert_allclose(warm[:10], [9.65e-6 * (t + 1) / 10 for t in range(10)], rtol=1e-5)
    np.testing.assert_allclose(warm[10:], 9.65e-6, rtol=1e-6)


@pytest.mark.parametrize("adam", ["paper", "tensorflow"])
def test_both_adams_equal_loops(adam):
    optim = OptimConfig(lr=0.1, weight_decay=0.0, eps=1e-2, b2=0.999, clip=1e9, adam=adam)
    state = init_state({"x": jnp.zeros(2)}, optim, 5)
    x, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
    for t in range(1, 6):
        g = np.array([0.3 * t, -1e-3])
        state, _ = apply_gradients(
            state,
            {"x": jnp.asarray(g, jnp.float32)},
            optim,
            jnp.float32(0.1),
            lambda params: {"x": False},
        )
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        if adam == "paper":
            x -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-2)
        else:
            x -= 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-2)
    np.testing.assert_allclose(state.params["x"], x, rtol=1e-4)


# --- pieces ----------------------------------------------------------------------------------


def test_kl_as_a_loss_has_the_value_of_k3_and_the_gradient_of_k2():
    lp, ref = jnp.array([-1.0, -2.0, -0.5]), jnp.array([-1.2, -1.5, -0.5])
    np.testing.assert_allclose(kl_loss(lp, ref), [0.018731, 0.148721, 0], atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: kl_loss(x, ref).sum())(lp), lp - ref, atol=1e-6)


def test_group_advantages_equal_loops():
    score = np.random.default_rng(0).normal(size=12).astype(np.float32)
    responses = Rollout(jnp.array(score), jnp.zeros((12, 1)), jnp.ones((12, 1)), None)
    loo, grpo = (
        np.asarray(estimated(responses, PPO("p", algorithm=name, samples=4)))
        for name in ("rloo", "grpo")
    )
    for i, s in enumerate(score):
        group = score[i // 4 * 4 : i // 4 * 4 + 4]
        others = [x for j, x in enumerate(group) if j != i % 4]
        assert loo[i] == pytest.approx(s - np.mean(others), abs=1e-5)
        assert grpo[i] == pytest.approx((s - group.mean()) / (group.std(ddof=1) + 1e-4), abs=1e-4)


@pytest.mark.parametrize("score_at", ["last", "after"])
def test_the_score_lies_on_the_last_token_or_one_past_it(mesh, score_at):
    """Returns with gamma = lambda = 1, no KL, and a critic of 0 are the score, up to where it
    lies."""
    cell = dataclasses.replace(
        CELL, score_at=score_at, kl_coef=0.0, lam=1.0, whiten_advantages="no", batch=64
    )
    networks, state, frozen, prompts = started(cell, mesh)
    run = jax.jit(lambda s, f, p, k: rollout(cell, networks, AXES, reward, s, f, p, k))
    e, metrics = jax.device_get(run(state, frozen, prompts, jax.random.key(0)))
    lengths = e.mask_BR.sum(-1).astype(int)
    assert lengths.min() < 6  # some stopped
    for b, n in enumerate(lengths):
        m = min(n + (score_at == "after"), 6)
        score = (metrics["responses"][b] == REWARDED).mean()
        np.testing.assert_array_equal(e.value_mask_BR[b], np.arange(6) < m)
        np.testing.assert_allclose(e.returns_BR[b], score * (np.arange(6) < m), atol=1e-6)


def test_samples_of_a_prompt_lie_side_by_side(mesh):
    cell = dataclasses.replace(CELL, algorithm="rloo", samples=3)
    networks, state, frozen, prompts = started(cell, mesh)
    run = jax.jit(lambda s, f, p, k: rollout(cell, networks, AXES, reward, s, f, p, k))
    _, metrics = jax.device_get(run(state, frozen, prompts, jax.random.key(0)))
    np.testing.assert_array_equal(metrics["prompts"], np.repeat(np.asarray(prompts), 3, axis=0))
    assert len({tuple(r) for r in metrics["responses"][:3].tolist()}) > 1
    assert metrics["max_ratio_error"] <= 1e-4 and "explained_variance" not in metrics


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_sum_is_divided_by_the_weight_of_its_own_mask(mesh, monkeypatch, accumulate):
    """Where the update is replaced by the gradients themselves: those of the mean over values'
    tokens."""
    monkeypatch.setattr(ppo, "apply_gradients", lambda s, g, *_: (s.replace(params=g), {}))
    cell = dataclasses.replace(
        CELL, score_at="after", value_coef=0.3, value_clip=None, whiten_advantages="no", batch=16
    )
    networks, state, frozen, prompts = started(cell, mesh)
    step = ppo.make_ppo_step(cell, networks, AXES, reward, accumulate)
    key = jax.random.split(jax.random.fold_in(jax.random.key(cell.seed), 0))[0]
    run = jax.jit(lambda s, f, p, k: rollout(cell, networks, AXES, reward, s, f, p, k))
    e, _ = jax.device_get(run(state, frozen, prompts, key))
    grads, metrics = step(state, frozen, prompts)
    value, slope, policy = [], [], []
    for b, t in np.ndindex(e.mask_BR.shape):
        if e.value_mask_BR[b, t]:
            error = float(e.values_BR[b, t]) - float(e.returns_BR[b, t])
            value.append(error**2 / 2)
            slope.append(error)  # with respect to the bias of the value head
        if e.mask_BR[b, t]:
            policy.append(-float(e.advantages_BR[b, t]))  # the ratio is 1
    halves = [e.value_mask_BR[i::8].sum() / e.mask_BR[i::8].sum() for i in range(8)]
    assert len(value) > len(policy) and len(set(halves)) > 1  # ragged, and not the same everywhere
    assert float(metrics["value_loss"]) == pytest.approx(np.mean(value), rel=1e-4)
    assert float(metrics["policy_loss"]) == pytest.approx(np.mean(policy), rel=1e-4, abs=1e-6)
    loss = np.mean(policy) + 0.3 * np.mean(value)
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-4)
    bias = float(grads.params["critic"]["scalar"]["b"])
    assert bias == pytest.approx(0.3 * np.mean(slope), rel=1e-4)


def test_rollouts_are_scored_in_micro_batches_with_the_same_scores(mesh):
    cell = dataclasses.replace(CELL, algorithm="ppo", samples=2)
    networks, state, frozen, prompts = started(cell, mesh)
    found, scored = [], []

    def spied(arrays, rows, mask_BR):
        scored.append(mask_BR.shape[0])
        return reward(arrays, rows, mask_BR)

    for accumulate in (1, 4):
        run = jax.jit(
            lambda s, f, p, k, n=accumulate: rollout(cell, networks, AXES, spied, s, f, p, k, n)
        )
        found.append(jax.device_get(run(state, frozen, prompts, jax.random.key(0))))
    assert scored[0] == 16 and set(scored[1:]) == {4}
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# --- iterations ------------------------------------------------------------------------------

CHOICES = {
    "shared critic": {"critic": "shared"},
    "score after EOS": {"score_at": "after", "bessel": True},
    "minibatch whitening": {"whiten_advantages": "minibatch", "minibatches": 2},
    "reward whitening, no value clip": {"whiten_rewards": True, "value_clip": None},
    "KL in the loss": {"kl_in": "loss"},
    "GRPO": {"algorithm": "grpo", "samples": 2, "kl_in": "loss"},
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_every_choice_starts_at_ratio_one_and_does_not_depend_on_micro_batches(mesh, choice):
    cell = dataclasses.replace(CELL, **choice)
    whole, (metrics, *_) = iterated(cell, mesh)
    parts, _ = iterated(cell, mesh, accumulate=2)
    assert metrics["max_ratio_error"] <= 1e-4 and metrics["clip_frac_before"] == 0
    assert all(np.isfinite(v).all() for v in metrics.values())
    assert ("value_loss" in metrics) == (cell.algorithm == "ppo")
    assert ("kl_loss" in metrics) == (cell.kl_in == "loss")
    moved = 0.0
    for a, b, c in zip(
        *map(jax.tree.leaves, (whole.params, parts.params, started(cell, mesh)[1].params)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=2e-4)
        moved = max(moved, float(jnp.max(jnp.abs(a - c))))
    assert moved > 1e-3


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "reinforce"])
def test_siblings_raise_the_probability_of_what_is_rewarded(mesh, algorithm):
    samples = 1 if algorithm == "reinforce" else 4
    cell = dataclasses.replace(
        CELL, algorithm=algorithm, samples=samples, batch=64 // samples, kl_coef=0.0
    )
    _, history = iterated(cell, mesh, n=25)
    rewards = [float(m["reward_proxy"]) for m in history]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.25
    assert all(m["max_ratio_error"] <= 1e-4 for m in history)


def leave_one_out(rollout, cell):
    scores_Ng = rollout.returns_B.reshape(-1, cell.samples)
    others = cell.samples / (cell.samples - 1)
    return jnp.ravel((scores_Ng - scores_Ng.mean(1, keepdims=True)) * others)


def surrogate(ratio_BR, advantages_BR, cell):
    bounded_BR = jnp.clip(ratio_BR, 1 - cell.clip, 1 + cell.clip)
    return jnp.maximum(-advantages_BR * ratio_BR, -advantages_BR * bounded_BR)


def one_for_all(rollout, cell):
    return jnp.zeros(3)


def test_an_algorithm_and_a_loss_of_ones_own_are_one_function_each(mesh):
    """Written anew, they give what the named ones give, to the bit."""
    named = dataclasses.replace(CELL, algorithm="rloo", samples=2, epochs=2)
    own = dataclasses.replace(
        named, algorithm=f"{__name__}:leave_one_out", policy_loss=f"{__name__}:surrogate"
    )
    (one, before), (other, after) = (iterated(cell, mesh, n=2) for cell in (named, own))
    for a, b in zip(*map(jax.tree.leaves, ((one, before), (other, after))), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not own.has_critic
    wrong = dataclasses.replace(own, algorithm=f"{__name__}:one_for_all")
    with pytest.raises(ConfigError, match=r"gave an array of shape \(3,\).*each of 16 responses"):
        iterated(wrong, mesh)
    wrong = dataclasses.replace(own, policy_loss=f"{__name__}:one_for_two")
    with pytest.raises(ConfigError, match=r"gave an array of shape \(\); expected \(16, 6\)"):
        iterated(wrong, mesh)


def one_for_two(ratio_BR, advantages_BR, cell):
    return jnp.sum(ratio_BR * advantages_BR)


def test_an_unknown_algorithm_or_loss_is_refused_with_the_names_that_there_are():
    with pytest.raises(ConfigError, match=r"p.algorithm = 'grpp'. Did you mean 'grpo'\?"):
        dataclasses.replace(CELL, algorithm="grpp")
    with pytest.raises(ConfigError, match=r"p.policy_loss = 'huber'. Known: clip"):
        dataclasses.replace(CELL, policy_loss="huber")
    with pytest.raises(ConfigError, match=r"p.value_coef = 0.5 would do nothing"):
        dataclasses.replace(CELL, algorithm="mine:own", value_coef=0.5)


def test_weights_are_averaged_once_an_iteration(mesh):
    cell = dataclasses.replace(CELL, ema=0.75)
    networks, state, frozen, prompts = started(cell, mesh)
    expected = jax.device_get(state.params["policy"])
    step = ppo.make_ppo_step(cell, networks, AXES, reward)
    for _ in range(2):
        state, _ = step(state, frozen, prompts)
        expected = jax.tree.map(
            lambda a, p: 0.75 * a + 0.25 * np.asarray(p), expected, state.params["policy"]
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params["ema"], expected
    )


def test_pretraining_gradients_are_added_with_their_weight(mesh, monkeypatch):
    """Where the update is replaced by the gradients themselves."""
    monkeypatch.setattr(ppo, "apply_gradients", lambda s, g, *_: (s.replace(params=g), {}))
    tokens, segments, positions = packed_batch(CFG, [[8], [3, 5], [8], [6]], 8, seed=0)
    text = {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "targets": np.roll(tokens, -1, 1),
        "weights": (segments > 0).astype(np.float32),
        "bytes": np.ones_like(tokens),
    }
    placed = place_batch(text, mesh)
    cell = dataclasses.replace(CELL, ptx_coef=3.0, ptx_batch=4)
    plain, _ = iterated(CELL, mesh)
    both, (metrics,) = iterated(cell, mesh, text=placed)
    policy = started(cell, mesh)[1].params["policy"]

    def nll(p):
        total, weight, _ = language_modelling(p, placed, CFG, AXES)
        return total / weight

    expected = jax.jit(jax.grad(nll))(policy)
    for got, without, more in zip(
        *map(jax.tree.leaves, (both.params["policy"], plain.params["policy"], expected)),
        strict=True,
    ):
        np.testing.assert_allclose(got, without + 3.0 * more, atol=1e-4)
    for a, b in zip(
        *map(jax.tree.leaves, (both.params["critic"], plain.params["critic"])), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert metrics["ptx_loss"] == pytest.approx(float(nll(policy)), rel=1e-5)


def test_the_critic_has_its_own_learning_rate(mesh):
    cell = dataclasses.replace(CELL, critic_lr=1e-9)
    state, _ = iterated(cell, mesh)
    _, before, *_ = started(cell, mesh)
    still = [
        np.abs(a - b).max()
        for a, b in zip(
            *map(jax.tree.leaves, (state.params["critic"], before.params["critic"])), strict=True
        )
    ]
    moved = [
        np.abs(a - b).max()
        for a, b in zip(
            *map(jax.tree.leaves, (state.params["policy"], before.params["policy"])), strict=True
        )
    ]
    assert max(still) < 1e-6 < 1e-3 < max(moved)


# --- what is said ----------------------------------------------------------------------------

HEALTHY = {
    "kl": 1.0,
    "response_length": 6.0,
    "stop_rate": 0.5,
    "reward_spread": 0.3,
    "entropy": 1.0,
    "clip_frac": 0.1,
    "approx_kl": 0.01,
}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"kl": -2.0}, "negative KL"),
        ({"kl": 50.0}, "exploding KL"),
        ({"stop_rate": 0.0}, "never stops"),
        ({"reward_spread": 0.0}, "constant reward"),
        ({"entropy": 0.01}, "collapsed policy"),
        ({"clip_frac": 0.7}, "updates too large"),
        ({"approx_kl": 2.0}, "off policy"),
    ],
)
def test_what_goes_wrong_has_a_name(change, name):
    assert diagnose(CELL, CFG, HEALTHY) == {}
    assert list(diagnose(CELL, CFG, HEALTHY | change)) == [name]


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="grpo compares at least 2 responses"):
        PPO("p", algorithm="grpo")
    with pytest.raises(ConfigError, match=r"critic_lr = 0\.1, but critic = 'shared'"):
        PPO("p", critic="shared", critic_lr=0.1)
    with pytest.raises(ConfigError, match="reinforce compares at least 2 responses"):
        PPO("p", algorithm="reinforce", batch=1)
    with pytest.raises(ConfigError, match=r"temperature = 0\.0; expected a number from"):
        PPO("p", temperature=0)


def test_the_memory_plan_counts_every_model():
    model = ModelConfig(layers=2, width=64, heads=4, vocab=1024)
    parts = rlhf_bytes(CELL, model, model, [model])
    size = 4.0 * 164_160
    assert (
        parts["policy with gradients and Adam"]
        == parts["critic with gradients and Adam"]
        == 5 * size
    )
    assert parts["reference"] == parts["reward model"] == size
    shared = rlhf_bytes(dataclasses.replace(CELL, critic="shared"), model, model, [model])
    assert "critic with gradients and Adam" not in shared
    assert sum(rlhf_bytes(CELL, model, None, []).values()) < sum(shared.values())
    # Micro-batches take less for activations, and for scoring, but not for the models or the cache.
    part = "activations of an update or the sampler's cache"
    large = dataclasses.replace(CELL, batch=512)
    needs = [rlhf_bytes(large, model, model, [model], n) for n in (1, 8, 512)]
    assert needs[0][part] > 4 * needs[1][part] > 4 * needs[2][part]
    cache = 4.0 * 2 * 2 * 512 * 10 * 64  # keys and values of 2 layers, 512 rows of 10 tokens
    assert needs[2][part] > cache and needs[0]["reference"] == needs[2]["reference"]
