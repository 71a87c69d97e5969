"""Losses at equal compute, read along training or between horizons; predictions and their
scores."""

import numpy as np
import pytest

from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.laws.curves import Curve, at_equal_compute, joined, smooth
from rlhf_jax.laws.isoflop import fit_isoflop
from rlhf_jax.laws.points import FitError, Points
from rlhf_jax.laws.predict import predict, score

LAW = Chinchilla(E=1.8, A=60.0, B=120.0, alpha=0.3, beta=0.3)
SIZES = np.geomspace(1e4, 2e6, 10)


def runs(budgets, sizes=SIZES, span=5.0, noise=0.0, seed=0):
    """Final losses of a known law at whole budgets, sizes within `span` of each optimum."""
    rng = np.random.default_rng(seed)
    rows = [
        (n, c / (6 * n), c)
        for c in budgets
        for n in sizes
        if 1 / span < n / LAW.compute_optimal(c)[0] < span
    ]
    n, d, c = np.array(rows).T
    loss = LAW.loss(n, d) * np.exp(noise * rng.normal(size=len(n)))
    labels = tuple(f"{a:.4g}@{b:.4g}" for a, b in zip(n, c, strict=True))
    return Points(n, d, c, loss, labels=labels)


def test_smoothing_follows_a_falling_curve_to_its_end():
    rng = np.random.default_rng(0)
    flops = np.arange(1, 4001) * 1e8
    truth = 2 + 3 * (flops / 1e8) ** -0.3
    at, loss = smooth(flops, truth + 0.1 * rng.normal(size=len(flops)))
    expected = 2 + 3 * (at / 1e8) ** -0.3
    assert at[-1] == pytest.approx(flops[-1])
    late = at > 0.1 * flops[-1]
    assert np.abs(loss - expected)[late].max() < 0.02
    assert abs((loss - expected)[late].mean()) < 0.004  # a plain mean lags by 0.02 here


def test_losses_between_horizons_show_the_minima_of_whole_budgets():
    table = runs(np.geomspace(1e11, 1e13, 7), span=30.0)
    between = at_equal_compute(joined(table), budgets=5)
    assert {label.partition("=")[0] for label in between.labels} == {"N"}
    fit = fit_isoflop(between, resamples=0)
    assert fit.n_law.exponent == pytest.approx(LAW.a, abs=0.02)
    for budget in fit.budgets[1:-1]:
        assert budget.n_star == pytest.approx(LAW.compute_optimal(budget.flops)[0], rel=0.1)


def test_seeds_at_one_horizon_are_averaged():
    one = runs([1e11, 1e12, 1e13], span=1e3)
    two = Points(
        *(np.concatenate([getattr(one, k)] * 2) for k in ("params", "tokens", "flops")),
        np.concatenate([one.loss - 0.1, one.loss + 0.1]),
    )
    for a, b in zip(joined(one), joined(two), strict=True):
        np.testing.assert_allclose(a.loss, b.loss)
        assert len(a.flops) == 3


def test_counting_without_embeddings_and_last_layer_raises_the_exponent():
    """Kaplan's accounting of runs whose true exponent is 0.5 (Porian 2024; Pearce and Song
    2024)."""
    vocab, curves, kaplan = 512, [], []
    for width in (16, 24, 32, 48, 64, 96, 144, 216):
        body, head = 24 * width**2, vocab * width
        flops = np.geomspace(1e10, 1e14, 60)
        tokens = flops / (6 * (body + head))
        curves.append(Curve(f"d{width}", body + head, flops, tokens, LAW.loss(body + head, tokens)))
        share = body / (body + head)
        kaplan.append(Curve(f"d{width}", body, flops * share, tokens, curves[-1].loss))
    all_of_it = fit_isoflop(at_equal_compute(curves), 0).n_law.exponent
    without = fit_isoflop(at_equal_compute(kaplan), 0).n_law.exponent
    assert all_of_it == pytest.approx(0.5, abs=0.02)
    assert without > all_of_it + 0.1


def test_curves_that_share_no_compute_are_refused():
    flops = np.geomspace(1e10, 1e11, 5)
    apart = [Curve(str(i), 10.0**i, flops * 100**i, flops, flops * 0 + 3) for i in range(1, 8)]
    with pytest.raises(FitError, match="no two budgets are reached by 5 of the 7 curves"):
        at_equal_compute(apart)


