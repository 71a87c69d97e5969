"""Guarantees of `rlhf_jax.evals` and of the reward model's report."""

import numpy as np
import pytest

from rlhf_jax.evals.diversity import distinct_n
from rlhf_jax.evals.heldout import ratio_with_error
from rlhf_jax.evals.intervals import paired_interval, wilson_interval
from rlhf_jax.jobs.reward import ranking_report


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
    for wins, n, lo, hi in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        got = wilson_interval(wins, n)
        assert got[0] == pytest.approx(lo, abs=5e-5) and got[1] == pytest.approx(hi, abs=5e-5)


def test_distinct_n_counts_by_hand():
    tokens = np.array([[5, 6, 5, 6, 2], [5, 6, 2, 0, 0], [7, 0, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    assert distinct_n(tokens, mask, 1) == 4 / 9  # 5 6 2 7
    assert distinct_n(tokens, mask, 2) == 3 / 6  # 56 65 62; 56 62 again
    assert np.isnan(distinct_n(tokens, mask, 6))


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


def test_calibration_error_is_small_for_calibrated_margins_and_large_for_inflated_ones():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((4000, 2))
    first = rng.random(4000) < 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    rows = {"ranks": np.stack([2 - first, 1 + first], 1), "gold": scores, "length": np.ones((4000, 2))}  # fmt: skip
    calibrated = ranking_report(scores, rows)["calibration"]
    assert calibrated["expected_calibration_error"] < 0.03
    assert sum(r["n"] for r in calibrated["bins"]) == 4000
    assert ranking_report(10 * scores, rows)["calibration"]["expected_calibration_error"] > 0.15
