"""Guarantees of preference optimisation: its losses, and the cell that trains with them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rewards import RECORDS, Bench, bench
from tiny_models import GQA, copied, log_softmax, mesh, noisy_params, numpy_logits, same_bits

from rlhf_jax.data.feedback import write
from rlhf_jax.kinds import DPO
from rlhf_jax.kinds.dpo.job import run as dpo
from rlhf_jax.kinds.rankings import INPUTS, rows_of
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.objectives import preference_loss, preference_optimisation, ranked_log_probs
from rlhf_jax.study.config import ConfigError, OptimConfig

__all__ = ["Bench", "bench", "mesh"]
CFG = dataclasses.replace(GQA, layers=1)


def comparisons(seed=0):
    """Three prompts: of three ranked completions, of two, of three with a tie."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 5, (3, 3, 1))
    mask = (np.arange(4) < length).astype(np.float32)
    ranks = np.array([[2, 3, 1], [1, 2, -1], [2, 1, 2]])
    mask *= (ranks >= 0)[..., None]
    prompts = rng.integers(8, CFG.vocab, (3, 4))
    prompts[1, :2] = 0
    responses = np.where(mask > 0, rng.integers(8, CFG.vocab, (3, 3, 4)), 0)
    data = {"prompts": prompts, "responses": responses, "mask": mask, "ranks": ranks}
    return {k: v for k, v in rows_of(data).items() if k in INPUTS}


def numpy_log_probs(params, batch):
    """log p of each completion: token by token, in float64."""
    out = np.zeros(batch["ranks"].shape)
    for i, k in np.ndindex(*out.shape):
        tokens, segments, positions = (batch[n][i, k] for n in ("tokens", "segments", "positions"))
        lp = log_softmax(numpy_logits(params, CFG, tokens, segments, positions))
        out[i, k] = sum(lp[t - 1, tokens[t]] for t in range(4, 8) if batch["mask"][i, k, t - 4])
    return out


def numpy_loss(log_probs, reference, ranks, loss="dpo", beta=0.1):
    """The sum over prompts of the mean over untied pairs."""
    total = 0.0
    for h, r in zip(log_probs - reference, ranks, strict=True):
        gaps = [h[i] - h[j] for i in range(3) for j in range(3) if 0 <= r[i] < r[j]]
        if loss == "dpo":
            total += np.mean([math.log1p(math.exp(-beta * d)) for d in gaps])
        else:
            total += np.mean([(d - 1 / (2 * beta)) ** 2 for d in gaps])
    return total


def test_log_probs_of_completions_are_those_of_the_loops(mesh):
    params, batch = noisy_params(CFG), comparisons()
    got = jax.jit(lambda p, b: ranked_log_probs(p, b, CFG, AXES))(params, place_batch(batch, mesh))
    np.testing.assert_allclose(np.asarray(got), numpy_log_probs(params, batch), atol=1e-4)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_losses_and_metrics_equal_loops_over_pairs(loss):
    rng = np.random.default_rng(0)
    after, before = rng.standard_normal((2, 3, 3)) * 5 - 20
    ranks = comparisons()["ranks"]
    arrays = [jnp.asarray(x, jnp.float32) for x in (after, before)]
    total, weight, metrics = preference_loss(*arrays, jnp.asarray(ranks), loss, 0.3)
    assert float(total) == pytest.approx(numpy_loss(after, before, ranks, loss, 0.3), rel=1e-4)
    assert float(weight) == 3
    h = after - before
    gaps = [
        np.mean([h[0, 2] - h[0, 0], h[0, 2] - h[0, 1], h[0, 0] - h[0, 1]]),
        h[1, 0] - h[1, 1],
        np.mean([h[2, 1] - h[2, 0], h[2, 1] - h[2, 2]]),
    ]
    expected = {
        "margin": 0.3 * sum(gaps),
        "chosen_log_prob": after[0, 2] + after[1, 0] + after[2, 1],
        "rejected_log_prob": after[0, 1] + after[1, 1] + (after[2, 0] + after[2, 2]) / 2,
        "chosen_log_ratio": h[0, 2] + h[1, 0] + h[2, 1],
        "rejected_log_ratio": h[0, 1] + h[1, 1] + (h[2, 0] + h[2, 2]) / 2,
    }
    for k, v in expected.items():
        assert float(metrics[k]) == pytest.approx(v, rel=1e-4, abs=1e-4), k


