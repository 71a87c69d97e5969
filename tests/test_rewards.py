"""Guarantees of reward and ensemble cells, of the comparisons that they learn from, and of their
report."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import GQA, mesh, noisy_params, tiny_corpus

from rlhf_jax.data.annotators import rank_by_annotators
from rlhf_jax.data.feedback import Comparison, write
from rlhf_jax.data.tokenizer import BOS, EOS, PAD
from rlhf_jax.evals.rankings import annotators_agree, clustered_interval, ranking_report
from rlhf_jax.kinds import Compare, Ensemble, Pretrain, Reward, TaskConfig
from rlhf_jax.kinds.compare.job import save_arrays
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.ensemble.job import disagreement, member_scores
from rlhf_jax.kinds.ensemble.job import run as ensemble
from rlhf_jax.kinds.rankings import INPUTS, heldout_prompts, rankings, rows_of
from rlhf_jax.kinds.reward.job import demonstrations
from rlhf_jax.kinds.reward.job import run as reward
from rlhf_jax.model import decays, init, param_axes, with_scalar_head
from rlhf_jax.model.scoring import join
from rlhf_jax.model.sharding import AXES, place, place_batch
from rlhf_jax.objectives import ranked_scores, reward_modelling
from rlhf_jax.rl.scores import combined
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, ModelConfig, OptimConfig
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.results import as_json
from rlhf_jax.study.runs import Runs
from rlhf_jax.train import Runtime, init_state, make_train_step, train
from rlhf_jax.worker import _begin, _finish

__all__ = ["mesh"]

MODEL = ModelConfig(layers=1, width=16, heads=2, vocab=340, max_positions=32)
TASK = TaskConfig(prompt_len=6, response_len=8)


def ranked_strings(n, K, R=5, seed=0, prompts=4, vocab=40):
    """Prompts and K random strings of 1 to R tokens, EOS included, ranked by one Plackett-Luce
    annotator; the utility is a weighted count of tokens. Also the weights of the tokens."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(9).standard_normal(vocab)
    length = rng.integers(2, R + 1, (n, K))
    at = np.arange(R)
    responses = np.where(at < length[..., None] - 1, rng.integers(8, vocab, (n, K, R)), PAD)
    responses = np.where(at == length[..., None] - 1, EOS, responses).astype(np.int32)
    gold = np.where(responses >= 8, weights[responses], 0.0).sum(-1)
    noisy = gold + 0.3 * rng.gumbel(size=gold.shape)
    ranks = 1 + (noisy[:, None, :] > noisy[:, :, None]).sum(-1)
    ids = np.concatenate([np.full((n, 1), BOS), rng.integers(8, vocab, (n, prompts - 1))], 1)
    return {
        "prompts": ids.astype(np.int32),
        "responses": responses,
        "ranks": ranks,
        "mask": (responses != PAD).astype(np.float32),
        "gold": gold,
    }


class Bench:
    """Runs cells of one study in this process; `compare` cells hold `ranked_strings`."""

    def __init__(self, folder, mesh):
        self.corpus = tiny_corpus(folder)
        self.runs, self.runtime = Runs(folder / "runs"), Runtime(mesh, AXES)

    def study(self, *cells):
        wide = replace(MODEL, width=24)
        return Study(
            "rewards",
            (
                Pretrain("base", model=MODEL, batch=2, tokens=2 * 32 * 2),
                Pretrain("wide", model=wide, batch=2, tokens=2 * 32 * 2),
                Compare("compare", policy="base", task=TASK, prompts=48, heldout_prompts=24, k=3),
                Compare("later", policy="base", task=TASK, prompts=8, heldout_prompts=4, k=4),
                *cells,
            ),
            self.corpus.cfg,
        )

    def context(self, study, name):
        folders = self.runs.folders(study, self.corpus.content_hash)
        folders[name].path.mkdir(parents=True, exist_ok=True)
        return Context(
            study, study[name], folders, self.corpus, self.runtime, Heartbeat(folders[name])
        )

    def run(self, study, name, job):
        ctx = self.context(study, name)
        _begin(ctx, 1)
        results = job(ctx, ctx.cell)
        if results is None:  # untrained: parameters alone
            ctx.folder.finish(seconds=0.0)
            return None
        _finish(ctx, results)
        return as_json(results)


