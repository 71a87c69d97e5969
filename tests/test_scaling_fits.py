"""Fits against a public table, known laws, and data that show no law."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import separable
from scipy.optimize import minimize

from rlhf_jax.laws import approaches, isoflop
from rlhf_jax.laws.approaches import fit_file, fit_points
from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.laws.fit import extrapolation, point
from rlhf_jax.laws.fit import fit as fit_law
from rlhf_jax.laws.isoflop import PowerLaw, fit_isoflop
from rlhf_jax.laws.points import Points, from_rows, read_table

TABLE = Path(__file__).parent / "data" / "kyo_takano.csv"
COLUMNS = {"params": "N", "tokens": "D", "loss": "loss"}
LAW = Chinchilla(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


def points(budgets=(1e18, 1e19, 1e20, 1e21), sizes=9, span=4.0, noise=0.0, law=LAW, center=None):
    """IsoFLOP runs of a known law, sizes spread `span` times each way of each optimum."""
    n, c = [], []
    for budget in budgets:
        middle = law.compute_optimal(budget)[0] if center is None else center
        n += list(middle * np.geomspace(1 / span, span, sizes))
        c += [budget] * sizes
    n, c = np.array(n), np.array(c)
    d = c / (6 * n)
    wobble = np.random.default_rng(1).normal(size=len(n)) * noise
    return Points(n, d, c, law.loss(n, d) * np.exp(wobble))


def test_approach_3_reproduces_the_published_table_to_every_digit():
    fit = fit_file(TABLE, COLUMNS, approach=3, resamples=0)
    assert f"{fit['E']:.5f}" == "1.78389"
    assert f"{fit['A']:.3f}" == "442.164"
    assert f"{fit['B']:.2f}" == "1271.81"
    assert f"{fit['alpha']:.5f}" == "0.34263"
    assert f"{fit['beta']:.5f}" == "0.34200"
    assert f"{fit['objective']:.5e}" == "8.40093e-04"
    assert fit["n"] == 234
    assert fit["notes"][0] == "flops computed as 6 N D"
    assert "none dropped" in fit["outliers"]["policy"]
    assert 0 < fit["hit_rate"] <= 1


def test_newton_on_resamples_ends_where_l_bfgs_does_or_lower():
    surface = Chinchilla.problem(read_table(TABLE, COLUMNS), None, {})
    rng, theta = np.random.default_rng(0), surface.polish(surface.starts()[100])[0]
    n = len(surface)
    weights = rng.multinomial(n, np.full(n, 1 / n), 8).astype(float)
    losses = surface.observed + rng.normal(size=(8, n)) * 0.01
    ends, values = surface.descend(np.tile(theta, (8, 1)), weights, losses)
    for i in range(8):
        surface.observed = losses[i]
        found = minimize(
            surface,
            theta,
            args=(weights[i],),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 5000, "maxfun": 9000, "ftol": 1e-15, "gtol": 1e-9},
        )
        assert values[i] <= found.fun * (1 + 1e-6)
        assert surface(ends[i], weights[i])[0] == pytest.approx(values[i], rel=1e-12)


@pytest.mark.parametrize("table", ["public", "noisy", "exact"])
def test_two_optimizers_agree_on_the_objective_and_every_coefficient(table):
    data = (
        read_table(TABLE, COLUMNS)
        if table == "public"
        else points(noise=0.005 if table == "noisy" else 0.0)
    )
    fit = fit_law(Chinchilla, data, resamples=0)
    other = separable.fit(data.params, data.tokens, data.loss)
    scale = max(fit.objective, 1e-9 * len(data))  # below 1e-3 delta^2 a run both are exact
    assert abs(fit.objective - other.pop("objective")) < 1e-6 * scale
    for name, value in other.items():
        assert getattr(fit.law, name) == pytest.approx(value, rel=1e-4)


def test_an_optimum_that_the_second_search_beats_is_refused(monkeypatch):
    table = points(noise=0.005)
    law, objective = approaches.second_search(table)
    fit = fit_points(table, 3, resamples=0)
    assert fit["agreement"]["objective"] == pytest.approx(0, abs=1e-9)
    monkeypatch.setattr(approaches, "second_search", lambda points: (law, objective * 0.99))
    fit = fit_points(table, 3, resamples=0)
    assert "a second search" in fit["refused"]
    assert [fit["a"], fit["frontier"]] == [None, []]
    slightly = objective * (1 + 1e-5)
    monkeypatch.setattr(approaches, "second_search", lambda points: (law, slightly))
    fit = fit_points(table, 3, resamples=0)
    assert not fit["refused"]
    assert any("two searches differ" in note for note in fit["notes"])


def test_deleted_residuals_are_those_of_fits_without_the_run():
    table = points(sizes=6, noise=0.005)
    surface = Chinchilla.problem(table, None, {})
    found = surface.deleted_residuals(surface.search().theta)
    for i in (0, 9, 23):
        law = point(Chinchilla, table.take(np.arange(len(table)) != i))
        predicted = law.loss(table.params[i], table.tokens[i])
        assert found[i] == pytest.approx(np.log(table.loss[i] / predicted), abs=1e-6)


def test_gradient_and_hessian_are_those_of_the_objective():
    surface = Chinchilla.problem(points(noise=0.01), None, {})
    theta = np.array([-1.0, -1.2, 0.5, 0.3, 0.4])
    steps = np.eye(5) * 1e-6
    numeric = [(surface(theta + h)[0] - surface(theta - h)[0]) / 2e-6 for h in steps]
    np.testing.assert_allclose(surface(theta)[1], numeric, rtol=1e-5)
    rows = [(surface(theta + h)[1] - surface(theta - h)[1]) / 2e-6 for h in steps]
    np.testing.assert_allclose(surface.hessian(theta), rows, rtol=1e-4, atol=1e-2)


def test_approach_3_recovers_a_known_law_to_1e_4():
    fit = fit_law(Chinchilla, points(), resamples=0)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(fit.law, name) == pytest.approx(getattr(LAW, name), rel=1e-4)
    n_star, d_star = fit.law.compute_optimal(1e22)
    assert 6 * n_star * d_star == pytest.approx(1e22)
    grid = n_star * np.geomspace(1 / 1.1, 1.1, 201)
    assert np.argmin(fit.law.loss(grid, 1e22 / (6 * grid))) == 100


def test_approach_3_intervals_cover_the_law_and_are_seeded():
    noisy = points(noise=0.003)
    first, again = (fit_points(noisy, 3, resamples=40, seed=7) for _ in range(2))
    assert first == again
    low, high = first["intervals"]["a"]
    assert low < LAW.a < high
    assert low < first["a"] < high
    json.dumps(first, allow_nan=False)


def test_approach_3_refuses_a_split_that_the_table_does_not_show():
    table = points()
    flat = Points(table.params, table.tokens, table.flops, 1.8 + 480 * table.params**-0.35)
    fit = fit_points(flat, 3, resamples=0)
    assert "does not fall with D" in fit["refused"]
    assert fit["a"] is None
    assert fit["frontier"] == []


def test_approach_2_recovers_a_symmetric_law_and_its_exponent():
    law = Chinchilla(1.7, 400.0, 400.0, 0.34, 0.34)
    fit = fit_isoflop(points(law=law, span=3.0), resamples=200)
    assert fit.n_law.exponent == pytest.approx(0.5, abs=1e-6)
    assert fit.d_law.exponent == pytest.approx(0.5, abs=1e-6)
    for budget in fit.budgets:
        assert budget.n_star == pytest.approx(law.compute_optimal(budget.flops)[0], rel=1e-3)
        low, high = budget.intervals()["n_star"]
        assert low <= budget.n_star * 1.001
        assert high >= budget.n_star * 0.999


def test_a_window_takes_the_bias_that_wide_ladders_give_parabolas_and_approach_3_has_none():
    """alpha != beta, no noise, one wide ladder of sizes for all budgets, so off-centre too."""
    law = Chinchilla(1.7, 400.0, 6000.0, 0.3, 0.45)
    budgets = np.array([1e18, 1e19, 1e20, 1e21])
    truth = law.compute_optimal(budgets)[0]
    n = np.tile(np.geomspace(truth[0] / 5, truth[-1] * 5, 25), 4)
    c = np.repeat(budgets, 25)
    table = Points(n, c / (6 * n), c, law.loss(n, c / (6 * n)))
    whole = []  # the plain parabola through every size
    for budget in budgets:
        x = np.log(n[c == budget])
        c2, c1, _ = np.polyfit(x - x.mean(), table.loss[c == budget], 2)
        whole.append(x.mean() - c1 / (2 * c2))
    plain = np.polyfit(np.log(budgets), whole, 1)[0]
    two = fit_isoflop(table, resamples=0)
    assert abs(plain - law.a) > 0.05
    assert abs(two.n_law.exponent - law.a) < 1e-3
    found = np.log([budget.n_star for budget in two.budgets])
    assert np.abs(whole - np.log(truth)).min() > 0.14
    assert np.abs(found - np.log(truth)).max() < 0.03
    three = fit_law(Chinchilla, table, resamples=0).law
    assert three.a == pytest.approx(law.a, abs=1e-6)
    assert np.log(three.compute_optimal(budgets)[0]) == pytest.approx(np.log(truth), abs=1e-5)


def test_runs_outside_the_window_are_named_and_five_sizes_always_stay():
    wide = points(budgets=(1e19,), sizes=17, span=16.0)
    budget = fit_isoflop(wide, 0).budgets[0]
    distance = np.abs(np.log(wide.params / budget.n_star))
    outside = {wide.labels[i] for i in np.flatnonzero(distance > np.log(4.0))}
    assert set(budget.outside) == outside
    assert len(outside) >= 8
    sparse = points(budgets=(1e19,), sizes=7, span=200.0)
    fit = fit_points(sparse, 2, 0)["budgets"][0]
    assert len(fit["outside"]) == 2
    assert len(fit["points"]) == 7
    assert any("beyond 4x a parabola is biased" in warning for warning in fit["warnings"])


def test_approach_2_predicts_its_largest_budget_from_the_others():
    law = Chinchilla(1.7, 400.0, 400.0, 0.34, 0.34)
    ahead = fit_points(points(law=law), 2, resamples=0)["extrapolation"]
    assert [ahead["below"], ahead["flops"]] == pytest.approx([1e20, 1e21])
    assert ahead["n_log_error"] == pytest.approx(0, abs=1e-6)
    assert ahead["n_star"] == pytest.approx(law.compute_optimal(1e21)[0], rel=1e-3)
    few = fit_points(points(budgets=(1e18, 1e19)), 2, resamples=0)["extrapolation"]
    assert few["refused"].startswith("2 budgets show a minimum")


def test_runs_above_are_scored_by_a_law_of_the_runs_below_alone():
    flops = 10.0 ** np.arange(8)
    table = Points(np.ones(8), flops / 6, flops, np.arange(2.0, 10.0))
    fitted = []

    def law(low):
        fitted.extend(low.loss.tolist())
        return lambda high: high.loss * np.array([2.0, 4.0])

    ahead = extrapolation(table, law)
    assert fitted == [2, 3, 4, 5, 6, 7]
    assert (ahead["below"], ahead["fitted"], ahead["scored"]) == (1e5, 6, 2)
    assert ahead["mean_log_error"] == pytest.approx(1.5 * np.log(2))  # predicted over observed
    assert ahead["rms_log_error"] == pytest.approx(np.log(2) * 2.5**0.5)
    assert [(r["observed"], r["predicted"]) for r in ahead["runs"]] == [(8, 16), (9, 36)]


def test_errors_of_an_extrapolation_are_logs_of_predicted_over_found():
    laws = [PowerLaw(k, exponent, np.empty((0, 2))) for k, exponent in ((2.0, 0.5), (3.0, 0.25))]
    ahead = approaches._ahead(*laws, 1e4, 1e8, 1e4, 6e2)  # 2e4 and 3e2 are predicted
    assert (ahead["below"], ahead["flops"]) == (1e4, 1e8)
    assert [ahead["n_star"], ahead["d_star"]] == pytest.approx([2e4, 3e2])
    assert ahead["n_log_error"] == pytest.approx(np.log(2))
    assert ahead["d_log_error"] == pytest.approx(-np.log(2))


def test_a_budgets_tokens_follow_from_its_size_and_its_edges_are_refused():
    n = np.array([1e6, 2e6, 4e6, 8e6, 16e6])
    for loss, side in (
        ([3.0, 3.1, 3.2, 3.3, 3.4], "smallest"),
        ([3.4, 3.3, 3.2, 3.1, 3.0], "largest"),
    ):
        runs = Points(n, 1e15 / n, np.full(5, 6e15), np.array(loss))
        reason = isoflop._refusal(runs, np.log(n / 4e6), np.array([3.0, 0.0, 0.1]))
        assert reason == f"the {side} sampled size has the lowest loss: the minimum is at the edge"
    assert np.exp(isoflop._log_tokens(runs, np.log(3e6))) == pytest.approx(1e15 / 3e6)
    inside = replace(runs, loss=np.array([3.4, 3.1, 3.0, 3.2, 3.3]))
    assert isoflop._refusal(inside, np.log(n / 4e6), np.array([3.0, 0.0, 0.1])) is None


def test_approach_2_intervals_widen_with_noise_and_cover():
    quiet, loud = (fit_isoflop(points(noise=s), resamples=300) for s in (1e-4, 3e-3))
    width = [np.diff(fit.n_law.interval())[0] for fit in (quiet, loud)]
    assert width[1] > 3 * width[0]
    low, high = loud.n_law.interval()
    assert low < LAW.a < high


def test_unresolved_budgets_are_refused_in_words_and_leave_no_exponent():
    n = np.geomspace(1e6, 1e8, 6)
    concave = [{"params": v, "flops": 1e18, "loss": 3 - 0.01 * np.log(v / 1e7) ** 2} for v in n]
    falling = [{"params": v, "flops": 1e19, "loss": 2 + (v / 1e6) ** -0.5} for v in n]
    few = [{"params": v, "flops": 1e20, "loss": 2.0} for v in n[:3]]
    fit = fit_points(from_rows([*concave, *falling, *few]), 2, resamples=50)
    reasons = [budget["refused"] for budget in fit["budgets"]]
    assert "concave" in reasons[0]
    assert "edge" in reasons[1] or "above the largest" in reasons[1]
    assert "3 model sizes" in reasons[2]
    assert [fit["a"], fit["b"], fit["frontier"]] == [None, None, []]
    assert fit["refused"].startswith("0 of 3 budgets")
    assert all(budget["n_star"] is None for budget in fit["budgets"])
    json.dumps(fit, allow_nan=False)


def test_one_refused_budget_does_not_enter_the_exponent():
    good = points(budgets=(1e18, 1e19, 1e20))
    edge = points(budgets=(1e21,), center=LAW.compute_optimal(1e21)[0] * 20, span=3.0)
    both = Points(
        *(
            np.concatenate([getattr(good, k), getattr(edge, k)])
            for k in ("params", "tokens", "flops", "loss")
        )
    )
    alone, fit = fit_isoflop(good, 20), fit_isoflop(both, 20)
    assert fit.budgets[-1].refused
    assert fit.n_law.exponent == alone.n_law.exponent


def test_precise_runs_count_for_more():
    table = points(budgets=(1e18,), sizes=5)
    loss = table.loss.copy()
    loss[0] += 0.05
    stderr = np.array([1.0, 1e-3, 1e-3, 1e-3, 1e-3])
    weighted = fit_isoflop(Points(table.params, table.tokens, table.flops, loss, stderr), 0)
    plain = fit_isoflop(Points(table.params, table.tokens, table.flops, loss), 0)
    truth = LAW.compute_optimal(1e18)[0]
    error = [abs(np.log(fit.budgets[0].n_star / truth)) for fit in (weighted, plain)]
    assert error[0] < error[1] / 3


def test_budgets_are_clusters_of_equal_compute_or_the_named_column():
    table = points(budgets=(1e18, 1e19))
    wobble = np.exp(np.random.default_rng(0).uniform(-0.04, 0.04, len(table)))
    near = Points(table.params, table.tokens, table.flops * wobble, table.loss)
    assert [len(b.points) for b in fit_isoflop(near, 0).budgets] == [9, 9]
    rows = [
        {"params": p, "flops": f, "loss": v, "budget": f"{i % 2}"}
        for i, (p, f, v) in enumerate(zip(near.params, near.flops, near.loss, strict=True))
    ]
    assert len(fit_isoflop(from_rows(rows), 0).budgets) == 2