def test_at_the_reference_dpo_is_log_2_and_ipo_the_square_of_its_target(mesh):
    params, batch = noisy_params(CFG), place_batch(comparisons(), mesh)
    log_probs = jax.jit(lambda p, b: ranked_log_probs(p, b, CFG, AXES))(params, batch)
    for loss, expected in (("dpo", math.log(2)), ("ipo", (1 / 0.2) ** 2)):
        total, weight, metrics = preference_loss(log_probs, log_probs, batch["ranks"], loss, 0.1)
        assert float(total / weight) == pytest.approx(expected, rel=1e-5)
        assert abs(float(metrics["margin"])) < 1e-5


def test_gradients_at_the_reference_equal_differences_of_the_loops_in_float64(mesh):
    params, batch = jax.tree.map(np.float64, noisy_params(CFG)), comparisons()
    reference = numpy_log_probs(params, batch)
    placed = place_batch({**batch, "reference": reference.astype(np.float32)}, mesh)
    single = jax.tree.map(np.float32, params)
    objective = lambda p: preference_optimisation(p, placed, CFG, AXES)[0]  # noqa: E731
    grads = jax.jit(jax.grad(objective))(single)
    rng, h = np.random.default_rng(2), 1e-5
    direction = jax.tree.map(lambda g: rng.standard_normal(g.shape), grads)

    def moved(s):
        there = jax.tree.map(lambda p, d: p + s * h * d, params, direction)
        return numpy_loss(numpy_log_probs(there, batch), reference, batch["ranks"])

    expected = (moved(1) - moved(-1)) / (2 * h)
    got = sum(
        np.sum(np.asarray(g, np.float64) * d)
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    assert got == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_an_unknown_loss_is_refused():
    x = jnp.zeros((1, 2))
    with pytest.raises(ConfigError, match="expected dpo or ipo"):
        preference_loss(x, x, jnp.asarray([[1, 2]]), "kto")


# --- the cell
# ---------------------------------------------------------------------------------------

LEARNS = OptimConfig(lr=1e-2, weight_decay=0.0)


def test_a_policy_learns_the_preferences_of_a_file_and_is_read_like_any_other(bench, tmp_path):
    write(tmp_path / "c.jsonl", RECORDS)
    cell = DPO(
        "dpo", policy="base", comparisons=str(tmp_path / "c.jsonl"), batch=8, epochs=3, optim=LEARNS
    )
    study = bench.study(cell)
    before = copied(bench.context(study, "base").language_model("base"))
    results = bench.run(study, "dpo", dpo)
    found, rows = results["dpo"], bench.context(study, "dpo").folder.metrics()
    assert rows[0]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert found["steps"] == len(rows) == 3 * (found["prompts"] // 8)
    assert found["accuracy"] == 1 and found["margin"] > 0 and found["loss"] < math.log(2)
    assert found["chosen_log_ratio"] > found["rejected_log_ratio"]
    assert 0 < results["heldout"]["loss"] < 10
    ctx = bench.context(study, "dpo")
    assert same_bits(ctx.language_model("base"), before)
    assert not same_bits(ctx.language_model("dpo"), before)


def test_a_policy_learns_from_a_compare_cell(bench):
    cell = DPO("ipo", policy="base", loss="ipo", batch=8, epochs=2, optim=LEARNS)
    study = bench.study(cell)
    found = bench.run(study, "ipo", dpo)["dpo"]
    assert bench.context(study, "ipo").folder.metrics()[0]["loss"] == pytest.approx(25, rel=1e-4)
    assert found["prompts"] == 48 and found["n_pairs"] == 72
    assert found["baselines"]["gold score (label ceiling)"] > 0.7
    assert 0 <= found["accuracy"] <= 1


def test_beta_must_be_above_0(bench):
    with pytest.raises(ConfigError, match=r"dpo\.beta = 0.0; expected a number above 0"):
        bench.run(bench.study(DPO("dpo", policy="base", beta=0)), "dpo", dpo)
