"""Guarantees of best-of-n: the estimate is the average over all subsets, and the cell's samples do
not depend on what scores them or on interruptions."""

import json
import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import mesh, noisy_params, tiny_corpus

from rlhf_jax.data.feedback import Demonstration, read
from rlhf_jax.evals.best_of_n import (
    best_of_n_curve,
    chance_of_best,
    expected_best,
    gold_by_prompt,
    kl_bound,
    powers_of_two,
)
from rlhf_jax.kinds import BestOfN, Pretrain, TaskConfig
from rlhf_jax.kinds.best_of_n import job
from rlhf_jax.kinds.context import Context, TaskPrompts
from rlhf_jax.model.sharding import AXES
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.results import as_json
from rlhf_jax.train import Runtime, Stopped

__all__ = ["mesh"]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_the_estimate_is_the_mean_over_all_subsets(n):
    rng = np.random.default_rng(n)
    proxy, gold = rng.normal(size=(2, 4, 6))
    expected = [
        np.mean([g[max(s, key=lambda i: p[i])] for s in combinations(range(6), n)])
        for p, g in zip(proxy, gold, strict=True)
    ]
    np.testing.assert_allclose(expected_best(proxy, gold, n), expected, atol=1e-12)


def test_of_equal_proxies_each_is_picked_as_often():
    proxy = np.array([[1.0, 2.0, 2.0, 0.0, 2.0]])
    gold = np.array([[9.0, 1.0, 2.0, 7.0, 6.0]])
    expected = []
    for s in combinations(range(5), 3):
        best = max(proxy[0, i] for i in s)
        expected.append(np.mean([gold[0, i] for i in s if proxy[0, i] == best]))
    assert expected_best(proxy, gold, 3)[0] == pytest.approx(np.mean(expected))


def test_chances_sum_to_one_at_any_size():
    for total, n in ((1, 1), (64, 64), (1024, 1), (1024, 37), (4096, 1024)):
        assert chance_of_best(total, n).sum() == pytest.approx(1, abs=1e-9)
    with pytest.raises(ConfigError, match="the best of 9 of 8 samples"):
        chance_of_best(8, 9)


def test_the_kl_bound_is_the_exact_kl_of_distinct_samples():
    """Of a uniform policy over M outcomes that are all different: sum over ranks of p ln (p M)."""
    M, n = 20_000, 8
    edges = (np.arange(M + 1) / M) ** n
    p = np.diff(edges)
    exact = float(np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300) * M), 0)))
    assert kl_bound(n) == pytest.approx(exact, abs=1e-3)
    assert kl_bound(1) == 0 and kl_bound(64) == pytest.approx(math.log(64) - 63 / 64)


def test_the_curve_of_a_perfect_proxy_is_that_of_normal_maxima():
    gold = np.random.default_rng(0).normal(size=(400, 16))
    rows = best_of_n_curve(gold, gold)
    assert [r["n"] for r in rows] == [1, 2, 4, 8, 16]
    for row, exact in zip(rows, (0, 0.5642, 1.0294, 1.4236, 1.7660), strict=True):
        low, high = row["gold_interval"]
        assert low - 0.02 < exact < high + 0.02 and row["gold"] == row["proxy"]
    assert rows[0]["gold_gain"] == 0 and rows[-1]["gold_gain_interval"][0] > 1.5
    assert powers_of_two(12) == [1, 2, 4, 8, 12] and powers_of_two(1) == [1]


def test_an_unrelated_proxy_gains_nothing():
    proxy, gold = np.random.default_rng(1).normal(size=(2, 400, 16))
    low, high = best_of_n_curve(proxy, gold)[-1]["gold_gain_interval"]
    assert low < 0 < high


def test_gold_by_prompt_is_of_the_sample_that_the_proxy_prefers():
    proxy, gold = np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([[0.25, 0.75], [0.5, -1.0]])
    assert gold_by_prompt(proxy, gold) == [[0.5, -0.25], [0.25, -1.0]]  # of one, the best of two


