"""The report on rankings of a few pairs, and rates over items, against what they come to by
hand."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_jax.evals.prompting import Answers, Item, summary
from rlhf_jax.evals.rankings import clustered_interval, ranking_report

# Five pairs. The first score less the second, of the better one less the worse: -1, -1, 2, 1, -3.
ROWS = {
    "ranks": np.array([[1, 2], [2, 1], [1, 2], [2, 1], [2, 1]]),
    "gold": np.array([[1.0, 0], [0, 3], [2, 0], [4, 0], [0, 5]]),  # of the fourth it is wrong
    "length": np.array([[5, 3], [3, 5], [2, 4], [4, 4], [1, 9]]),
}
SCORES = np.array([[0.0, 1], [0, -1], [2, 0], [0, 1], [3, 0]])


def test_accuracies_and_baselines_of_five_pairs():
    report = ranking_report(SCORES, ROWS)
    assert (report["accuracy"], report["n_pairs"], report["n_prompts"]) == (0.4, 5, 5)
    assert report["baselines"] == {
        "gold score (label ceiling)": 0.8,
        "longer wins": pytest.approx((1 + 1 + 0 + 0.5 + 1) / 5),
        "scores of other prompts": 0.8,  # each prompt with the scores of the one before it
    }
    assert report["accuracy_by_length"] == [
        {"winner": "longer", "n": 3, "accuracy": 0.0},
        {"winner": "same", "n": 1, "accuracy": 1.0},
        {"winner": "shorter", "n": 1, "accuracy": 1.0},
    ]


def test_quarters_are_of_the_gold_margin():
    assert ranking_report(SCORES, ROWS)["accuracy_by_margin"] == [
        {"from": 1.0, "to": 1.0, "n": 1, "accuracy": 0.0},
        {"from": 2.0, "to": 2.0, "n": 1, "accuracy": 1.0},
        {"from": 3.0, "to": 3.0, "n": 1, "accuracy": 0.0},
        {"from": 4.0, "to": 5.0, "n": 2, "accuracy": 0.5},
    ]


def test_calibration_is_of_the_probability_that_the_higher_score_wins():
    """With five pairs every bin holds one."""
    p = 1 / (1 + np.exp(-np.array([1.0, 1, 2, 1, 3])))
    found = ranking_report(SCORES, ROWS)["calibration"]
    assert found["expected_calibration_error"] == pytest.approx(
        np.abs(p - np.array([0, 0, 1, 1, 0])).mean()
    )
    assert sorted(b["confidence"] for b in found["bins"]) == pytest.approx(sorted(p))


def test_intervals_weigh_pairs_and_draw_prompts():
    """One prompt of one pair that is right, one of nine that are wrong: both drawn give 1 of 10."""
    right, cluster = np.array([1.0] + [0.0] * 9), np.array([0] + [1] * 9)
    assert clustered_interval(right, cluster, 2, level=0.4) == (0.1, 0.1)
    assert clustered_interval(right, cluster, 2) == (0.0, 1.0)


def test_the_majority_of_a_group_is_the_mean_over_its_types():
    answers = {"one": "aabb", "two": "ccde"}
    items = [
        Item(kind, "group", f"Say {i}.", a, ("z",))
        for kind, said in answers.items()
        for i, a in enumerate(said)
    ]
    types, (group,) = summary(Answers(items, ["a"] * 8, np.tile([-1.0, -2.0], (8, 1))))
    assert [t["majority"] for t in types] == [0.5, 0.5] and [t["exact"] for t in types] == [0.5, 0]
    assert (group["majority"], group["exact"], group["types"], group["n"]) == (0.5, 0.25, 2, 8)