def test_a_prediction_from_small_budgets_meets_the_large_one():
    small = runs(np.geomspace(1e11, 3e12, 5), noise=1e-3)
    large = runs([2e13], noise=1e-3, seed=1)
    planned = [
        {"label": label, "params": n, "tokens": d}
        for label, n, d in zip(large.labels, large.params, large.tokens, strict=True)
    ]
    said = predict(small, 2e13, planned, resamples=50)
    n_star, d_star = LAW.compute_optimal(2e13)
    for approach in ("2", "3"):
        assert said["approaches"][approach]["n_star"] == pytest.approx(n_star, rel=0.3)
        low, high = said["approaches"][approach]["intervals"]["d_star"]
        assert low < said["approaches"][approach]["d_star"] < high
    assert said["approaches"]["3"]["loss_star"] == pytest.approx(LAW.loss(n_star, d_star), rel=0.01)
    found = score(
        said,
        Points(
            *(
                np.concatenate([getattr(small, k), getattr(large, k)])
                for k in ("params", "tokens", "flops", "loss")
            ),
            labels=small.labels + large.labels,
        ),
    )
    assert found["runs"]["n"] == len(planned)
    assert found["runs"]["rms_log_error"] < 0.01
    assert abs(found["approaches"]["3"]["loss_star"]) < 0.01
    assert found["measured"]["n_star"] == pytest.approx(n_star, rel=0.3)


def test_nothing_is_predicted_of_compute_that_runs_have_reached():
    with pytest.raises(FitError, match="nothing is left to predict"):
        predict(runs([1e11, 1e12]), 1e12, [])


def test_a_prediction_whose_runs_are_missing_says_so():
    said = {"flops": 1e14, "approaches": {}, "runs": []}
    assert "no run of this compute" in score(said, runs([1e12]))["measured"]["refused"]


def test_a_prediction_is_scored_by_hand():
    """Six runs on a parabola in ln N with its minimum of 3.0 at N = 1e6, D = 1e9."""
    n = 1e6 * 2.0 ** np.array([-1.5, -1, -0.5, 0.5, 1, 1.5])
    loss = 3.0 + 0.1 * np.log(n / 1e6) ** 2
    made = Points(n, 1e15 / n, np.full(6, 6e15), loss, labels=tuple("abcdef"))
    said = {
        "flops": 6e15,
        "approaches": {
            "1": {"refused": "no envelope"},
            "2": {
                "n_star": 2e6,
                "d_star": 5e8,
                "loss_star": 3.1,
                "intervals": {"n_star": [1.5e6, 3e6], "d_star": [4e8, 2e9]},
            },
        },
        "runs": [
            {"label": "a", "loss": 2 * loss[0]},
            {"label": "b", "loss": loss[1]},
            {"label": "lost", "loss": 1.0},
        ],
    }
    found = score(said, made)
    assert found["approaches"]["1"] == {"covered": {}}
    errors = found["approaches"]["2"]
    assert errors["n_star"] == pytest.approx(np.log(2), abs=1e-6)  # predicted over measured
    assert errors["d_star"] == pytest.approx(-np.log(2), abs=1e-6)
    assert errors["loss_star"] == pytest.approx(np.log(3.1 / 3.0), abs=1e-6)
    assert errors["covered"] == {"n_star": False, "d_star": True, "loss_star": False}
    assert found["runs"] == {
        "n": 2,
        "rms_log_error": pytest.approx(np.log(2) / 2**0.5),
        "mean_log_error": pytest.approx(np.log(2) / 2),
    }


def test_tokens_at_equal_compute_are_those_of_the_curves():
    flops = np.geomspace(1e10, 1e12, 30)
    curves = [
        Curve(f"{n:g}", n, flops, flops / (6 * n), 3 - 0.1 * np.log(flops / n)) for n in SIZES
    ]
    table = at_equal_compute(curves)
    assert len(table) == 6 * len(SIZES) and table.flops.min() == pytest.approx(1e10)
    np.testing.assert_allclose(6 * table.params * table.tokens, table.flops)
    np.testing.assert_allclose(table.loss, 3 - 0.1 * np.log(table.flops / table.params))


@pytest.mark.parametrize("flops", [0, -1e20, float("nan"), float("inf"), 1e40, True, "1e20", None])
def test_compute_that_cannot_be_is_not_predicted_at(flops):
    with pytest.raises(FitError, match=r"compute to predict at is .*; it must be FLOPs from 1"):
        predict(runs([1e11, 1e12]), flops, [])


def test_far_predictions_are_said_and_farther_ones_refused():
    points = runs(np.geomspace(1e11, 3e12, 5), noise=1e-3)
    assert predict(points, 2e13, [], resamples=0)["far"] is None
    said = predict(points, 3e14, [], resamples=0)
    assert said["far"] == "100 times the compute of the largest run"
    n_star, _ = LAW.compute_optimal(3e14)
    three = said["approaches"]["3"]
    assert three["n_star"] == pytest.approx(n_star, rel=0.2)  # not that of 10 times the largest run
    assert three["n_star"] * three["d_star"] == pytest.approx(3e14 / 6, rel=1e-6)
    with pytest.raises(FitError, match=r"1e\+04 times the largest run .*ask for 3e\+15 at most"):
        predict(points, 3e16, [], resamples=0)


def test_runs_that_support_no_approach_make_no_prediction():
    with pytest.raises(FitError, match="support no prediction"):
        predict(runs([1e11]), 1e12, [], resamples=0)
