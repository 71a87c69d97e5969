"""Approach 1 on curves and on final losses of known laws, and what it refuses."""

import json
import re

import numpy as np
import pytest

from rlhf_jax.laws import envelope
from rlhf_jax.laws.approaches import fit_curves, fit_points
from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.laws.curves import Curve
from rlhf_jax.laws.envelope import GRID, fit_end_points, fit_envelope, monotone
from rlhf_jax.laws.points import FitError, Points

LAW = Chinchilla(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)


def ladder(noise=0.0, sizes=None, horizons=9, law=LAW, seed=0):
    """Final losses of fixed sizes, each trained to the horizons at which it is neither tiny nor
    huge."""
    sizes = np.geomspace(2e7, 2e10, 25) if sizes is None else sizes
    n, c = (v.ravel() for v in np.meshgrid(sizes, np.geomspace(1e18, 1e22, horizons)))
    ratio = c / (6 * n * n)
    n, c = n[(ratio > 0.5) & (ratio < 500)], c[(ratio > 0.5) & (ratio < 500)]
    wobble = np.exp(np.random.default_rng(seed).normal(size=len(n)) * noise)
    return Points(n, c / (6 * n), c, law.loss(n, c / (6 * n)) * wobble)


def curves(law=LAW, sizes=None):
    """Training curves of a known law."""
    out = []
    for n in np.geomspace(2e7, 2e10, 25) if sizes is None else sizes:
        d = n * np.geomspace(1, 400, 300)
        out.append(Curve(f"{n:.3g}", float(n), 6 * n * d, d, law.loss(n, d)))
    return out


def test_the_envelope_of_constant_rate_curves_has_the_laws_exponent():
    fit = fit_envelope(curves(), valid_from=0.0, resamples=0)
    assert fit.refused is None
    assert len(fit.flops) == GRID
    assert fit.n_law.exponent == pytest.approx(LAW.a, abs=0.01)
    assert fit.d_law.exponent == pytest.approx(LAW.b, abs=0.01)
    middle = 1e20
    assert fit.n_law.k * middle**fit.n_law.exponent == pytest.approx(
        LAW.compute_optimal(middle)[0], rel=0.05
    )


def test_every_kept_point_is_the_least_loss_there_and_held_by_no_edge_size():
    every = curves()
    fit = fit_envelope(every, valid_from=0.0, resamples=0)
    for i in np.flatnonzero(fit.kept)[::50]:
        there = [c for c in every if c.flops[0] <= fit.flops[i] <= c.flops[-1]]
        losses = [LAW.loss(c.params, fit.flops[i] / (6 * c.params)) for c in there]
        assert there[int(np.argmin(losses))].params == pytest.approx(fit.params[i])
        assert fit.loss[i] == pytest.approx(min(losses), rel=1e-4)
        assert min(c.params for c in there) < fit.params[i] < max(c.params for c in there)


def test_a_loss_inside_a_schedule_does_not_count():
    """Losses dip below the law in the middle of their schedules, as no schedule that ends there
    does."""
    runs = []
    for n in np.geomspace(1e8, 1e10, 16):
        for c in np.geomspace(1e19, 1e22, 20):
            if 0.5 < c / (6 * n * n) < 500:
                at = c * np.geomspace(0.01, 1, 60)
                left = np.maximum(1 - at / c, 0)
                loss = LAW.loss(n, at / (6 * n)) - 0.5 * (1 - left**0.5) * (at < 0.8 * c)
                runs.append(Curve(f"{n:.3g}/{c:.3g}", float(n), at, at / (6 * n), loss))
    ends, whole = (fit_envelope(runs, valid_from=v, resamples=0) for v in (0.9, 0.0))
    assert ends.n_law.exponent == pytest.approx(LAW.a, abs=0.02)
    low = LAW.loss(*LAW.compute_optimal(ends.flops))
    held = ends.holder >= 0
    assert (ends.loss[held] >= low[held] * 0.999).all()
    assert (whole.loss < low * 0.999).any()


def test_final_losses_alone_give_the_exponent():
    fit = fit_end_points(ladder(), resamples=0)
    assert fit.n_law.exponent == pytest.approx(LAW.a, abs=0.01)
    assert fit.n_law.exponent + fit.d_law.exponent == pytest.approx(1, abs=1e-6)


