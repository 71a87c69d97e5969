"""Cells that learn from text, demonstrations or comparisons: what their losses are before
anything moves, and that known utilities are recovered."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import tiny_policies as tiny
from tiny_models import full_logits, log_softmax, mesh
from tiny_policies import FIXED, MODEL, TASK, Bench, compiled, policy

from rlhf_jax.data.annotators import gold_score
from rlhf_jax.data.feedback import Comparison, Demonstration, read
from rlhf_jax.data.loader import batch_rows
from rlhf_jax.data.prompts import prompts_from
from rlhf_jax.data.tokenizer import BOS, EOS
from rlhf_jax.kinds import DPO, SFT, Compare, Ensemble, Pretrain, Reward, TaskConfig
from rlhf_jax.model import init
from rlhf_jax.model.scoring import join
from rlhf_jax.study.config import OptimConfig

__all__ = ["compiled", "mesh"]
LEARNS = OptimConfig(lr=3e-2, schedule="constant", warmup=0.0, weight_decay=0.0)
UTILITIES = Compare(
    "utilities",
    policy="endless",
    task=TaskConfig(8, 5, TASK.prompts, "tiny_policies:last_word"),
    prompts=48,
    heldout_prompts=24,
    k=3,
    noise=0.0,
)


@pytest.fixture(scope="module")
def bench(mesh, tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("learning"), mesh, "a", "b", "near", "endless")
    ctx = bench.run(UTILITIES)
    bench.compared = {
        s: dict(np.load(ctx.folder.results / f"{s}.npz")) for s in ("train", "validation")
    }
    return bench


def learned(bench, cell, *beside):
    return bench.run(cell, beside=(UTILITIES, *beside))


def pairs(ranks):
    """(prompt, better, worse) of untied pairs, by loops."""
    K = ranks.shape[1]
    return [
        (n, i, j)
        for n in range(len(ranks))
        for i in range(K)
        for j in range(K)
        if ranks[n, i] < ranks[n, j]
    ]


def over_prompts(ranks, of):
    """The mean over prompts with an untied pair of the mean over their pairs."""
    each = {}
    for n, i, j in pairs(ranks):
        each.setdefault(n, []).append(of(n, i, j))
    return float(np.mean([np.mean(v) for v in each.values()]))


# --- reward models --------------------------------------------------------------------------------


def class_scores(bench, ctx, data):
    """Scores (N, K) of a model that reads classes: from its head as it was saved."""
    head = bench.checkpoint(ctx)["scalar"]
    last = data["responses"][..., -1]  # none stops
    return head["w"][tiny.classes()[last]] + head["b"]


@pytest.fixture(scope="module")
def rewards(bench):
    """Two reward models that do not move, with a margin and a centre, and one that learns."""
    how = {"base": "near", "comparisons": "utilities", "margin": 0.5, "centre": 0.2, "batch": 16}
    cells = [Reward(name, seed=i, optim=FIXED, **how) for i, name in ((3, "still"), (4, "second"))]
    taught = Reward(
        "taught", base="near", comparisons="utilities", batch=16, epochs=12, optim=LEARNS
    )
    return {c.name: learned(bench, c) for c in (*cells, taught)}


def test_a_reward_models_loss_has_its_margin_and_its_centre(bench, rewards):
    """Each step of an epoch, of other prompts."""
    ctx, data = rewards["still"], bench.compared["train"]
    every, seen = class_scores(bench, ctx, data), []
    rows = ctx.folder.metrics()
    assert len(rows) == 3
    for t, row in enumerate(rows):
        chosen = batch_rows(48, 16, 3, t)
        seen += chosen.tolist()
        scores, ranks = every[chosen], data["ranks"][chosen]
        kwise = over_prompts(
            ranks,
            lambda n, i, j, s=scores, r=ranks: np.log1p(
                np.exp(-(s[n, i] - s[n, j] - 0.5 * (r[n, j] - r[n, i])))
            ),
        )
        learns = sorted({n for n, _, _ in pairs(ranks)})
        centre = np.mean((2 * scores[learns].mean(1)) ** 2)
        assert row["loss"] == pytest.approx(kwise + 0.2 * centre, rel=1e-4)
        right = over_prompts(ranks, lambda n, i, j, s=scores: s[n, i] > s[n, j])
        assert row["accuracy"] == pytest.approx(right)
    assert sorted(seen) == list(range(48))


def test_a_reward_model_is_normalised_on_training_samples_and_tested_on_held_out_ones(
    bench, rewards
):
    report = rewards["still"].folder.result("report")
    train, heldout = (class_scores(bench, rewards["still"], d) for d in bench.compared.values())
    assert report["gain"] == pytest.approx(1 / train.std(), rel=1e-4)
    assert report["bias"] == pytest.approx(-train.mean() / train.std(), abs=1e-4)
    margins = margins_of(bench, heldout)
    assert report["accuracy"] == pytest.approx(np.mean((margins > 0) + 0.5 * (margins == 0)))
    assert (report["n_pairs"], report["prompts"]) == (len(margins), 48)
    assert report["baselines"]["gold score (label ceiling)"] == 1
    assert report["baselines"]["two annotators agree"] == 1  # they have no noise


def margins_of(bench, scores):
    ranks = bench.compared["validation"]["ranks"]
    return np.array([scores[n, i] - scores[n, j] for n, i, j in pairs(ranks)])


def test_a_reward_model_recovers_the_utility_of_words(bench, rewards):
    ctx, data = rewards["taught"], bench.compared["validation"]
    assert ctx.folder.result("report")["accuracy"] > 0.93
    reward = ctx.reward("taught")
    rows = [np.repeat(data["prompts"], 3, 0)]
    rows += [data[k].reshape(-1, 5) for k in ("responses", "mask")]
    score = jax.jit(lambda arrays, p, r, m: reward.score(arrays, join(p, r, m), m))
    scores = np.asarray(score(reward.arrays, *rows))
    last = tiny.classes()[data["responses"][..., -1].ravel()]
    found = [scores[last == i].mean() for i in range(len(tiny.SAID))]
    assert np.corrcoef(found, list(tiny.UTILITY.values()))[0, 1] > 0.9
    unembed = bench.checkpoint(ctx)["unembed"]  # never used: it tells whose trunk this was
    np.testing.assert_array_equal(unembed[: tiny.CLASSES], np.float32(policy("near").logits))


@pytest.mark.parametrize("combine", ["worst", "mean_minus_variance"])
def test_an_ensemble_reports_its_combined_scores_and_how_far_its_members_disagree(
    bench, rewards, combine
):
    coef = {"variance_coef": 0.5} if combine == "mean_minus_variance" else {}
    cell = Ensemble(combine, members=("still", "second"), combine=combine, **coef)
    report = learned(bench, cell, *(rewards[n].cell for n in cell.members)).folder.result("report")
    alone = [rewards[n].folder.result("report") for n in cell.members]
    each = [
        r["gain"] * class_scores(bench, rewards[n], bench.compared["validation"]) + r["bias"]
        for n, r in zip(cell.members, alone, strict=True)
    ]
    together = np.minimum(*each) if combine == "worst" else np.mean(each, 0) - 0.5 * np.var(each, 0)
    margins = margins_of(bench, together / np.mean([r["gain"] for r in alone]))
    assert report["accuracy"] == pytest.approx(np.mean((margins > 0) + 0.5 * (margins == 0)))
    bins = report["calibration"]["bins"]
    sure = sum(b["n"] * b["confidence"] for b in bins) / len(margins)
    assert sure == pytest.approx(np.mean(1 / (1 + np.exp(-np.abs(margins)))), rel=1e-4)
    assert list(report["members"].values()) == [pytest.approx(r["accuracy"]) for r in alone]
    assert report["disagreement"] == pytest.approx(np.std(each, axis=0).mean(), rel=1e-3)


# --- preference optimisation ----------------------------------------------------------------------


def log_probs_of(data, log_probs):
    """log p (N, K) of completions, from a function of tokens before and tokens, NKR."""
    first = np.repeat(data["prompts"][:, None, -1:], data["responses"].shape[1], 1)
    before = np.concatenate([first, data["responses"][..., :-1]], -1)
    return (log_probs(before, data["responses"]) * data["mask"]).sum(-1)


def test_preferred_completions_become_likelier_than_under_the_policy_that_is_named(bench):
    cell = DPO(
        "dpo",
        policy="a",
        comparisons="utilities",
        loss="ipo",
        beta=0.2,
        batch=48,
        epochs=12,
        optim=LEARNS,
    )
    ctx = learned(bench, cell)
    first, *_, last = ctx.folder.metrics()
    data = bench.compared["train"]
    before, ranks = log_probs_of(data, policy("a").log_probs), data["ranks"]
    ends = {"chosen": [], "rejected": []}
    for n in sorted({n for n, _, _ in pairs(ranks)}):
        for name, end in (("chosen", ranks[n].min()), ("rejected", ranks[n].max())):
            ends[name].append(before[n][ranks[n] == end].mean())
    for name, values in ends.items():
        assert first[f"{name}_log_prob"] == pytest.approx(np.mean(values), rel=1e-4)
        assert first[f"{name}_log_ratio"] == pytest.approx(0, abs=1e-3)
    assert first["loss"] == pytest.approx((0.5 / 0.2) ** 2, rel=1e-4) and last["loss"] < 4
    assert last["chosen_log_ratio"] > last["rejected_log_ratio"] + 0.5

    found, data = ctx.folder.result("dpo"), bench.compared["validation"]
    tokens = np.concatenate([np.repeat(data["prompts"][:, None], 3, 1), data["responses"]], -1)
    tokens = tokens.reshape(-1, 13)
    segments = (tokens > 0).astype(np.int32)
    positions = np.cumsum(segments, -1).astype(np.int32) - segments
    model = jax.device_get(ctx.language_model("dpo"))
    lp = log_softmax(full_logits(model, MODEL, tokens.astype(np.int32), segments, positions))
    lp = np.take_along_axis(lp[:, 7:12], tokens[:, 8:, None], -1)[..., 0].sum(-1).reshape(-1, 3)
    ratio, ranks = lp - log_probs_of(data, policy("a").log_probs), data["ranks"]
    margin = over_prompts(ranks, lambda n, i, j: 0.2 * (ratio[n, i] - ratio[n, j]))
    assert found["margin"] == pytest.approx(margin, rel=1e-3) and margin > 0.1
    loss = over_prompts(ranks, lambda n, i, j: (ratio[n, i] - ratio[n, j] - 2.5) ** 2)
    assert found["loss"] == pytest.approx(loss, rel=1e-3)
    right = np.mean([ratio[n, i] > ratio[n, j] for n, i, j in pairs(ranks)])
    assert found["accuracy"] == pytest.approx(right) and right > 0.7
    assert found["steps"] == 12 and found["prompts"] == 48
    expected = heldout_nats(bench, lambda b: nats_of(model, b))
    assert ctx.folder.result("heldout")["loss"] == pytest.approx(expected, rel=1e-4)


def nats_of(params, batch):
    """The sum over weighted targets of a batch of text, by a forward pass."""
    inputs = (batch[k] for k in ("tokens", "segments", "positions"))
    lp = log_softmax(full_logits(params, MODEL, *inputs))
    return -(
        np.take_along_axis(lp, batch["targets"][..., None], -1)[..., 0] * batch["weights"]
    ).sum()


def heldout_nats(bench, nats):
    """The loss on held-out text."""
    batches = bench.corpus.heldout(249)
    return sum(map(nats, batches)) / sum(b["weights"].sum() for b in batches)


# --- demonstrations -------------------------------------------------------------------------------


def completions(bench, shown):
    """(tokens before, tokens) of every answer, its end included."""
    before, tokens = [], []
    for record in shown:
        prompt = [BOS, *bench.corpus.tokenizer.encode(record.prompt)]
        answer = [*bench.corpus.tokenizer.encode(record.response), EOS]
        before += [prompt[-1], *answer[:-1]]
        tokens += answer
    return before, tokens


def shown_by(ctx):
    return read(ctx.folder.results / "demonstrations.jsonl", Demonstration)


def of_completions_alone(bench, ctx, epochs, base):
    """Whether the losses of a cell that does not move are those of its answers under its base."""
    before, tokens = completions(bench, shown_by(ctx))
    rows = ctx.folder.metrics()
    targets = np.diff([0, *(r["targets"] for r in rows)])
    assert targets.sum() == epochs * len(tokens)
    nats = sum(r["loss"] * n for r, n in zip(rows, targets, strict=True))
    assert nats == pytest.approx(-epochs * policy(base).log_probs(before, tokens).sum(), rel=1e-4)
    heldout = ctx.folder.result("heldout")
    total, weight, size = 0.0, 0, 0
    for batch in bench.corpus.heldout(8):
        lp = policy(base).log_probs(batch["tokens"], batch["targets"])
        total -= (lp * batch["weights"]).sum()
        weight, size = weight + batch["weights"].sum(), size + batch["bytes"].sum()
    assert heldout["loss"] == pytest.approx(total / weight, rel=1e-4)
    assert heldout["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-4)
    return len(rows)


def test_fine_tuning_learns_completions_and_not_prompts(bench):
    made = {"task": TASK, "examples": 30, "batch": 1, "epochs": 2}
    cell = SFT("made", base="b", records="tiny_policies:demonstrations", optim=FIXED, **made)
    ctx = bench.run(cell)
    assert shown_by(ctx) == tiny.demonstrations("train", 30, 0)
    steps = of_completions_alone(bench, ctx, 2, "b")
    assert ctx.folder.result("sft")["steps"] == steps
    start, end = bench.checkpoint(ctx), tiny.trunk(MODEL, policy("b").logits)
    assert max(map(lambda x, y: np.abs(x - y).max(), *map(jax.tree.leaves, (start, end)))) < 1e-6
    cell = SFT("better", base="b", records="tiny_policies:demonstrations", optim=LEARNS, **made)
    losses = [r["loss"] for r in bench.run(cell).folder.metrics()]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1


def test_the_best_ranked_completions_of_training_prompts_are_demonstrations(bench):
    ctx = learned(
        bench, SFT("chosen", base="a", records="utilities", task=TASK, batch=1, optim=FIXED)
    )
    compare = ctx.folders["utilities"].results / "comparisons.jsonl"
    expected = []
    for record in read(compare, Comparison)[:48]:
        gold = tiny.last_word([record.prompt] * 3, record.responses)
        best = {text for text, g in zip(record.responses, gold, strict=True) if g == max(gold)}
        if len(best) == 1:  # of one text, however often it was sampled
            expected.append(Demonstration(record.prompt, best.pop()))
    assert shown_by(ctx) == expected and len(expected) > 10
    of_completions_alone(bench, ctx, 1, "a")


def test_continuations_are_of_the_training_split_and_approved(bench):
    task = TaskConfig(5, 7)
    cell = SFT(
        "openings", base="a", task=task, examples=60, min_gold=0.4, batch=1, optim=FIXED, seed=2
    )
    ctx = bench.run(cell)
    found = prompts_from(bench.corpus, "train", 60, 5, 2, 6)
    expected = [
        Demonstration(p.prompt, p.response) for p in found if gold_score([p.response])[0] >= 0.4
    ]
    assert shown_by(ctx) == expected and 5 < len(expected) < 55
    of_completions_alone(bench, ctx, 1, "a")


# --- pretraining ----------------------------------------------------------------------------------


def test_pretraining_reads_each_training_row_once_an_epoch(bench):
    """Before anything moves, the losses are those of the start on the whole split, by its seed."""
    rows = len(bench.corpus.rows("train"))
    cell = Pretrain("text", model=MODEL, tokens=2 * rows * 32, batch=rows, optim=FIXED, seed=5)
    ctx = bench.run(cell)
    params = jax.device_get(init(MODEL, jax.random.key(5)))
    batch = bench.corpus.batch("train", rows, 0, 0)
    total, weight = nats_of(params, batch), batch["weights"].sum()
    for t, row in enumerate(ctx.folder.metrics(), 1):
        assert row["loss"] == pytest.approx(total / weight, rel=1e-4)
        assert row["bits_per_byte"] == pytest.approx(
            total / math.log(2) / batch["bytes"].sum(), rel=1e-4
        )
        assert (row["tokens"], row["targets"]) == (t * rows * 32, t * weight)
    heldout = ctx.folder.result("heldout")
    expected = heldout_nats(bench, lambda b: nats_of(params, b))
    assert heldout["loss"] == pytest.approx(expected, rel=1e-4)
    assert heldout["train_tokens"] == 2 * rows * 32 and heldout["tokens"] == 600
    few = dataclasses.replace(cell, name="few", unique_tokens=64, repeat=True)  # the same two rows
    (row, _) = bench.run(few).folder.metrics()
    batch = bench.corpus.batch("train", rows, 5, 0, 2)
    assert len(np.unique(batch["tokens"], axis=0)) == 2
    assert row["loss"] == pytest.approx(nats_of(params, batch) / batch["weights"].sum(), rel=1e-4)
