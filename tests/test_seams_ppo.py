"""A PPO cell from end to end: which policy moves, what holds it, what it is given and what it is
judged by."""

import dataclasses
from itertools import pairwise

import jax
import numpy as np
import pytest
import tiny_policies as tiny
from tiny_models import mesh
from tiny_policies import FIXED, TASK, Bench, compiled, policy, scores

from rlhf_jax.data.tokenizer import EOS
from rlhf_jax.kinds import PPO, Ensemble
from rlhf_jax.kinds.context import Context
from rlhf_jax.study.config import OptimConfig

__all__ = ["compiled", "mesh"]
WARM = 0.7
LEARNS = OptimConfig(lr=2e-2, schedule="constant", warmup=0.0, weight_decay=0.0)
WORST = Ensemble("worst", members=("wide-rm", "rm"), combine="worst")
FREE = PPO(
    "free",
    policy="a",
    reward="rm",
    task=TASK,
    iterations=8,
    batch=24,
    epochs=2,
    kl_coef=0.0,
    critic="policy",
    no_eos="keep",
    optim=LEARNS,
)
CELLS = {
    "free": FREE,
    "held": dataclasses.replace(FREE, name="held", kl_coef=20.0),
    # Nothing moves: what is measured is of policy b.
    "still": PPO(
        "still",
        policy="b",
        reward="worst",
        task=TASK,
        iterations=3,
        batch=12,
        samples=2,
        epochs=1,
        temperature=WARM,
        kl_target=6.0,
        kl_horizon=100.0,
        ptx_coef=0.5,
        ptx_batch=249,
        optim=FIXED,
    ),
    "averaged": PPO(
        "averaged",
        policy="b",
        reward="tiny_policies:proxy",
        task=TASK,
        iterations=1,
        batch=12,
        samples=2,
        algorithm="grpo",
        epochs=1,
        ema=0.75,
        optim=LEARNS,
    ),
}


class Ran:
    """A cell's context and metrics, with the texts that its labeller saw in each iteration."""

    def __init__(self, bench, cell, beside):
        self.seen, judge = [], Context.gold

        def spied(ctx, task, prompts, responses):
            self.seen.append((list(prompts), list(responses)))
            return judge(ctx, task, prompts, responses)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Context, "gold", spied)
            self.ctx = bench.run(cell, beside=beside)
        self.rows = self.ctx.folder.metrics()
        assert self.ctx.folder.result("ppo").items() >= self.rows[-1].items()
        assert len(self.rows) == len(self.seen) == cell.iterations

    def tokens(self, t):
        """The response tokens of an iteration: its words, and EOS if they are fewer than six."""
        ids = [[tiny.word_ids()[w] for w in r.split()] for r in self.seen[t][1]]
        return [row + [EOS] * (len(row) < 6) for row in ids]


@pytest.fixture(scope="module")
def bench(mesh, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("ppo"), mesh, "a", "b", "rm", "wide-rm")


@pytest.fixture(scope="module")
def ran(bench):
    """name -> what became of the cell, which runs when it is first asked for."""

    class Cells(dict):
        def __missing__(self, name):
            self[name] = Ran(bench, CELLS[name], (WORST,))
            return self[name]

    return Cells()


def moved(params, start):
    """The largest change of any parameter."""
    start = {k: v for k, v in start.items() if k in params}
    return max(map(lambda a, b: np.abs(a - b).max(), *map(jax.tree.leaves, (params, start))))


def table_trunk(name):
    return tiny.trunk(tiny.MODEL, policy(name).logits)


def test_a_large_penalty_keeps_a_policy_at_its_reference_and_none_lets_it_go(ran):
    free, held = ([r["kl"] for r in ran[n].rows] for n in ("free", "held"))
    assert abs(free[0]) < 1e-3 and abs(held[0]) < 1e-3  # at first the policy is its reference
    assert np.mean(free[-2:]) > 0.5 and abs(np.mean(held[-2:])) < 0.2 * np.mean(free[-2:])
    assert {r["kl_coef"] for r in ran["free"].rows} == {0} and ran["held"].rows[-1]["kl_coef"] == 20
    rewards = [r["reward_proxy"] for r in ran["free"].rows]
    assert np.mean(rewards[-2:]) > rewards[0] + 0.1


