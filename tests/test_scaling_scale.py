"""Tables of many runs: shortcuts give what the whole computation gives; budgets are found by
gaps."""

import numpy as np
import pytest

from rlhf_jax.laws import isoflop, solve, surface
from rlhf_jax.laws.budgets import by_gaps, groups
from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.laws.fit import fit, point
from rlhf_jax.laws.points import Points
from rlhf_jax.laws.solve import HUBER_LOG
from rlhf_jax.tools.bench import scale_fit

LAW = Chinchilla(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


def study(noise, sizes=7):
    """`sizes` runs around the optimum of each of five budgets."""
    flops = np.repeat(np.geomspace(1e18, 1e20, 5), sizes)
    params = LAW.compute_optimal(flops)[0] * np.tile(np.geomspace(0.25, 4, sizes), 5)
    wobble = np.random.default_rng(0).normal(size=len(flops)) * noise
    tokens = flops / (6 * params)
    return Points(params, tokens, flops, LAW.loss(params, tokens) * np.exp(wobble))


def many(n, seed=0):
    rng = np.random.default_rng(seed)
    flops = np.exp(rng.uniform(np.log(1e18), np.log(1e21), n))
    params = LAW.compute_optimal(flops)[0] * np.exp(rng.uniform(-1.4, 1.4, n))
    tokens = flops / (6 * params)
    return Points(
        params, tokens, flops, LAW.loss(params, tokens) * np.exp(0.005 * rng.normal(size=n))
    )


def problem(points):
    return Chinchilla.problem(points, None, {})


@pytest.fixture(scope="module")
def points():
    return many(400)


def test_starts_on_a_sample_end_at_the_same_law(points, monkeypatch):
    whole, law = fit(Chinchilla, points, 0), point(Chinchilla, points)
    monkeypatch.setattr(solve, "MANY", 150)
    found = fit(Chinchilla, points, 0)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found.law, name) == pytest.approx(getattr(whole.law, name), rel=1e-5)
        assert getattr(point(Chinchilla, points), name) == pytest.approx(
            getattr(law, name), rel=1e-5
        )
    assert found.objective == pytest.approx(whole.objective, rel=1e-9)
    assert found.n == len(found.residuals) == 400


def test_a_law_of_a_sample_is_the_same_law_in_the_centring_of_all_runs(points):
    whole = problem(points)
    sample = whole.take(np.arange(50))
    theta = np.array([-1.0, -1.2, 0.6, 0.3, 0.4])
    same = whole.values(whole.moved(theta, sample))
    assert same == pytest.approx(sample.values(theta), rel=1e-12)


def test_deleted_residuals_of_many_runs_are_near_those_of_fits_without_each(points, monkeypatch):
    s = problem(points)
    theta = s.theta(point(Chinchilla, points).values)
    exact = s.deleted_residuals(theta)
    monkeypatch.setattr(solve, "MANY", 10)
    quick, plain = s.deleted_residuals(theta), -s.residual(theta[None])[0][0]
    error = np.abs(quick - exact).mean()
    assert error < 0.1 * np.abs(plain - exact).mean()
    assert np.corrcoef(quick - plain, exact - plain)[0, 1] > 0.95


def test_resamples_in_blocks_are_those_drawn_at_once(points, monkeypatch):
    """Blocks of rows of the same draws; the law of each draw does not depend on its neighbours."""
    few = points.take(np.arange(0, 400, 16))
    whole = fit(Chinchilla, few, 12)
    monkeypatch.setattr(solve, "ELEMENTS", 75)
    assert problem(few).block == 3
    assert fit(Chinchilla, few, 12).resampled == pytest.approx(whole.resampled, rel=1e-6)
    monkeypatch.setattr(surface, "DRAWN", 200)
    assert fit(Chinchilla, few, 12).resampled.shape == (12, 5)