def test_a_resample_is_the_fit_of_the_runs_that_it_drew(monkeypatch):
    """Also where resamples differ in the horizons that they drew, and in their weights."""
    table = ladder(noise=0.002)
    table = table.take(np.repeat(np.arange(len(table)), 2))
    table.loss[1::2] *= 1.01  # two seeds a horizon
    counts = np.random.default_rng(1).integers(1, 3, (3, len(table)))
    middle = np.flatnonzero((table.flops > 1.1e18) & (table.flops < 9e21))
    for row, gone in zip(counts, (middle[20:22], middle[60:62], middle[:0]), strict=True):
        row[gone] = 0
    monkeypatch.setattr(envelope, "EVERY", 1)
    monkeypatch.setattr(envelope, "resampled_counts", lambda n, resamples, rng: counts)
    draws = fit_end_points(table, resamples=3).n_law.draws
    for row, draw in zip(counts, draws, strict=True):
        alone = fit_end_points(table.take(np.repeat(np.arange(len(table)), row)), resamples=0)
        assert draw[1] == pytest.approx(alone.n_law.exponent, rel=1e-9)
    assert len(set(draws[:, 1])) == 3


def test_the_interpolation_goes_through_its_points_is_monotone_and_ends_with_them():
    rng = np.random.default_rng(0)
    for count in (2, 3, 4, 8):
        x, y = np.sort(rng.normal(size=(2, count)))
        np.testing.assert_allclose(monotone(x, y, x), y, atol=1e-12)
        assert (np.diff(monotone(x, y, np.linspace(x[0], x[-1], 200))) >= -1e-12).all()
        assert np.isnan(monotone(x, y, np.array([x[0] - 0.1, x[-1] + 0.1]))).all()


def test_intervals_cover_the_law_widen_with_noise_and_are_seeded():
    quiet, loud, again = (
        fit_end_points(ladder(noise), resamples=200) for noise in (0.001, 0.01, 0.01)
    )
    for fit in (quiet, loud):
        low, high = fit.n_law.interval()
        assert low < LAW.a < high
    assert np.diff(loud.n_law.interval()) > np.diff(quiet.n_law.interval())
    assert loud.n_law.interval() == again.n_law.interval()


def test_a_bootstrap_over_curves_is_a_bootstrap_over_runs():
    """Against envelopes made one by one from the curves that each resample drew."""
    every = curves(sizes=np.geomspace(1e8, 1e9, 8))
    fit = fit_envelope(every, valid_from=0.0, resamples=30, seed=3)
    counts = np.random.default_rng(3).multinomial(8, np.full(8, 1 / 8), 30)
    compared = 0
    for drawn, line in zip(counts, fit.n_law.draws, strict=True):
        part = [c for c, k in zip(every, drawn, strict=True) if k]
        alone = fit_envelope(part, valid_from=0.0, resamples=0)
        if alone.n_law and np.isfinite(line[1]) and {0, 7} <= set(np.flatnonzero(drawn)):
            assert line[1] == pytest.approx(alone.n_law.exponent, abs=0.01)
            compared += 1
    assert compared > 2


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (ladder(horizons=2), "0 of .* sizes were trained to 3 or more horizons"),
        (ladder(sizes=np.geomspace(1e8, 1e9, 3)), "1 sizes hold a part"),
        (ladder(sizes=np.geomspace(4e8, 4.8e8, 7)), "decades of compute"),
    ],
)
def test_too_few_horizons_holders_or_decades_are_refused(points, message):
    fit = fit_points(points, 1, resamples=20)
    assert re.search(message, fit["refused"])
    assert [fit["a"], fit["b"], fit["frontier"]] == [None, None, []]


def test_bad_curves_are_refused_in_words():
    good = curves()[0]
    with pytest.raises(FitError, match="flops must rise"):
        fit_envelope([Curve("x", 1e6, good.flops[::-1], good.tokens, good.loss)])
    with pytest.raises(FitError, match="loss must be positive and finite"):
        fit_envelope([Curve("x", 1e6, good.flops, good.tokens, good.loss * np.nan)])
    with pytest.raises(FitError, match="0 curves"):
        fit_curves([])
    with pytest.raises(FitError, match="valid_from 1"):
        fit_envelope([good], valid_from=1.0)


def test_the_result_is_json_with_its_runs_and_a_prediction_of_the_largest_budget():
    table = ladder()
    fit = fit_points(table, 1, resamples=20)
    json.dumps(fit, allow_nan=False)
    assert len(fit["points"]) == len(table) == fit["n"]
    assert set(fit["envelope"][0]) == {"flops", "params", "tokens", "loss", "label", "kept"}
    ahead = fit["extrapolation"]
    assert ahead["below"] < ahead["flops"]
    assert abs(ahead["n_log_error"]) < 0.2
    assert abs(ahead["n_log_error"] + ahead["d_log_error"]) < 0.02
    of_curves = fit_curves(curves(), valid_from=0.0, resamples=20)
    json.dumps(of_curves, allow_nan=False)
    assert of_curves["a"] == pytest.approx(LAW.a, abs=0.01)
    assert len(of_curves["points"]) == 25