@pytest.mark.parametrize("name", CELLS)
def test_the_labeller_judges_the_very_prompts_and_responses_of_each_iteration(ran, name):
    """Prompts are of the training split, others in each iteration, with their samples side by
    side."""
    cell, done = CELLS[name], ran[name]
    known, used = set(tiny.prompts("train", cell.batch * cell.iterations, 0)), []
    for row, (prompts, responses) in zip(done.rows, done.seen, strict=True):
        assert len(prompts) == len(responses) == cell.batch * cell.samples
        alone = prompts[:: cell.samples]
        assert prompts == [p for p in alone for _ in range(cell.samples)]
        used += alone
        if cell.samples == 2:
            assert responses[::2] != responses[1::2]  # each sample has its own random numbers
        assert row["reward_gold"] == pytest.approx(np.mean(tiny.gold(prompts, responses)), abs=1e-6)
        if (
            row["step"] == 1
        ):  # the policy is still the table: responses stand beside their own prompts
            for prompt, response in zip(prompts, responses, strict=True):
                assert response.split()[0] == tiny.FIRST[cell.policy][prompt.split()[-1]]
    assert len(set(used)) == len(used) and set(used) == known


@pytest.mark.parametrize("name", ["free", "still"])
def test_rewards_and_figures_are_those_of_the_responses(ran, name):
    cell, done = CELLS[name], ran[name]
    members = ("wide-rm", "rm") if name == "still" else ("rm",)
    for t, row in enumerate(done.rows if name == "still" else done.rows[:1]):  # later it has moved
        tokens = done.tokens(t)
        each = np.stack([scores(n).of([r[-1] for r in tokens]) for n in members]).min(0)
        assert row["reward_proxy"] == pytest.approx(each.mean(), abs=1e-4)
        assert row["reward_spread"] == pytest.approx(each.std(), abs=1e-4)
        length = np.mean([len(r) for r in tokens])
        assert row["response_length"] == pytest.approx(length)
        assert row["stop_rate"] == pytest.approx(np.mean([r[-1] == EOS for r in tokens]))
        grams = [g for r in tokens for g in pairwise(r)]
        assert row["distinct_2"] == pytest.approx(len(set(grams)) / len(grams))
        # All words are followed with the same entropy, and the first word is certain.
        nats = policy(cell.policy).entropy(tiny.word_ids()["good"], cell.temperature)
        assert row["entropy"] == pytest.approx(nats * (1 - 1 / length), rel=1e-3)


def test_a_callable_reward_scores_the_same_texts(ran):
    for row, texts in zip(ran["averaged"].rows, ran["averaged"].seen, strict=True):
        assert row["reward_proxy"] == pytest.approx(np.mean(tiny.proxy(*texts)), abs=1e-4)


def test_the_coefficient_falls_while_the_divergence_is_below_its_target(ran):
    coefs = [r["kl_coef"] for r in ran["still"].rows]
    assert coefs == pytest.approx([0.05 * (1 - 0.2 * 24 / 100) ** t for t in range(3)], rel=1e-4)


def test_pretraining_text_is_that_of_the_training_split(bench, ran):
    """One batch holds every training row once."""
    rows = bench.corpus.rows("train")
    assert len(rows) == CELLS["still"].ptx_batch
    batch = bench.corpus.batch("train", len(rows), 0, 0)
    lp = policy("b").log_probs(batch["tokens"], batch["targets"])
    loss = -(lp * batch["weights"]).sum() / batch["weights"].sum()
    for row in ran["still"].rows:
        assert row["ptx_loss"] == pytest.approx(loss, rel=1e-5)
        parts = row["policy_loss"] + CELLS["still"].value_coef * row["value_loss"]
        assert row["loss"] == pytest.approx(parts, abs=1e-4) and row["value_loss"] > 0.01


def test_a_critic_starts_from_the_reward_model_or_from_the_policy(bench, ran):
    """Its unembedding is never used, so it stays what it was."""
    still = bench.checkpoint(ran["still"].ctx)["critic"]
    assert (
        moved(still, scores("wide-rm").params()) < 3 and np.abs(still["scalar"]["w"]).max() < 1e-6
    )
    trunk = {k: v for k, v in still.items() if k != "scalar"}
    assert moved(trunk, tiny.trunk(tiny.WIDE)) < 1e-6
    free = bench.checkpoint(ran["free"].ctx)["critic"]
    np.testing.assert_array_equal(free["unembed"], table_trunk("a")["unembed"])
    assert np.abs(free["scalar"]["w"]).max() > 1e-3  # learned


def test_the_policy_that_is_named_is_the_one_that_moves(ran):
    for name, of, least, most in (("still", "b", 0, 1e-6), ("free", "a", 0.05, 2)):
        got = jax.device_get(ran[name].ctx.language_model(name))
        assert least <= moved(got, table_trunk(of)) <= most
        assert set(got) == set(table_trunk(of))


def test_the_result_of_an_averaged_cell_is_the_average(bench, ran):
    """Of one iteration, by hand; and it is what children read."""
    ctx = ran["averaged"].ctx
    saved = bench.checkpoint(ctx)
    assert moved(saved["policy"], table_trunk("b")) > 1e-2
    expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, table_trunk("b"), saved["policy"])
    assert moved(saved["ema"], expected) < 1e-5
    assert moved(jax.device_get(ctx.language_model("averaged")), saved["ema"]) == 0