def test_curvature_by_moments_is_that_of_the_jacobian(points):
    s = problem(points)
    rng = np.random.default_rng(0)
    theta = np.array([-1.0, -1.0, 0.6, 0.3, 0.4]) + 0.1 * rng.normal(size=(3, 5))
    r, shares = s.residual(theta)
    w = rng.normal(size=r.shape)
    J = s.jacobian(shares)
    assert s._outer(w, shares) == pytest.approx(
        np.einsum("rn,irn,jrn->rij", w, J, J), rel=1e-9, abs=1e-9
    )
    assert s.gradient(shares, w) == pytest.approx(np.einsum("rn,irn->ri", w, J), rel=1e-9, abs=1e-9)


def test_the_hessian_is_the_gradients_derivative(points):
    theta = np.array([-1.0, -1.0, 0.6, 0.3, 0.4])
    s = problem(points)
    s.observed = (
        s.observed + s.residual(theta[None])[0][0] * 0.97
    )  # residuals of both kinds, none at the kink
    size = np.abs(s.residual(theta[None])[0])
    assert size.min() < HUBER_LOG.delta < size.max()
    assert np.abs(size - HUBER_LOG.delta).min() > 1e-7
    numeric = np.stack([(s(theta + h)[1] - s(theta - h)[1]) / 2e-9 for h in 1e-9 * np.eye(5)])
    assert s.hessian(theta) == pytest.approx(numeric, rel=1e-3, abs=1e-4 * np.abs(numeric).max())


@pytest.mark.parametrize(
    ("scatter", "step", "sizes"), [(0.0, 1.5, 4), (0.05, 3.0, 7), (0.08, 3.0, 9), (0.05, 1.5, 7)]
)
def test_budgets_are_cut_at_gaps(scatter, step, sizes):
    wobble = np.random.default_rng(1).uniform(1 - scatter, 1 + scatter, (5, sizes))
    flops = (1e18 * step ** np.arange(5))[:, None] * wobble
    order = np.random.default_rng(2).permutation(flops.size)
    found = by_gaps(flops.ravel()[order])
    assert [sorted(order[group] // sizes) for group in found] == [[k] * sizes for k in range(5)]


def test_compute_without_gaps_is_cut_in_tenths_and_names_are_compared_as_numbers():
    found = by_gaps(np.geomspace(1e18, 1e20, 400))
    assert all(np.ptp(group) < 10 for group in found)
    assert sum(map(len, found)) == 400
    runs = study(0.0)
    names = ("1e18", "1e+18", "1.00E18", "1 000 000 000 000 000 000", "10^18", "1e18", "1e18")
    budget = (*names, *("3.2e18",) * 7, *("1e19",) * 7, *("3.2e19",) * 7, *("1e20",) * 7)
    near = (*budget[:6], "1.02e18", *budget[7:])  # achieved, not planned
    named = Points(runs.params, runs.tokens, runs.flops, runs.loss, budget=near)
    assert [len(group) for group in groups(named)] == [7] * 5
    words = Points(runs.params, runs.tokens, runs.flops, runs.loss, budget=("small", *budget[1:]))
    assert [len(group) for group in groups(words)] == [1, 6, 7, 7, 7, 7]


def test_parabolas_of_many_runs_are_resampled_in_blocks(monkeypatch):
    runs = study(0.005, sizes=40)
    whole = isoflop.fit_isoflop(runs, 300)
    monkeypatch.setattr(isoflop, "DRAWN", 4000)
    low, high = isoflop.fit_isoflop(runs, 300).n_law.interval()
    assert [low, high] == pytest.approx(whole.n_law.interval(), abs=0.3 * (high - low))


def test_the_bench_of_fits_prints_a_line_a_size(capsys):
    assert scale_fit.main(["--rows", "60", "--approach", "2", "--resamples", "10"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["rows", "CPU", "s", "peak", "MiB", "a", "growth"]
    assert line.split()[0] == "60"
    assert float(line.split()[2]) > 20
