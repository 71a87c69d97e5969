"""Guarantees of the over-optimization laws: known constants are recovered, intervals cover them,
the peak is the maximum, and what the data do not show is refused in words."""

import json

import numpy as np
import pytest

from rlhf_jax.evals.best_of_n import kl_bound, powers_of_two
from rlhf_jax.laws.overoptimization import (
    Curve,
    OverOptimization,
    extrapolation,
    fit_overoptimization,
    of_iterations,
)
from rlhf_jax.laws.points import FitError


def best_of_n(alpha, beta, prompts=300, most=64, noise=0.3, seed=0, label="bon"):
    """Gains of each prompt scatter around the law."""
    rng = np.random.default_rng(seed)
    d = np.sqrt([kl_bound(n) for n in powers_of_two(most)])
    slope = alpha + noise * rng.normal(size=(prompts, 1))
    gold = 0.2 + rng.normal(size=(prompts, 1)) + d * (slope - beta * d)
    return Curve(label, np.tile(d, (prompts, 1)), gold)


def rl(alpha, beta, iterations=200, most=5.0, noise=0.05, seed=0, start=0.1):
    rng = np.random.default_rng(seed)
    d = most * np.linspace(0, 1, iterations) ** 0.7
    gold = start + OverOptimization("rl", alpha, beta).gain(d) + noise * rng.normal(size=iterations)
    return of_iterations(f"s{seed}", d**2, gold)


def test_known_constants_of_best_of_n_are_recovered_and_covered():
    covered = np.zeros(2)
    for seed in range(40):
        fit = fit_overoptimization("best_of_n", [best_of_n(1.0, 0.4, 120, seed=seed)], 300)
        for i, (name, true) in enumerate((("alpha", 1.0), ("beta", 0.4))):
            low, high = fit["intervals"][name]
            covered[i] += low - 1e-9 <= true <= high + 1e-9
        assert fit["alpha"] == pytest.approx(1, abs=0.12)
        assert fit["beta"] == pytest.approx(0.4, abs=1e-9)  # only slopes scatter
    assert covered[0] / 40 > 0.85
    assert fit["peak"]["d"] == pytest.approx(fit["alpha"] / 0.8) and not fit["peak"]["beyond"]


def test_known_constants_of_rl_are_recovered_from_several_seeds():
    fit = fit_overoptimization("rl", [rl(0.8, 0.5, seed=s) for s in range(4)], 300)
    assert fit["alpha"] == pytest.approx(0.8, abs=0.05)
    assert fit["beta"] == pytest.approx(0.5, abs=0.03)
    assert fit["gold_at_0"] == pytest.approx(0.1, abs=0.03)
    low, high = fit["intervals"]["peak_d"]
    assert low < np.exp(0.6) < high  # exp(alpha / beta - 1)
    assert fit["rms"] == pytest.approx(0.025, abs=0.005)  # of the mean of four seeds
    json.dumps(fit)


def test_a_fit_is_the_one_of_least_squares():
    curve = rl(0.8, 0.5, noise=0.2)
    fit = fit_overoptimization("rl", [curve], 10)
    d, gold = curve.d_BM.ravel(), curve.gold_BM.ravel()
    X = np.stack([np.ones_like(d), d, -d * np.log(np.maximum(d, 1e-300))], 1)
    expected = np.linalg.lstsq(X, gold)[0]
    np.testing.assert_allclose([fit[k] for k in ("gold_at_0", "alpha", "beta")], expected)


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_the_peak_is_the_maximum_of_the_curve(form):
    law = OverOptimization(form, 0.7, 0.3)
    d = np.linspace(0, 10, 200_001)
    at, height = law.peak
    assert at == pytest.approx(d[law.gain(d).argmax()], abs=1e-3)
    assert height == pytest.approx(law.gain(d).max()) and law.gain(0.0) == 0
    assert OverOptimization(form, 0.7, -0.3).peak is None


def test_intervals_over_seeds_are_wider_than_over_one_seeds_iterations():
    alike = fit_overoptimization("rl", [rl(0.8, 0.5)], 300)["intervals"]["alpha"]
    runs = [rl(a, 0.5, seed=s) for s, a in enumerate((0.5, 0.7, 0.9, 1.1))]
    apart = fit_overoptimization("rl", runs, 300)["intervals"]["alpha"]
    assert apart[1] - apart[0] > 2 * (alike[1] - alike[0])


def test_a_law_fitted_to_small_d_predicts_large_d_better_than_the_last_value():
    for form, curve in (("best_of_n", best_of_n(1.0, 0.4)), ("rl", rl(0.8, 0.5, noise=0.01))):
        ahead = extrapolation(form, [curve])
        assert ahead["rms_error"] < 0.5 * ahead["last_rms_error"]
        assert ahead["fitted"] and ahead["scored"]


def test_errors_ahead_are_predicted_less_observed():
    """To d = 3 the gold score is d (1 - ln d); beyond, 0.5 less than that."""
    d = np.linspace(0.0, 4.0, 41)
    law = d * (1 - np.log(np.where(d > 0, d, 1.0)))
    ahead = extrapolation("rl", [of_iterations("r", d**2, law - 0.5 * (d > 3.01))])
    assert (ahead["below"], ahead["fitted"], ahead["scored"]) == (3.0, 31, 10)
    assert ahead["mean_error"] == pytest.approx(0.5) == ahead["rms_error"]
    last = law[(d >= 0.9 * 3) & (d < 3.01)].mean() - (law - 0.5)[d > 3.01].mean()
    assert ahead["last_mean_error"] == pytest.approx(last, rel=0.1)


def test_what_the_data_do_not_show_is_refused():
    straight = fit_overoptimization("rl", [rl(0.3, 0.0, noise=0.3)], 300)
    assert (
        straight["peak"] is None
        and "includes 0: no over-optimization is seen" in straight["refused"]
    )
    rising = fit_overoptimization("best_of_n", [best_of_n(0.3, -0.2)], 300)
    assert "rises ever faster" in rising["refused"]
    falling = fit_overoptimization("best_of_n", [best_of_n(-0.5, 0.2)], 300)
    assert "falls from the start" in falling["refused"]
    slow = fit_overoptimization("best_of_n", [best_of_n(1.0, 0.05, noise=0.1)], 300)
    assert slow["peak"]["beyond"]


def test_too_few_points_or_too_small_a_range_is_an_error():
    with pytest.raises(FitError, match="2 values of d above 0; the law needs at least 3: raise n"):
        fit_overoptimization("best_of_n", [best_of_n(1, 0.4, most=4)])
    d = np.linspace(1.0, 1.5, 20)
    with pytest.raises(FitError, match="less than a factor of 2; optimise further"):
        fit_overoptimization("rl", [of_iterations("r", d**2, d)])
    with pytest.raises(FitError, match="no curves"):
        fit_overoptimization("rl", [])
    with pytest.raises(FitError, match="form is 'dpo'"):
        fit_overoptimization("dpo", [rl(1, 1)])
    with pytest.raises(
        FitError, match="12 iterations with a KL and a gold score; the law needs at least 20"
    ):
        fit_overoptimization("rl", [rl(0.8, 0.5, iterations=6, seed=s) for s in range(2)])
    early = of_iterations("r", np.array([0, 0, 9.0, 10, 11, 12]), np.zeros(6))
    assert "needs at least 4" in extrapolation("rl", [early])["refused"]
