"""The learning-rate law: what a sweep uses, how it is fitted, and when a fit says no."""

import math

import numpy as np
import pytest

from rlhf_jax.laws.learning_rate import B0, B_POWER, LR0, N0, N_POWER, check_lr, learning_rate
from rlhf_jax.laws.learning_rate_fit import fit_learning_rate
from rlhf_jax.laws.points import FitError
from rlhf_jax.study.config import ConfigError


def runs(lr0=0.02, n_power=0.6, b_power=0.4, noise=0.0, shift=0.0, curve=0.12):
    """Losses that are a parabola in ln lr around a known law; `shift` moves the rates that are
    tried."""
    rng = np.random.default_rng(0)
    rows = []
    for n in (2.6e4, 8e4, 1.95e5):
        for b in (512, 1024, 2048):
            best = lr0 * (n / N0) ** -n_power * (b / B0) ** b_power
            for factor in (0.2, 0.45, 1.0, 2.2, 4.8):
                lr = factor * best * math.exp(shift)
                loss = 3.0 + curve * math.log(lr / best) ** 2 + noise * rng.normal()
                rows.append(
                    {"params": n, "batch_tokens": b, "lr": lr, "loss": loss, "label": f"{n}"}
                )
    return rows


def test_the_law_in_use_is_a_power_law_in_size_and_batch():
    assert learning_rate(N0, B0) == pytest.approx(LR0)
    assert learning_rate(10 * N0, B0) == pytest.approx(LR0 * 10**-N_POWER)
    assert learning_rate(N0, 4 * B0) == pytest.approx(LR0 * 4**B_POWER)
    with pytest.raises(ConfigError, match="must be positive"):
        learning_rate(0, 1024)


def test_a_known_law_is_recovered_wherever_the_rates_lie():
    for shift in (0.0, 0.5, -0.6):
        fit = fit_learning_rate(runs(shift=shift))
        assert fit["lr0"] == pytest.approx(0.02, rel=1e-6)
        assert fit["n_power"] == pytest.approx(0.6, abs=1e-6)
        assert fit["b_power"] == pytest.approx(0.4, abs=1e-6)
        assert fit["residual_sd"] < 1e-6


def test_noise_widens_the_intervals_and_they_cover():
    fit = fit_learning_rate(runs(noise=0.01))
    for name, truth in (("lr0", 0.02), ("n_power", 0.6), ("b_power", 0.4)):
        low, high = fit["intervals"][name]
        assert low < truth < high
        assert high - low > 0.01 * truth


def test_intervals_are_those_of_the_regression_in_logs():
    """9 groups and 3 coefficients: 6 degrees of freedom, for which Student's t is 2.446912."""
    fit = fit_learning_rate(runs(noise=0.01))
    n, b, best = (
        np.log([g[k] for g in fit["groups"]]) for k in ("params", "batch_tokens", "best_lr")
    )
    X = np.stack([np.ones(9), np.log(N0) - n, b - np.log(B0)], 1)
    theta, (squares,), *_ = np.linalg.lstsq(X, best)
    assert fit["residual_sd"] == pytest.approx((squares / 6) ** 0.5)
    half = 2.446912 * fit["residual_sd"] * np.sqrt(np.diag(np.linalg.inv(X.T @ X)))
    low, high = fit["intervals"]["n_power"]
    assert [low, high] == pytest.approx([theta[1] - half[1], theta[1] + half[1]], rel=1e-5)


def test_a_group_without_a_bracketed_minimum_is_left_out_and_named():
    rows = runs()
    edge = [
        r for r in rows if not (r["params"] == 8e4 and r["batch_tokens"] == 512 and r["lr"] > 0.02)
    ]
    for row in edge:
        if row["params"] == 2.6e4 and row["batch_tokens"] == 512 and row["lr"] > 0.1:
            row["loss"] = None  # diverged
    fit = fit_learning_rate(edge)
    assert fit["n_power"] == pytest.approx(0.6, abs=1e-6)
    assert len(fit["notes"]) == 1
    assert "80,000 parameters" in fit["notes"][0]
    assert "at an end" in fit["notes"][0]


def test_too_few_groups_or_one_batch_are_refused():
    with pytest.raises(FitError, match="1 batches"):
        fit_learning_rate([r for r in runs() if r["batch_tokens"] == 512])
    with pytest.raises(FitError, match="0 of 9 groups"):
        fit_learning_rate(runs(shift=4.0))


def test_lr_check_needs_worse_runs_on_both_sides():
    good = check_lr([(1e-3, 3.2, 0.01), (2e-3, 3.0, 0.01), (4e-3, 3.1, 0.01)])
    assert good.interior
    assert good.resolved
    assert good.best_lr == 2e-3
    assert not check_lr([(1e-3, 3.0, 0.01), (2e-3, 3.1, 0.01), (4e-3, 3.2, 0.01)]).interior
    flat = check_lr([(1e-3, 3.01, 0.01), (2e-3, 3.0, 0.01), (4e-3, 3.1, 0.01)])
    assert flat.interior
    assert not flat.resolved
    assert check_lr([(1e-3, 3.2, None), (2e-3, 3.0, None), (4e-3, math.nan, None)]).interior
    assert check_lr([(1e-3, math.inf, 0)] + [(v, math.nan, 0) for v in (1, 2)]).best_lr is None
    with pytest.raises(ConfigError, match="at least 3"):
        check_lr([(1e-3, 3.2, 0.01), (2e-3, 3.0, 0.01)])