def letters(prompts, responses):
    return np.array([float(len(r)) for r in responses])


def vowels(prompts, responses):
    return np.array([float(sum(c in "aeiou" for c in r)) for r in responses])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def context(corpus, mesh, monkeypatch):
    """A maker of a best-of-n cell's context, in a folder, with a random policy."""
    monkeypatch.setattr(job, "ROWS", 12)
    monkeypatch.setattr(job, "AT_ONCE", 4)
    model = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab)
    params = noisy_params(model)
    monkeypatch.setattr(Context, "language_model", lambda self, name: params)

    def make(folder, **options):
        task = TaskConfig(prompt_len=6, response_len=5, gold=f"{__name__}:vowels")
        options = {"reward": f"{__name__}:letters", "prompts": 7, "n": 6, **options}
        cell = BestOfN("best", policy="base", task=task, split="train", **options)
        study = Study("s", (Pretrain("base", model=model), cell), corpus.cfg)
        beat = SimpleNamespace(progress=lambda **_: None)
        return Context(study, cell, {"best": CellFolder(folder)}, corpus, Runtime(mesh, AXES), beat)

    return make


def run(ctx):
    return as_json(job.run(ctx, ctx.cell))["best_of_n"], np.load(ctx.folder.results / "samples.npz")


def test_a_cell_scores_its_samples_and_keeps_the_best(context, tmp_path):
    ctx = context(tmp_path)
    found, samples = run(ctx)
    proxy, gold, lengths = (samples[k] for k in ("proxy", "gold", "lengths"))
    assert proxy.shape == gold.shape == lengths.shape == (7, 6)
    assert [r["n"] for r in found["curve"]] == [1, 2, 4, 6]
    assert found["curve"][-1]["proxy"] == pytest.approx(proxy.max(1).mean())
    assert found["curve"][0]["gold"] == pytest.approx(gold.mean())
    assert 0 < found["distinct"] <= 1 and found["length"] == pytest.approx(lengths.mean())
    records = read(ctx.folder.results / "demonstrations.jsonl", Demonstration)
    assert len(records) == found["demonstrations"] == 7 - found["empty"]
    texts = ctx.prompts(ctx.cell.task, "train", 7, 0).texts
    for record in records:
        best = proxy[texts.index(record.prompt)].max()
        assert letters([record.prompt], [record.response])[0] == best


def test_another_reward_chooses_among_the_same_samples(context, tmp_path):
    _, one = run(context(tmp_path / "one"))
    _, other = run(context(tmp_path / "other", reward=f"{__name__}:vowels"))
    np.testing.assert_array_equal(one["gold"], other["gold"])
    np.testing.assert_array_equal(other["proxy"], other["gold"])


def test_an_interrupted_cell_goes_on_to_the_same_samples(context, tmp_path, monkeypatch):
    whole, samples = run(context(tmp_path / "whole"))
    ctx = context(tmp_path / "cut")
    ctx.runtime.stop.set()
    with pytest.raises(Stopped, match="after 3 of 7 prompts"):
        run(ctx)
    kept = (ctx.folder.results / "chunk-0.npz").stat().st_mtime_ns
    ctx.runtime.stop.clear()
    found, again = run(ctx)
    assert json.dumps(found) == json.dumps(whole)
    assert (ctx.folder.results / "chunk-0.npz").stat().st_mtime_ns == kept
    for k in samples:
        np.testing.assert_array_equal(samples[k], again[k])


def test_empty_responses_are_counted_and_not_written(context, tmp_path, monkeypatch):
    monkeypatch.setattr(type(context(tmp_path).corpus.tokenizer), "decode", lambda self, ids: "")
    monkeypatch.setattr(Context, "prompts", lambda self, *_: _prompts())
    found, _ = run(context(tmp_path, n=2))
    assert (found["demonstrations"], found["empty"]) == (0, 7)
    assert not (tmp_path / "results" / "demonstrations.jsonl").exists()


def _prompts():
    return TaskPrompts([f"p{i}" for i in range(7)], np.full((7, 6), 5, np.int32))
