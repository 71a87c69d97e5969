"""Guarantees of `rlhf_jax.rl`: advantages, the objective, the sampler check, and that PPO
learns."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LEARNED, copied, mesh, noisy_params, numpy_hidden
from tiny_rewards import longest_word

from rlhf_jax.kinds import PPO, TaskConfig
from rlhf_jax.model import with_scalar_head
from rlhf_jax.model.sampler import EOS
from rlhf_jax.model.scoring import Sequences, join
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.rl import ppo
from rlhf_jax.rl.advantages import gae, kl_estimates, token_rewards, whiten
from rlhf_jax.rl.rollout import (
    Experience,
    Networks,
    SamplerMismatch,
    adapt_kl,
    check_sampler,
    score_without_eos,
)
from rlhf_jax.rl.scores import Member, callable_reward, model_scores
from rlhf_jax.study.config import OptimConfig
from rlhf_jax.train import init_state

__all__ = ["mesh"]

# Golden vectors on which verl, TRL, OpenRLHF and tunix agree: gamma 1, lambda 0.95.
V = np.array([[0.5, 0.4, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]], np.float32)
R = np.array([[-0.01, -0.02, 0, 1], [0.05, -0.05, 0.7, 0]], np.float32)
M = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.float32)
A = np.array([[0.371650, 0.507, 0.66, 0.8], [0.5585, 0.43, 0.4, 0]])
RETURNS = np.array([[0.871650, 0.907, 0.96, 1.0], [0.6585, 0.63, 0.7, 0]])
BESSEL = np.array([[-1.041313, -0.164810, 0.825992, 1.732608], [0.168695, -0.663449, -0.857723, 0]])
BIASED = np.array([[-1.124747, -0.178015, 0.892173, 1.871430], [0.182211, -0.716607, -0.926447, 0]])


def test_advantages_and_returns_are_the_golden_ones():
    advantages, returns = gae(jnp.array(R), jnp.array(V), jnp.array(M), 1.0, 0.95)
    np.testing.assert_allclose(advantages, A, atol=2e-6)
    np.testing.assert_allclose(returns, RETURNS, atol=2e-6)


def test_values_after_the_last_token_do_not_leak_into_advantages():
    other = np.where(M > 0, V, 77.0).astype(np.float32)
    advantages, returns = gae(jnp.array(R), jnp.array(other), jnp.array(M), 1.0, 0.95)
    np.testing.assert_allclose(advantages, A, atol=2e-6)
    np.testing.assert_allclose(returns, RETURNS, atol=2e-6)


def test_advantages_equal_the_sum_over_future_errors_under_discounting():
    gamma, lam = 0.9, 0.8
    got, _ = gae(jnp.array(R), jnp.array(V), jnp.array(M), gamma, lam)
    for b, n in enumerate((4, 3)):
        delta = [R[b, t] + gamma * (V[b, t + 1] if t + 1 < n else 0) - V[b, t] for t in range(n)]
        for t in range(n):
            expected = sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, n))
            assert got[b, t] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("bessel", "expected"), [(True, BESSEL), (False, BIASED)])
def test_whitened_advantages_are_the_golden_ones(bessel, expected):
    # The published Bessel vector is of Bessel's variance; both leave masked entries at 0.
    np.testing.assert_allclose(
        whiten(jnp.array(A), jnp.array(M), bessel=bessel), expected, atol=3e-6
    )


def test_reward_whitening_scales_without_shifting_the_mean():
    white = np.asarray(whiten(jnp.array(R), jnp.array(M), shift_mean=False))
    inside = M > 0
    assert white[inside].mean() == pytest.approx(R[inside].mean(), abs=1e-6)
    assert white[inside].std() == pytest.approx(1, abs=1e-4) and not white[~inside].any()


def test_kl_estimates_are_the_golden_ones():
    got = kl_estimates(jnp.array([-1, -2, -0.5]), jnp.array([-1.2, -1.5, -0.5]))
    np.testing.assert_allclose(got["k1"], [0.2, -0.5, 0], atol=1e-6)
    np.testing.assert_allclose(got["k2"], [0.02, 0.125, 0], atol=1e-6)
    np.testing.assert_allclose(got["k3"], [0.018731, 0.148721, 0], atol=1e-6)


def test_the_score_is_put_on_the_last_valid_token():
    """EOS first, last, and absent: the last one counts as valid in all."""
    mask = jnp.array([[1.0, 0, 0], [1, 1, 1], [1, 1, 0]])
    kl = jnp.array([[0.1, 9, 9], [0.1, 0.2, 0.3], [0.4, 0.5, 9]])
    got = token_rewards(jnp.array([1.0, 2.0, 3.0]), kl, mask, jnp.float32(0.5))
    expected = [[1 - 0.05, 0, 0], [-0.05, -0.1, 2 - 0.15], [-0.2, 3 - 0.25, 0]]
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("no_eos", "expected"),
    [("replace", [0.5, -2, -2]), ("subtract", [0.5, 1, -5]), ("keep", [0.5, 3, -3])],
)
def test_responses_that_never_stop_are_scored_as_the_cell_says(no_eos, expected):
    cell = PPO("p", no_eos=no_eos, no_eos_score=-2.0)
    stopped = jnp.array([True, False, False])
    got = score_without_eos(cell, jnp.array([0.5, 3.0, -3.0]), stopped)
    np.testing.assert_allclose(got, expected)


@pytest.mark.parametrize(("kl", "factor"), [(60.0, 1.2), (6.6, 1.1), (6.0, 1.0), (0.0, 0.8)])
def test_adaptive_kl_follows_the_clipped_proportional_controller(kl, factor):
    cell = PPO("p", batch=512, kl_target=6.0, kl_horizon=10_000.0)
    extra = {"kl_coef": jnp.float32(0.15)}
    got = adapt_kl(cell, extra, jnp.float32(kl))["kl_coef"]
    assert float(got) == pytest.approx(0.15 * (1 + (factor - 1) * 512 / 10_000), rel=1e-5)
    fixed = adapt_kl(dataclasses.replace(cell, kl_target=None), extra, jnp.float32(kl))
    assert float(fixed["kl_coef"]) == pytest.approx(0.15)


class Told(NamedTuple):
    """Networks whose outputs are in the parameters."""

    def outputs(self, params, *_):
        return params["policy"]["lp"], jnp.ones((3, 4)), params["critic"]["v"]


@pytest.mark.parametrize("longer", [0, 1], ids=["one mask", "values one token longer"])
def test_clipped_losses_equal_loops_over_tokens(longer):
    cell = PPO("p", clip=0.2, value_clip=0.1, value_coef=0.3, task=TaskConfig(1, 4))
    rng = np.random.default_rng(0)
    lp, old, adv, v, v_old, ret = rng.normal(0, 0.5, (6, 3, 4)).astype(np.float32)
    lp[0, 0] = old[0, 0] + 30  # the clamp of the log ratio
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], np.float32)
    value_mask = mask if not longer else np.concatenate([np.ones((3, 1)), mask[:, :-1]], 1)
    value_mask = value_mask.astype(np.float32)
    batch = Experience(*[None] * 3, mask, value_mask, old, None, v_old, adv, ret)._asdict()
    params = {"policy": {"lp": jnp.array(lp)}, "critic": {"v": jnp.array(v)}}
    total, weight, sums = ppo.ppo_objective(cell, Told(), AXES)(params, batch)
    expected = dict.fromkeys(("policy_loss", "value_loss", "approx_kl", "clip_frac"), 0.0)
    for b, t in np.argwhere(mask > 0):
        d = min(max(lp[b, t] - old[b, t], -20), 20)
        ratio = np.exp(float(d))
        clipped = min(max(ratio, 0.8), 1.2)
        expected["policy_loss"] += max(-adv[b, t] * ratio, -adv[b, t] * clipped)
        expected["approx_kl"] += d * d / 2
        expected["clip_frac"] += abs(ratio - 1) > 0.2
    for b, t in np.argwhere(value_mask > 0):
        near = min(max(v[b, t], v_old[b, t] - 0.1), v_old[b, t] + 0.1)
        expected["value_loss"] += max((v[b, t] - ret[b, t]) ** 2, (near - ret[b, t]) ** 2) / 2
    # Over the weight of the policy's tokens it is the mean over those of the values.
    expected["value_loss"] *= mask.sum() / value_mask.sum()
    for name, value in expected.items():
        assert float(sums[name]) == pytest.approx(value, rel=1e-4), name
    assert 0 < expected["clip_frac"] < mask.sum() == float(weight)
    assert float(total) == pytest.approx(
        expected["policy_loss"] + 0.3 * expected["value_loss"], rel=1e-4
    )


def test_rewards_are_read_at_the_last_valid_token_and_normalised(mesh):
    rng = np.random.default_rng(0)
    head = {"w": rng.standard_normal(16).astype(np.float32), "b": np.float32(0.3)}
    member = Member({**noisy_params(LEARNED), "scalar": head}, 1.5, -0.2)
    prompts = np.array([[0, 5, 6], [7, 8, 9], [0, 0, 4]], np.int32)
    responses = np.array([[EOS, 0, 0, 0], [9, 9, 9, 9], [5, 6, EOS, 0]], np.int32)
    mask = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]], np.float32)
    placed = place_batch({"p": prompts, "r": responses, "m": mask}, mesh)

    @jax.jit
    def scores(member, p, r, m):
        return model_scores(member, LEARNED, join(p, r, m), m, AXES)

    got = scores(member, placed["p"], placed["r"], placed["m"])
    for b in range(3):
        tokens = [*prompts[b][prompts[b] > 0], *responses[b][mask[b] > 0]]
        n = len(tokens)
        x = numpy_hidden(member.params, LEARNED, tokens, np.ones(n), np.arange(n))
        assert got[b] == pytest.approx(1.5 * (x[-1] @ head["w"] + 0.3) - 0.2, abs=1e-4)


# --- whole iterations ----------------------------------------------------------------------------

CFG = dataclasses.replace(LEARNED, vocab=16)
CELL = PPO(
    "p",
    task=TaskConfig(4, 6),
    batch=32,
    minibatches=2,
    epochs=2,
    iterations=25,
    kl_coef=0.0,
    no_eos="keep",
    temperature=0.9,
    optim=OptimConfig(lr=1e-2, schedule="constant", warmup=0.0, weight_decay=0.0, b2=0.999),
)
REWARDED = 7
CLEAN, TEMPERATURE, POSITIONS, MASK = range(4)


def fraction_of_one_token(arrays, rows, mask_BR):
    tokens_BR = rows.tokens_BT[:, -mask_BR.shape[1] :]
    return jnp.mean((tokens_BR == REWARDED).astype(jnp.float32), axis=-1)


class Faulty(NamedTuple):
    """Networks with the fault that a leaf of the policy names, so that all share a compilation."""

    networks: Networks

    @property
    def policy(self):
        return self.networks.policy

    @property
    def critic(self):
        return self.networks.critic

    def outputs(self, params, rows, length, temperature, axes):
        fault = params["policy"]["fault"]
        tokens, segments, positions = rows
        wrong = Sequences(
            tokens,
            jnp.where(fault == MASK, segments * (jnp.roll(segments, 1, 1) > 0), segments),
            jnp.where(fault == POSITIONS, jnp.arange(tokens.shape[1])[None], positions),
        )
        temperature = jnp.where(fault == TEMPERATURE, 1.1 * temperature, temperature)
        return self.networks.outputs(params, wrong, length, temperature, axes)


@pytest.fixture(scope="module")
def iterate(mesh):
    """One compiled iteration; `seen` collects the rows of every minibatch."""
    seen, split, decays = [], ppo.gradients, ppo.decays

    def spied(objective, params, batch, *rest):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), batch["tokens_BT"])
        return split(objective, params, batch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "gradients", spied)
        named = lambda p: {n: False for n in p if n == "fault"}  # noqa: E731
        patch.setattr(ppo, "decays", lambda cfg, p: decays(cfg, p) | named(p))
        networks = Faulty(Networks(CFG, CFG))
        step = ppo.make_ppo_step(CELL, networks, AXES, fraction_of_one_token)
        rng = np.random.default_rng(0)
        prompts = rng.integers(3, 16, (32, 4)).astype(np.int32)
        for b in range(32):
            prompts[b, : b % 4] = 0  # left-padded by 0 to 3
        prompts = place_batch({"p": prompts}, mesh)["p"]

        def fresh(fault=CLEAN):
            policy = {**noisy_params(CFG), "fault": np.float32(fault)}
            critic = jax.device_get(with_scalar_head(noisy_params(CFG, 1), CFG, None))
            models = {"policy": policy, "critic": critic}
            models = jax.tree.map(lambda x: jnp.array(x, jnp.float32), models)
            return init_state(models, CELL.optim, 25, kl_coef=jnp.float32(0.0)), policy

        def run(iterations, fault=CLEAN):
            state, reference = fresh(fault)
            frozen = {
                "reference": jax.tree.map(jnp.array, reference),
                "reward": (),
                "seed": jnp.uint32(CELL.seed),
            }
            history = []
            for _ in range(iterations):
                state, metrics = step(state, frozen, prompts)
                history.append(jax.device_get(metrics))
            jax.effects_barrier()
            return state, history

        yield run, seen


def test_before_the_first_update_the_ratio_is_one(iterate):
    _, (metrics,) = iterate[0](1)
    assert metrics["max_ratio_error"] <= 1e-4
    assert metrics["clip_frac_before"] == 0 and metrics["approx_kl_before"] <= 1e-8
    assert metrics["kl"] == pytest.approx(0, abs=1e-3)  # of the policy from itself
    check_sampler(1, metrics)


@pytest.mark.parametrize(
    "fault", [TEMPERATURE, POSITIONS, MASK], ids=["temperature", "positions", "mask"]
)
def test_a_trainer_that_disagrees_with_the_sampler_is_found_out(iterate, fault):
    _, (metrics,) = iterate[0](1, fault)
    assert metrics["max_ratio_error"] > 1e-3
    with pytest.raises(SamplerMismatch, match="iteration 3: before any update"):
        check_sampler(3, metrics)


def test_every_row_is_in_one_minibatch_of_every_epoch(iterate):
    run, seen = iterate
    seen.clear()
    state, (metrics,) = run(1)
    assert [x.shape for x in seen] == [(16, 10)] * 4  # 2 epochs of 2 minibatches of 32 / 2 rows
    responses = sorted(map(tuple, metrics["responses"].tolist()))
    orders = []
    for epoch in (seen[:2], seen[2:]):
        rows = np.concatenate(epoch)[:, 4:].tolist()
        assert sorted(map(tuple, rows)) == responses
        orders.append(rows)
    assert orders[0] != orders[1] and orders[0] != metrics["responses"].tolist()  # shuffled
    counts = [int(x) for x in jax.tree.leaves(state.opt) if x.dtype == jnp.int32]
    assert counts == [4] and int(state.step) == 1


def test_ppo_raises_the_probability_of_what_is_rewarded(iterate):
    _, history = iterate[0](25)
    rewards = [float(m["reward_proxy"]) for m in history]
    assert rewards[0] < 0.2
    assert np.mean(rewards[-3:]) > rewards[0] + 0.4
    assert all(m["max_ratio_error"] <= 1e-4 for m in history)  # along the whole way
    last = history[-1]["responses"]
    assert rewards[-1] == pytest.approx((last == REWARDED).mean(), abs=1e-6)
    mask = np.cumsum(np.cumsum(last == EOS, 1), 1) <= 1
    assert history[-1]["response_length"] == pytest.approx(mask.sum(-1).mean())
    assert history[-1]["stop_rate"] == pytest.approx((last == EOS).any(-1).mean())


def test_the_policy_is_a_function_of_the_seed_alone(iterate):
    a, b = (copied(iterate[0](2)[0].params) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_callable_rewards_get_the_texts_and_give_their_scores(mesh):
    decode = lambda ids: " ".join("x" * i for i in ids if i > 2)  # noqa: E731
    reward = callable_reward(longest_word, decode)
    prompts = np.array([[1, 5, 3], [1, 4, 4], [0, 1, 9]], np.int32)
    responses = np.array([[3, 8, 2], [5, 2, 0], [2, 0, 0]], np.int32)
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
    placed = place_batch({"p": prompts, "r": responses, "m": mask}, mesh)

    @jax.jit
    def score(p, r, m):
        return reward.score(reward.arrays, join(p, r, m), m)

    got = np.asarray(score(placed["p"], placed["r"], placed["m"]))
    direct = longest_word([decode(p) for p in prompts], [decode(r) for r in responses])
    assert got.tolist() == direct == [6, 3, -1]
