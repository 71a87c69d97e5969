"""A rollout of networks whose probabilities, values and scores are known holds what loops over
its tokens give, and an iteration moves the policy where its penalty says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_policies as tiny
from tiny_models import mesh
from tiny_policies import MODEL, TASK, WIDE, compiled, policy, scores

from rlhf_jax.data.packing import left_padded
from rlhf_jax.data.tokenizer import BOS, EOS
from rlhf_jax.kinds import PPO
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.rl.ppo import make_ppo_step
from rlhf_jax.rl.rollout import Networks, rollout
from rlhf_jax.rl.scores import Member, model_reward
from rlhf_jax.study.config import OptimConfig
from rlhf_jax.train import init_state

__all__ = ["compiled", "mesh"]
WARM, KL = 0.7, 0.3
VALUES = np.random.default_rng(8).standard_normal(tiny.CLASSES)  # of the states after each class
LEARNS = OptimConfig(lr=1e-2, schedule="constant", warmup=0.0, weight_decay=0.0)


def cell(**options):
    defaults = {"batch": 24, "epochs": 1, "kl_coef": KL, "temperature": WARM, "optim": LEARNS}
    return PPO("p", task=TASK, **{**defaults, **options})


CELLS = {
    "critic": cell(gamma=0.9, lam=0.8, no_eos_score=-3.0),
    "shared": cell(
        critic="shared",
        score_at="after",
        no_eos="subtract",
        whiten_rewards=True,
        whiten_advantages="minibatch",
        bessel=True,
    ),
    "grpo": cell(algorithm="grpo", samples=3, batch=8, kl_in="loss", no_eos="keep"),
    "reinforce": cell(algorithm="reinforce"),
}


def started(cell, mesh, kl_coef=KL):
    """(networks, score, state, frozen, prompts): policy a held near another, and the reward
    `wide-rm`."""
    head = np.zeros(32, np.float32)
    head[: tiny.CLASSES] = VALUES
    own, critic = tiny.trunk(MODEL, policy("a").logits), None
    models = {"policy": own}
    if cell.algorithm == "ppo" and cell.critic == "shared":
        critic = MODEL
        models = {"policy": {**own, "scalar": {"w": head[:16], "b": np.float32(0.5)}}}
    elif cell.algorithm == "ppo":
        critic = WIDE
        models["critic"] = {**tiny.trunk(WIDE), "scalar": {"w": head, "b": np.float32(0.5)}}
    models = jax.tree.map(jnp.array, models)
    model = scores("wide-rm")
    reward = model_reward([Member(model.params(), model.gain, model.bias)], [WIDE], AXES)
    state = init_state(models, cell.optim, 20, kl_coef=jnp.float32(kl_coef))
    frozen = {
        "reference": jax.tree.map(jnp.array, tiny.trunk(MODEL, policy("near").logits)),
        "reward": reward.arrays,
        "seed": jnp.uint32(cell.seed),
    }
    encode = tiny.corpus().tokenizer.encode
    ids = left_padded([[BOS, *encode(t)] for t in tiny.prompts("train", cell.batch, 0)], 8)
    return Networks(MODEL, critic), reward.score, state, frozen, place_batch({"p": ids}, mesh)["p"]


@pytest.fixture(scope="module")
def rolled(mesh):
    """name -> (experience, metrics) on the host, each rolled out once."""
    kept = {}

    def of(name):
        if name not in kept:
            networks, score, state, frozen, prompts = started(CELLS[name], mesh)
            run = jax.jit(
                lambda s, f, p, k: rollout(CELLS[name], networks, AXES, score, s, f, p, k)
            )
            kept[name] = jax.device_get(run(state, frozen, prompts, jax.random.key(1)))
        return kept[name]

    return of


def expected(cell, e):
    """What loops over the sampled tokens give, as a dict of arrays."""
    prompts, tokens = e.tokens_BT[:, :8], e.tokens_BT[:, 8:]
    before = np.concatenate([prompts[:, -1:], tokens[:, :-1]], axis=1)
    mask = tiny.up_to_eos(tokens)
    length = mask.sum(-1).astype(int)
    own, reference = (policy(n).log_probs(before, tokens, WARM) * mask for n in ("a", "near"))
    score = scores("wide-rm").of(tokens[np.arange(len(tokens)), length - 1])
    stopped = (tokens == EOS).any(-1)
    B, R = tokens.shape
    kept, value_mask, rewards = score.copy(), np.zeros((B, R)), np.zeros((B, R))
    for b, n in enumerate(length):
        if not stopped[b] and cell.no_eos != "keep":
            kept[b] = cell.no_eos_score + (score[b] if cell.no_eos == "subtract" else 0)
        n = min(n + (cell.score_at == "after"), R)
        value_mask[b, :n] = 1
        if cell.kl_in == "reward":
            rewards[b] = -KL * (own[b] - reference[b])
        rewards[b, n - 1] += kept[b]
    if cell.whiten_rewards:
        inside = rewards[value_mask > 0]
        variance = inside.var(ddof=1 if cell.bessel else 0)
        rewards = np.where(
            value_mask > 0, (rewards - inside.mean()) / np.sqrt(variance) + inside.mean(), 0
        )
    found = {"mask_BR": mask, "value_mask_BR": value_mask, "log_probs_BR": own}
    found |= {"reference": reference, "score": score, "stopped": stopped, "before": before}
    if cell.algorithm != "ppo":
        total = rewards.sum(-1)
        group = B if cell.algorithm == "reinforce" else cell.samples
        advantage = np.zeros(B)
        for b in range(B):
            together = total[b // group * group : (b // group + 1) * group]
            if cell.algorithm == "grpo":
                advantage[b] = (total[b] - together.mean()) / (together.std(ddof=1) + 1e-4)
            else:
                advantage[b] = total[b] - (together.sum() - total[b]) / (group - 1)
        return found | {"advantages_BR": advantage[:, None] * mask}
    values = (VALUES[tiny.classes()[before]] + 0.5) * value_mask
    advantages, returns = np.zeros((B, R)), np.zeros((B, R))
    for b in range(B):
        running = 0.0
        for t in reversed(range(int(value_mask[b].sum()))):
            after = values[b, t + 1] if t + 1 < R else 0.0
            error = rewards[b, t] + cell.gamma * after - values[b, t]
            advantages[b, t] = running = error + cell.gamma * cell.lam * running
            returns[b, t] = running + values[b, t]
    spread = returns[value_mask > 0].var()
    found["explained"] = 1 - np.square(returns - values)[value_mask > 0].mean() / spread
    if cell.whiten_advantages == "batch":
        inside = advantages[mask > 0]
        advantages = np.where(mask > 0, (advantages - inside.mean()) / inside.std(), 0)
    return found | {"values_BR": values, "advantages_BR": advantages, "returns_BR": returns}


@pytest.mark.parametrize("name", CELLS)
def test_a_rollout_holds_what_loops_over_its_tokens_give(rolled, name):
    e, metrics = rolled(name)
    want = expected(CELLS[name], e)
    assert 0 < want["stopped"].mean() < 1 and want["mask_BR"].sum(-1).min() < 5
    inside = want["mask_BR"] > 0
    for field in e._fields:
        if field in want:
            np.testing.assert_allclose(
                getattr(e, field), want[field], rtol=1e-3, atol=2e-3, err_msg=field
            )
    np.testing.assert_allclose(
        e.reference_BR[inside], want["reference"][inside], rtol=1e-4, atol=1e-3
    )
    np.testing.assert_array_equal(metrics["responses"], e.tokens_BT[:, 8:])
    np.testing.assert_array_equal(metrics["prompts"], e.tokens_BT[:, :8])
    assert (
        np.repeat(e.tokens_BT[:: CELLS[name].samples, :8], CELLS[name].samples, 0)
        == e.tokens_BT[:, :8]
    ).all()


@pytest.mark.parametrize("name", CELLS)
def test_what_is_measured_of_a_rollout_is_of_its_tokens(rolled, name):
    e, metrics = rolled(name)
    want = expected(CELLS[name], e)
    mask = want["mask_BR"]
    entropy = policy("a").entropy(want["before"], WARM)
    figures = {
        "reward_proxy": want["score"].mean(),
        "reward_spread": want["score"].std(),
        "kl": (want["log_probs_BR"] - want["reference"]).sum(-1).mean(),
        "kl_coef": KL,
        "entropy": (entropy * mask).sum() / mask.sum(),
        "response_length": mask.sum(-1).mean(),
        "stop_rate": want["stopped"].mean(),
    }
    if "explained" in want:
        figures["explained_variance"] = want["explained"]
    for key, value in figures.items():
        assert float(metrics[key]) == pytest.approx(value, rel=1e-3, abs=1e-3), key
    assert figures["kl"] > 0.3 and metrics["max_ratio_error"] < 1e-3


# --- whole iterations -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stepped(mesh):
    """(name, iterations, kl_coef) -> metrics of each; a name's iteration is compiled once."""
    steps = {}

    def of(name, n, kl_coef=KL):
        networks, score, state, frozen, prompts = started(CELLS[name], mesh, kl_coef)
        if name not in steps:
            steps[name] = make_ppo_step(CELLS[name], networks, AXES, score)
        history = []
        for _ in range(n):
            state, metrics = steps[name](state, frozen, prompts)
            history.append(jax.device_get(metrics))
        return history

    return of