def untrained(ctx, cell):
    """A pretraining cell of no steps."""
    params = place(init(cell.model, jax.random.key(0)), param_axes(cell.model), ctx.runtime.mesh)
    train(ctx.folder, init_state(params, cell.optim, 0), None, None, 0, ctx.runtime, None, ctx.beat)


@pytest.fixture(scope="module")
def bench(tmp_path_factory, mesh):
    bench = Bench(tmp_path_factory.mktemp("rewards"), mesh)
    study = bench.study()
    for name in ("base", "wide"):
        bench.run(study, name, untrained)
    for name, n, K, seed in (("compare", 48, 3, 0), ("later", 8, 4, 1)):
        folder = bench.context(study, name).folder
        save_arrays(folder, "train", ranked_strings(n, K, seed=seed))
        save_arrays(folder, "validation", ranked_strings(n // 2, K, seed=seed + 5))
    return bench


@pytest.fixture(scope="module")
def trained(bench):
    """Two reward models of different sizes and an ensemble of each kind."""
    how = {"worst": 1.0, "mean_minus_variance": 0.5}
    study = bench.study(
        Reward("one", base="base", batch=8, seed=1),
        Reward("two", base="wide", batch=8, seed=2),
        *(Ensemble(h, members=("one", "two"), combine=h, variance_coef=v) for h, v in how.items()),
    )
    reports = {n: bench.run(study, n, reward)["report"] for n in ("one", "two")}
    reports |= {n: bench.run(study, n, ensemble)["report"] for n in how}
    return study, reports


def sample_scores(bench, study, name):
    """A reward's scores of the training completions, as PPO calls it, and which are present."""
    rows = ranked_strings(48, 3)
    prompts = jnp.asarray(np.repeat(rows["prompts"], 3, axis=0))
    responses, mask = (jnp.asarray(rows[k].reshape(-1, 5)) for k in ("responses", "mask"))
    found = bench.context(study, name).reward(name)
    return np.asarray(jax.jit(found.score)(found.arrays, join(prompts, responses, mask), mask))


def test_normalised_scores_of_the_compared_samples_have_mean_0_and_variance_1(bench, trained):
    for name in ("one", "two"):
        scores = sample_scores(bench, trained[0], name)
        assert scores.mean() == pytest.approx(0, abs=1e-4)
        assert scores.var() == pytest.approx(1, abs=1e-3)


def test_ensembles_combine_normalised_scores_of_models_of_any_size(bench, trained):
    each = np.stack([sample_scores(bench, trained[0], n) for n in ("one", "two")])
    expected = {"worst": each.min(0), "mean_minus_variance": each.mean(0) - 0.5 * each.var(0)}
    for how, scores in expected.items():
        got = sample_scores(bench, trained[0], how)
        np.testing.assert_allclose(got, scores, rtol=1e-4, atol=1e-5)


def test_the_mean_of_an_ensemble_is_the_mean():
    scores = np.random.default_rng(0).standard_normal((3, 5))
    np.testing.assert_allclose(combined(jnp.asarray(scores), "mean"), scores.mean(0), rtol=1e-5)


def test_members_agree_on_a_pair_where_all_order_it_alike_and_equal_scores_are_no_order():
    scores = np.array([[[1, 0], [0, 1], [0, 1], [0, 0]], [[2, 0], [0, 0], [0, 3], [0, 0]]], float)
    found = disagreement(scores, np.array([[1, 2]] * 4))
    assert found["unanimous"] == 0.75  # one member orders the second prompt, the other does not


def test_an_ensemble_reports_on_the_first_members_comparisons(bench, trained):
    study, reports = trained
    rows = rows_of(ranked_strings(24, 3, seed=5))
    each = np.stack(
        [member_scores(bench.context(study, "worst"), n, rows, 8) for n in ("one", "two")]
    )
    report = reports["worst"]
    assert report["n_pairs"] == 72 and report["prompts"] == 48
    assert report["accuracy"] == ranking_report(each.min(0), rows)["accuracy"]
    assert report["members"] == {n: pytest.approx(reports[n]["accuracy"]) for n in ("one", "two")}
    assert report["disagreement"] == pytest.approx(np.abs(each[0] - each[1]).mean() / 2, rel=1e-4)
    orders = np.sign(each[:, :, :, None] - each[:, :, None, :])
    alike = (orders[0] == orders[1])[:, *np.triu_indices(3, 1)]
    assert report["unanimous"] == pytest.approx(alike.mean())
    assert set(reports["one"]) - set(report) == {"gain", "bias"}


def test_an_ensemble_without_trained_members_says_which(bench):
    absent = [Reward(n, base="base", seed=s) for n, s in (("absent", 77), ("gone", 78))]
    study = bench.study(*absent, Ensemble("of", members=("absent", "gone")))
    with pytest.raises(ConfigError, match="absent, gone have no report"):
        bench.run(study, "of", ensemble)


def test_normalised_by_demonstrations_the_gain_stays_and_true_continuations_score_0(
    bench,
):
    study = bench.study(Reward("rm", base="base", batch=8, normalise="demonstrations"))
    report = bench.run(study, "rm", reward)["report"]
    assert report["gain"] == 1
    ctx = bench.context(study, "rm")
    rows = demonstrations(ctx, ctx.cell)
    assert len(rows["tokens"]) > 5 and rows["tokens"].shape[1:] == (1, 14)
    assert (np.take_along_axis(rows["tokens"], rows["last"][..., None], -1) == EOS).all()
    assert abs(member_scores(ctx, "rm", rows, 8).mean()) < 1e-4


def test_demonstrations_are_refused_where_there_are_none(bench, tmp_path):
    write(tmp_path / "c.jsonl", [Comparison("p", ("a", "b"), (1, 2))])
    cell = Reward(
        "rm", base="base", comparisons=str(tmp_path / "c.jsonl"), normalise="demonstrations"
    )
    with pytest.raises(ConfigError, match=r"rm\.normalise = 'demonstrations' needs true"):
        bench.run(bench.study(cell), "rm", reward)


def test_too_few_comparisons_for_a_batch_are_refused(bench):
    with pytest.raises(ConfigError, match="48 prompts are compared, less than one batch of 49"):
        bench.run(bench.study(Reward("rm", base="base", batch=49)), "rm", reward)


# --- comparisons as arrays
# --------------------------------------------------------------------------


def arrays(bench, cell):
    ctx = bench.context(bench.study(cell), cell.name)
    return rankings(ctx, cell)


def test_earlier_rounds_are_joined_and_absent_completions_are_marked(bench):
    data = arrays(bench, Reward("rm", base="base", earlier=("later",)))
    train = data["train"]
    assert train["tokens"].shape == (56, 4, 9) and len(data["validation"]["ranks"]) == 16 + 12
    assert (train["ranks"][:48, 3] == -1).all() and (train["ranks"][48:] > 0).all()
    alone = arrays(bench, Reward("rm", base="base"))["train"]
    for k in INPUTS:
        np.testing.assert_array_equal(train[k][:48, :3], alone[k])


def test_only_the_first_training_prompts_are_taken_and_all_held_out_ones(bench):
    few, whole = (arrays(bench, Reward("rm", base="base", prompts=n)) for n in (10, None))
    np.testing.assert_array_equal(few["train"]["tokens"], whole["train"]["tokens"][:10])
    assert len(few["validation"]["ranks"]) == len(whole["validation"]["ranks"])


RECORDS = [
    Comparison(
        f"The king {i % 30}",
        (" was good.", " bad", " sad house")[: 2 + i % 2],
        (2, 1, 3)[: 2 + i % 2],
    )
    for i in range(60)
]


def test_records_of_a_file_become_padded_rows_with_no_prompt_in_both_splits(bench, tmp_path):
    path = tmp_path / "c.jsonl"
    write(path, RECORDS)
    data = arrays(bench, Reward("rm", base="base", comparisons=str(path)))
    seen = {}
    for split, rows in data.items():
        assert (rows["positions"][rows["segments"] == 0] == 0).all()  # a table has no row for more
        seen[split] = {bench.corpus.tokenizer.decode(p.tolist()) for p in rows["prompts"]}
        for prompt, tokens, last, ranks in zip(
            rows["prompts"], rows["tokens"], rows["last"], rows["ranks"], strict=True
        ):
            text = bench.corpus.tokenizer.decode(prompt.tolist())
            i = next(i for i, r in enumerate(RECORDS) if r.prompt == text)
            assert prompt[prompt != PAD][0] == BOS and prompt[-1] != PAD
            assert tuple(ranks[ranks > 0]) == RECORDS[i].ranking
            for k, response in enumerate(RECORDS[i].responses):
                got = tokens[k, len(prompt) :]
                assert bench.corpus.tokenizer.decode(got.tolist()) == response
                assert tokens[k, last[k]] == EOS and (tokens[k, last[k] + 1 :] == PAD).all()
    assert not seen["train"] & seen["validation"] and len(seen["validation"]) == 3
    assert len(data["train"]["ranks"]) + len(data["validation"]["ranks"]) == 60


def test_the_split_of_a_file_does_not_depend_on_the_order_of_its_records():
    prompts = [r.prompt for r in RECORDS]
    held = heldout_prompts(prompts, "f")
    np.testing.assert_array_equal(heldout_prompts(prompts[::-1], "f"), held[::-1])
    assert heldout_prompts(["a", "b"], "f").sum() == 1
    with pytest.raises(ConfigError, match="f: 1 prompt; expected at least 2"):
        heldout_prompts(["a", "a"], "f")


def test_a_record_that_is_too_long_is_left_out_and_named(bench, tmp_path):
    path = tmp_path / "c.jsonl"
    long = Comparison("The king", (" good" * 40, "b"), (1, 2))
    write(path, [RECORDS[0], long, *RECORDS[1:]])
    cell = Reward("rm", base="base", comparisons=str(path))
    ctx = bench.context(bench.study(cell), "rm")
    assert sum(len(rows["ranks"]) for rows in rankings(ctx, cell).values()) == len(RECORDS)
    assert ctx.left_out[str(path)].startswith("1 row left out: 45 tokens (4 of prompt)")
    assert ctx.left_out[str(path)].endswith("(row 2)")
    write(path, [long])
    with pytest.raises(ConfigError, match=r"c\.jsonl, row 1: \d+ tokens .* max_positions = 32"):
        arrays(bench, Reward("rm", base="base", comparisons=str(path)))


def test_corrections_are_comparisons_and_demonstrations_alone_are_refused(bench, tmp_path):
    path = tmp_path / "c.jsonl"
    rows = [
        {"kind": "correction", "version": 1, "prompt": f"p{i}", "response": "bad", "edited": "good"}
        for i in range(4)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = arrays(bench, Reward("rm", base="base", comparisons=str(path)))
    assert data["train"]["ranks"].tolist() == [[1, 2]] * 3
    path.write_text('{"instruction": "p", "output": "q"}\n')
    with pytest.raises(ConfigError, match="prefer no response to another"):
        arrays(bench, Reward("rm", base="base", comparisons=str(path)))


def test_a_reward_model_learns_from_a_file(bench, tmp_path):
    write(tmp_path / "c.jsonl", RECORDS)
    cell = Reward(
        "rm",
        base="base",
        comparisons=str(tmp_path / "c.jsonl"),
        batch=8,
        loss="plackett_luce",
        centre=0.01,
        epochs=3,
        optim=OptimConfig(lr=1e-2, weight_decay=0.0),
    )
    report = bench.run(bench.study(cell), "rm", reward)["report"]
    assert report["accuracy"] == 1 and "accuracy_by_margin" not in report
    assert "gold score (label ceiling)" not in report["baselines"]


# --- what is learned
# --------------------------------------------------------------------------------


def test_utilities_of_plackett_luce_annotators_are_recovered(mesh):
    """1536 prompts with four completions, ranked by one annotator whose noise is 0.3: one epoch
    brings scores of fresh strings to a Spearman correlation of over 0.95 with the utility. Scores
    and utilities are taken from their prompt's mean, which comparisons say nothing about."""
    cfg, rows = replace(GQA, layers=1, width=32), rows_of(ranked_strings(1536, 4))
    optim = OptimConfig(lr=1e-2, weight_decay=0.0, warmup=0.1)
    state = init_state(with_scalar_head(noisy_params(cfg), cfg, jax.random.key(0)), optim, 96)
    step = make_train_step(
        lambda p, b: reward_modelling(p, b, cfg, AXES), optim, partial(decays, cfg), AXES
    )
    for t in range(96):
        batch = {k: rows[k][16 * t : 16 * t + 16] for k in INPUTS}
        state, _ = step(state, place_batch(batch, mesh))
    fresh = rows_of(ranked_strings(250, 4, seed=3))
    batch = place_batch({k: fresh[k] for k in INPUTS}, mesh)
    scores = np.asarray(jax.jit(lambda p, b: ranked_scores(p, b, cfg, AXES))(state.params, batch))
    within = [(x - x.mean(1, keepdims=True)).ravel() for x in (scores, fresh["gold"])]
    assert spearman(*within) > 0.95


def spearman(a, b):
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


# --- the report
# -------------------------------------------------------------------------------------


def test_accuracy_intervals_cover_the_true_rate_when_pairs_of_a_prompt_go_together():
    """All ten pairs of a prompt are right or wrong alike; pairs taken for independent would give
    intervals a third as wide."""
    rng = np.random.default_rng(0)
    covered, cluster = 0, np.repeat(np.arange(60), 10)
    for _ in range(100):
        right = np.repeat(rng.random(60) < 0.7, 10).astype(float)
        lo, hi = clustered_interval(right, cluster, 60)
        covered += lo <= 0.7 <= hi
    assert 88 <= covered <= 99


def test_the_report_of_nine_completions_equals_loops():
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.integers(1, 7, 9) for _ in range(30)])
    ranks[3, 5:] = -1
    rows = {
        "ranks": ranks,
        "gold": rng.standard_normal((30, 9)),
        "length": rng.integers(1, 9, (30, 9)),
    }
    scores = rng.standard_normal((30, 9))
    right, apart = [], {}
    for i in range(30):
        for w in range(9):
            for lo in range(9):
                if 0 <= ranks[i, w] < ranks[i, lo]:
                    right.append(scores[i, w] > scores[i, lo])
                    apart.setdefault(ranks[i, lo] - ranks[i, w], []).append(right[-1])
    report = ranking_report(scores, rows)
    assert report["accuracy"] == pytest.approx(np.mean(right)) and report["n_pairs"] == len(right)
    assert {r["ranks"]: (r["n"], r["accuracy"]) for r in report["accuracy_by_rank_difference"]} == {
        d: (len(v), pytest.approx(np.mean(v))) for d, v in apart.items()
    }
    for name in ("accuracy_by_margin", "accuracy_by_length", "accuracy_by_length_difference"):
        assert sum(r["n"] for r in report[name]) == len(right)
    json.dumps(report, allow_nan=False)


def test_annotators_agree_as_often_as_their_noise_says():
    """Two completions one unit apart at noise 1: an annotator prefers the better one with
    probability sigmoid(1), so two agree with p^2 + (1 - p)^2. Without noise they always do."""
    gold = np.tile([0.0, 1.0], (20_000, 1))
    rows = {
        "gold": gold,
        "length": np.ones(gold.shape),
        "ranks": rank_by_annotators(gold, 1.0, 1, 5),
    }
    p = 1 / (1 + np.exp(-1))
    assert annotators_agree(rows, 1.0, 0.0, 0.0) == pytest.approx(p**2 + (1 - p) ** 2, abs=0.015)
    assert annotators_agree(rows, 0.0, 0.0, 0.0) == 1
