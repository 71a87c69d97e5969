"""Fits against a public table, known laws, and data that show no law."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from rlhf_jax.scaling.fits import fit_file, fit_points
from rlhf_jax.scaling.isoflop import fit_isoflop
from rlhf_jax.scaling.parametric import Law, _Surface, fit_parametric
from rlhf_jax.scaling.points import FitError, Points, from_rows, read_table

TABLE = Path(__file__).parent / "data" / "kyo_takano.csv"
COLUMNS = {"params": "N", "tokens": "D", "loss": "loss"}
LAW = Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


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


def test_an_independent_optimizer_finds_no_lower_objective():
    table = read_table(TABLE, COLUMNS)
    x, y, log_loss = np.log(table.params), np.log(table.tokens), np.log(table.loss)

    def objective(t):
        with np.errstate(over="ignore"):
            prediction = np.exp(t[2]) + np.exp(t[0] - t[3] * x) + np.exp(t[1] - t[4] * y)
        u = np.abs(np.log(prediction) - log_loss)
        return np.where(u <= 1e-3, u * u / 2, 1e-3 * (u - 5e-4)).sum() * 1e4

    best = min(
        minimize(
            objective, start, method="Nelder-Mead",
            options={"maxiter": 6000, "maxfev": 6000, "xatol": 1e-9, "fatol": 1e-11, "adaptive": True},
        ).fun / 1e4
        for start in ([6.0, 7.0, 0.5, 0.34, 0.34], [5.0, 6.0, 0.6, 0.3, 0.3])
    )  # fmt: skip
    ours = fit_parametric(table, resamples=0).objective
    assert best >= ours * (1 - 1e-9)
    assert best < ours * 1.05


def test_gradient_and_hessian_are_those_of_the_objective():
    surface = _Surface(points(noise=0.01))
    theta = np.array([-1.0, -1.2, 0.5, 0.3, 0.4])
    steps = np.eye(5) * 1e-6
    numeric = [(surface(theta + h)[0] - surface(theta - h)[0]) / 2e-6 for h in steps]
    np.testing.assert_allclose(surface(theta)[1], numeric, rtol=1e-5)
    rows = [(surface(theta + h)[1] - surface(theta - h)[1]) / 2e-6 for h in steps]
    np.testing.assert_allclose(surface.hessian(theta), rows, rtol=1e-4, atol=1e-2)


def test_approach_3_recovers_a_known_law_to_1e_4():
    fit = fit_parametric(points(), resamples=0)
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
    law = Law(1.7, 400.0, 400.0, 0.34, 0.34)
    fit = fit_isoflop(points(law=law, span=3.0), resamples=200)
    assert fit.n_law.exponent == pytest.approx(0.5, abs=1e-6)
    assert fit.d_law.exponent == pytest.approx(0.5, abs=1e-6)
    for budget in fit.budgets:
        assert budget.n_star == pytest.approx(law.compute_optimal(budget.flops)[0], rel=1e-3)
        low, high = budget.intervals()["n_star"]
        assert low <= budget.n_star * 1.001
        assert high >= budget.n_star * 0.999


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
    both = Points(*(np.concatenate([getattr(good, k), getattr(edge, k)])
                    for k in ("params", "tokens", "flops", "loss")))  # fmt: skip
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
    rows = [{"params": p, "flops": f, "loss": v, "budget": f"{i % 2}"}
            for i, (p, f, v) in enumerate(zip(near.params, near.flops, near.loss, strict=True))]  # fmt: skip
    assert len(fit_isoflop(from_rows(rows), 0).budgets) == 2


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("N,D,los\n1,2,3\n", COLUMNS, r"no column 'loss' \(for loss\). Did you mean 'los'"),
        ("N,D,loss\n1,2,3\n1,x,3\n", COLUMNS, r"t.csv:3, column 'D': tokens is 'x', not a number"),
        ("N,D,loss\n1,2,nan\n", COLUMNS, r"t.csv:2, column 'loss': loss is nan; it must be positive"),
        ("N,D,loss\n1,2,-3\n", COLUMNS, r"t.csv:2, column 'loss'"),
        ("N,D,loss\n1,2\n", COLUMNS, r"t.csv:2 does not have 3 fields"),
        ("N,loss\n1,2\n", {"params": "N"}, "two of them are needed"),
        ("N,D,loss\n1,2,3\n", {"parms": "N"}, "'parms' is not one of the roles. Did you mean 'params'"),
        ("N,D,loss\n", COLUMNS, "no rows"),
        ("N,D,loss\n1,2,3\n", COLUMNS, "at least 6 runs, not 1"),
        ("N,D,loss\n" + "1,2,3\n" * 9, COLUMNS, "have 1 and 1"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_naming_row_and_column(tmp_path, text, columns, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(FitError, match=message):
        fit_file(path, columns, approach=3, resamples=0)


def test_the_third_of_params_tokens_flops_follows_and_is_said(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"params": 1e6, "flops": 6e15, "val": 3.0, "id": "r-1"}\n')
    table = read_table(path, {"loss": "val", "label": "id"})
    assert table.tokens[0] == pytest.approx(1e9)
    assert table.labels == ("r-1",)
    assert table.notes == ("tokens computed as C / (6 N)",)