def test_a_penalty_in_the_loss_brings_a_policy_to_its_reference(stepped):
    """Which it is not at: with a large coefficient the divergence from it falls further than with
    none."""
    held = [float(m["kl"]) for m in stepped("grpo", 12, 20.0)]
    free = [float(m["kl"]) for m in stepped("grpo", 12, 0.0)]
    assert held[0] == pytest.approx(free[0], rel=1e-4) and held[0] > 0.5
    assert np.mean(held[-2:]) < 0.6 * held[0] and np.mean(held[-2:]) < 0.7 * np.mean(free[-2:])


def test_the_loss_of_an_iteration_is_the_sum_of_its_parts(stepped):
    """Of one minibatch, before the update; the divergence is k3, from the policy that the cell is
    held to."""
    (m,) = stepped("grpo", 1)
    tokens, mask = m["responses"], tiny.up_to_eos(m["responses"])
    before = np.concatenate([m["prompts"][:, -1:], tokens[:, :-1]], axis=1)
    d = policy("a").log_probs(before, tokens, WARM) - policy("near").log_probs(before, tokens, WARM)
    k3 = np.where(mask > 0, np.clip(np.exp(-d) - 1 + d, -10, 10), 0).sum() / mask.sum()
    assert float(m["kl_loss"]) == pytest.approx(k3, rel=1e-3) and k3 > 0.1
    assert float(m["loss"]) == pytest.approx(float(m["policy_loss"]) + KL * k3, rel=1e-3)
