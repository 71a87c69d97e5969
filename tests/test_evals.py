"""Guarantees of `rlhf_jax.evals` and of the reward model's report."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_models import mesh, noisy_params, tiny_corpus

from rlhf_jax.evals.calibration import reliability
from rlhf_jax.evals.diversity import (
    distinct_n,
    distinct_responses,
    self_similarity,
    similarity_within_prompts,
)
from rlhf_jax.evals.heldout import heldout_loss, heldout_rows, ratio_with_error, tax
from rlhf_jax.evals.intervals import paired_interval, wilson_interval
from rlhf_jax.evals.modes import mode_report
from rlhf_jax.evals.win_rate import gain_at_equal_length, length_controlled, win_rate
from rlhf_jax.kinds import Evaluate, Pretrain, TaskConfig
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.evaluate import job
from rlhf_jax.kinds.reward.job import ranking_report
from rlhf_jax.model.sharding import AXES
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.results import as_json
from rlhf_jax.train import Runtime

__all__ = ["mesh"]


def test_the_error_of_the_heldout_loss_is_the_jackknife_error():
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 129, 300).astype(float)
    nats = tokens * (3 + 0.3 * rng.standard_normal(300))
    ratio, error = ratio_with_error(nats, tokens)
    assert ratio == pytest.approx(nats.sum() / tokens.sum())
    left_out = np.array([np.delete(nats, i).sum() / np.delete(tokens, i).sum() for i in range(300)])
    jackknife = np.sqrt(299 / 300 * np.sum((left_out - left_out.mean()) ** 2))
    assert error == pytest.approx(jackknife, rel=0.01)


def test_the_error_of_the_heldout_loss_is_what_repeated_draws_show():
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(1000):
        tokens = rng.integers(20, 129, 100).astype(float)
        draws.append(ratio_with_error(tokens * (3 + rng.standard_normal(100)), tokens))
    ratios, errors = np.array(draws).T
    assert errors.mean() == pytest.approx(ratios.std(), rel=0.1)


def test_paired_intervals_cover_the_true_difference():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        differences = 0.2 + rng.standard_normal(60)
        mean, (lo, hi) = paired_interval(differences, resamples=400, seed=seed)
        assert lo < mean < hi and mean == pytest.approx(differences.mean())
        covered += lo <= 0.2 <= hi
    assert 0.91 <= covered / 300 <= 0.98


def test_wilson_intervals_are_the_published_ones():
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    for wins, n, lo, hi in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        got = wilson_interval(wins, n)
        assert got[0] == pytest.approx(lo, abs=5e-5) and got[1] == pytest.approx(hi, abs=5e-5)


def test_distinct_n_counts_by_hand():
    tokens = np.array([[5, 6, 5, 6, 2], [5, 6, 2, 0, 0], [7, 0, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    assert distinct_n(tokens, mask, 1) == 4 / 9  # 5 6 2 7
    assert distinct_n(tokens, mask, 2) == 3 / 6  # 56 65 62; 56 62 again
    assert np.isnan(distinct_n(tokens, mask, 6))


def test_similarity_counts_shared_bigrams_by_hand():
    tokens = np.array([[5, 6, 5, 6], [5, 6, 7, 0], [8, 0, 0, 0], [8, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    assert self_similarity(tokens[:2], mask[:2]) == 2 * 1 / 5  # 56 65 56 and 56 67
    assert self_similarity(tokens[2:], mask[2:]) == 1  # no bigrams, equal
    assert self_similarity(tokens, mask) == (0.4 + 1) / 6
    assert np.isnan(self_similarity(tokens[:1], mask[:1]))
    within = similarity_within_prompts(tokens.reshape(2, 2, 4), mask.reshape(2, 2, 4))
    assert within == pytest.approx((0.4 + 1) / 2)
    assert distinct_responses(tokens, mask) == 3 / 4


def test_modes_are_counted_by_hand():
    before = ["0"] * 50 + ["2"] * 30 + ["10"] * 18 + [None] * 2
    after = [0] * 98 + [-1, 2]
    found = mode_report(before, after)
    assert found["names"] == ["0", "2", "10"]
    assert found["before"]["counts"] == {"0": 50, "2": 30, "10": 18}
    assert found["after"]["shares"] == {"0": 0.98, "2": 0.01, "10": 0}
    assert (found["before"]["kept"], found["after"]["kept"]) == (3, 2)
    assert (found["before"]["none"], found["after"]["none"]) == (0.02, 0.01)
    assert found["total_variation"] == pytest.approx(0.5 * (0.48 + 0.29 + 0.18 + 0.01))
    p = np.array([98, 1]) / 99
    assert found["after"]["entropy"] == pytest.approx(-(p * np.log(p)).sum())
    with pytest.raises(ConfigError, match="give one a response"):
        mode_report([], [])


def test_a_response_in_no_mode_has_no_entropy():
    found = mode_report([None, -1], ["", None])
    assert found["names"] == [] and found["after"]["entropy"] == 0 and found["after"]["none"] == 1
    assert found["total_variation"] == 0


def test_reliability_is_counted_by_hand():
    confidence = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    right = np.array([0, 1, 1, 1, 0])
    found = reliability(confidence, right, bins=10)
    assert [(b["n"], b["accuracy"]) for b in found["bins"]] == [(2, 0.5), (3, pytest.approx(2 / 3))]
    expected = 2 / 5 * 0.45 + 3 / 5 * abs(2 / 3 - 2.9 / 3)
    assert found["expected_calibration_error"] == pytest.approx(expected)


def test_probabilities_that_come_true_have_no_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=200_000)
    assert reliability(p, rng.random(len(p)) < p)["expected_calibration_error"] < 0.01
    assert reliability(p, rng.random(len(p)) < p**2)["expected_calibration_error"] > 0.1


def test_wins_that_come_from_length_vanish_at_equal_length():
    rng = np.random.default_rng(0)
    longer = rng.normal(4, 4, 4000)
    gain = 0.1 * longer + rng.normal(0, 0.5, 4000)
    zero = np.zeros(4000)
    rate, _ = win_rate(zero, gain)
    controlled, (low, high) = length_controlled(zero, gain, longer)
    assert rate > 0.7 and low - 0.02 < 0.5 < high + 0.02 and abs(controlled - 0.5) < 0.05
    equal, (low, high) = gain_at_equal_length(gain, longer)
    assert low < 0 < high and abs(equal) < 0.03


def test_without_differences_in_length_both_win_rates_are_one():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 300))
    rate, _ = win_rate(before, after + 0.5)
    controlled, (low, high) = length_controlled(before, after + 0.5, np.zeros(300))
    assert controlled == pytest.approx(rate, abs=1e-4) and low < rate < high
    gain = after + 0.5 - before
    equal, (low, high) = gain_at_equal_length(gain, np.full(300, 3.0))
    assert equal == pytest.approx(gain.mean()) and low < equal < high


def test_a_side_that_always_wins_has_a_finite_win_rate():
    for longer in (np.arange(50.0), np.zeros(50)):
        rate, (low, high) = length_controlled(np.zeros(50), np.ones(50), longer)
        assert 0.98 < low <= rate <= high <= 1
    assert win_rate(np.zeros(4), np.array([1.0, 0, 0, -1]))[0] == 0.5  # ties are half a win


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


def test_heldout_rows_sum_to_the_heldout_loss_and_their_difference_is_the_tax(corpus, mesh):
    cfg = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab)
    runtime = Runtime(mesh, AXES)
    one, other = (noisy_params(cfg, s) for s in (0, 1))
    loss = heldout_loss(one, cfg, corpus, runtime)
    rows, again = heldout_rows(one, cfg, corpus, runtime), heldout_rows(other, cfg, corpus, runtime)
    assert rows.loss == pytest.approx(loss["loss"], rel=1e-6)
    assert rows.bits_per_byte == pytest.approx(loss["bits_per_byte"], rel=1e-6)
    assert rows.tokens_R.sum() == len(rows.right_n) == len(rows.confidence_n) == loss["tokens"]
    found = tax(rows, again)
    assert found["nats_per_token"] == pytest.approx(again.loss - rows.loss)
    assert found["bits_per_byte"] == pytest.approx(again.bits_per_byte - rows.bits_per_byte)
    low, high = found["nats_per_token_interval"]
    assert low < found["nats_per_token"] < high
    assert tax(rows, rows)["nats_per_token_interval"] == (0, 0)


def letters(prompts, responses):
    return np.array([float(len(r)) for r in responses])


def longest(prompts, responses):
    return [None if not r.strip() else len(r.split()) for r in responses]


@pytest.mark.parametrize("after", ["twin", "wide"])
def test_an_evaluation_measures_both_sides(corpus, mesh, tmp_path, monkeypatch, after):
    """`twin` has the parameters of `before`, `wide` another shape."""
    small = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab)
    wide = ModelConfig(layers=1, width=32, heads=2, vocab=corpus.cfg.vocab)
    task = TaskConfig(prompt_len=6, response_len=5, gold=f"{__name__}:letters")
    cell = Evaluate(
        "e",
        before="base",
        after=after,
        reward=f"{__name__}:letters",
        task=task,
        prompts=10,
        modes=f"{__name__}:longest",
    )
    bases = (
        Pretrain("base", model=small),
        Pretrain("twin", model=small, seed=1),
        Pretrain("wide", model=wide),
    )
    study = Study("s", (*bases, cell), corpus.cfg)
    models = {"base": noisy_params(small), "twin": noisy_params(small), "wide": noisy_params(wide)}
    monkeypatch.setattr(Context, "language_model", lambda self, name: models[name])
    monkeypatch.setattr(job, "CHUNK", 8)
    monkeypatch.setattr(job, "AGAIN", 3)
    beat = SimpleNamespace(progress=lambda **_: None)
    folder = CellFolder(tmp_path)
    ctx = Context(study, cell, {"e": folder}, corpus, Runtime(mesh, AXES), beat)
    found = as_json(job.run(ctx, cell))["evaluation"]
    kept = np.load(folder.results / "responses.npz")
    assert kept["tokens_after"].shape == (10, 5) and kept["gold_before"].shape == (10,)
    np.testing.assert_allclose(found["gold"]["after"], kept["gold_after"])
    assert found["proxy_after"] == pytest.approx(found["gold_after"])  # the same function
    assert found["perplexity_before"] == pytest.approx(
        math.exp(heldout_loss(models["base"], small, corpus, ctx.runtime)["loss"]), rel=1e-5
    )
    assert sum(found["modes"]["after"]["shares"].values()) + found["modes"]["after"][
        "none"
    ] == pytest.approx(1)
    for key in ("gain", "win_rate", "win_rate_length_controlled", "gain_at_equal_length", "kl"):
        low, high = found[f"{key}_interval"]
        assert low <= found[key] <= high
    assert len(found["samples"]) == 10 and found["samples"][0]["prompt"]
    if after == "twin":
        assert (
            found["gain"]
            == found["tax"]["nats_per_token"]
            == found["modes"]["total_variation"]
            == 0
        )
        assert found["win_rate"] == 0.5 and abs(found["kl"]) < 1e-4
        assert found["similarity_same_prompt_before"] == found["similarity_same_prompt_after"]
    else:
        assert found["kl"] != 0 and found["tax"]["nats_per_token"] != 0


def ranked(n=40, k=3):
    """Rankings by gold scores without noise; the last two of a prompt are tied."""
    gold = np.random.default_rng(0).uniform(-1, 1, (n, k))
    gold[:, 2] = gold[:, 1]
    ranks = 1 + (gold[:, None] > gold[:, :, None]).sum(-1)
    length = np.where(gold > gold.mean(-1, keepdims=True), 9, 3)
    return {"ranks": ranks, "gold": gold, "length": length}


def test_a_perfect_scorer_is_reported_as_perfect_and_its_negative_as_wrong():
    rows = ranked()
    good, bad = ranking_report(rows["gold"], rows), ranking_report(-rows["gold"], rows)
    assert good["n_pairs"] == bad["n_pairs"] == 80  # the tied pair of each prompt is left out
    assert (good["accuracy"], bad["accuracy"]) == (1, 0)
    assert good["baselines"]["gold score (label ceiling)"] == 1
    assert good["baselines"]["longer wins"] == 1  # in this data the better one is longer
    assert 0.3 < good["baselines"]["scores of other prompts"] < 0.7
    assert [r["winner"] for r in good["accuracy_by_length"]] == ["longer"]
    assert sum(r["n"] for r in good["accuracy_by_margin"]) == 80
    assert good["accuracy_interval"][1] == pytest.approx(1) and good["accuracy_interval"][0] > 0.9


def test_a_constant_scorer_is_a_coin():
    rows = ranked()
    report = ranking_report(np.zeros((40, 3)), rows)
    assert report["accuracy"] == 0.5
    lo, hi = report["accuracy_interval"]
    assert lo <= 0.5 <= hi


def test_a_tie_is_right_half_the_time_in_accuracy_and_in_calibration():
    rows = {"ranks": np.array([[1, 2]] * 4), "length": np.ones((4, 2))}
    report = ranking_report(np.zeros((4, 2)), rows)
    assert report["accuracy"] == 0.5
    assert report["calibration"]["expected_calibration_error"] == 0  # confidence 0.5, right half
    scores = np.array([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    report = ranking_report(scores, rows)
    binned = report["calibration"]["bins"]
    assert sum(b["n"] * b["accuracy"] for b in binned) / 4 == report["accuracy"] == 0.5


def test_equally_likely_next_tokens_share_what_came(corpus, mesh):
    """A model that finds every token as likely as another is right once in as many."""
    cfg = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab)
    params = {**noisy_params(cfg), "embed": np.zeros((cfg.vocab, 16), np.float32)}
    rows = heldout_rows(params, cfg, corpus, Runtime(mesh, AXES))
    np.testing.assert_allclose(rows.right_n, 1 / cfg.vocab, rtol=1e-5)
    np.testing.assert_allclose(rows.confidence_n, 1 / cfg.vocab, rtol=1e-5)
    found = reliability(rows.confidence_n, rows.right_n)
    assert found["expected_calibration_error"] == pytest.approx(0, abs=1e-6)


def test_calibration_error_is_small_for_calibrated_margins_and_large_for_inflated_ones():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((4000, 2))
    first = rng.random(4000) < 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    rows = {
        "ranks": np.stack([2 - first, 1 + first], 1),
        "gold": scores,
        "length": np.ones((4000, 2)),
    }
    calibrated = ranking_report(scores, rows)["calibration"]
    assert calibrated["expected_calibration_error"] < 0.03
    assert sum(r["n"] for r in calibrated["bins"]) == 4000
    assert ranking_report(10 * scores, rows)["calibration"]["expected_calibration_error"] > 0.15
