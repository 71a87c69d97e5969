"""The power-law regression against fifteen published exponents (Porian et al. 2024)."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.laws.isoflop import power_law
from rlhf_jax.laws.points import FitError

DATA = Path(__file__).parent / "data"
PUBLISHED = json.loads((DATA / "porian2024_fits.json").read_text())


def optima(setting):
    """(flops, n, n_star_std) of one setting, each (budgets,)."""
    with (DATA / "porian2024.csv").open(newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["setting"] == setting]
    return np.array([[float(r[k]) for k in ("flops", "n", "n_star_std")] for r in rows]).T


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: p["setting"])
def test_a_published_exponent_is_reproduced_with_and_without_weights(published):
    flops, n, std = optima(published["setting"])
    assert power_law(flops, n).exponent == pytest.approx(published["exponent"], abs=1e-4)
    weighted = power_law(flops, n, stderr=std).exponent
    assert weighted == pytest.approx(published["exponent_weighted"], abs=1e-4)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: p["setting"])
def test_our_interval_overlaps_the_published_one(published):
    flops, n, std = optima(published["setting"])
    noise = np.random.default_rng(0).normal(size=(1000, len(n))) * std
    law = power_law(flops, n, stderr=std, log_draws=np.log(n) + noise)
    low, high = law.interval()
    assert low < law.exponent < high
    assert max(low, published["interval"][0]) < min(high, published["interval"][1])


def test_all_fifteen_settings_are_there():
    assert len({p["setting"] for p in PUBLISHED}) == 15


def test_draws_without_some_budgets_use_the_others():
    flops, n = np.array([1e18, 1e19, 1e20]), np.array([1e8, 4e8, 1e9])
    draws = np.log(np.stack([n, [1e8, np.nan, 1e9], [np.nan, np.nan, 1e9]]))
    law = power_law(flops, n, log_draws=draws)
    assert law.draws[0] == pytest.approx([np.log(law.k), law.exponent])
    assert law.draws[1, 1] == pytest.approx(0.5)
    assert np.isnan(law.draws[2, 1])


@pytest.mark.parametrize(
    ("flops", "values", "stderr", "message"),
    [
        ([1e18], [1e8], None, "at least 2 distinct C"),
        ([1e18, 1e19], [1e8, np.nan], None, "needs values that are positive"),
        ([1e18, 1e19], [1e8, 1e9], [0.0, 1.0], "needs 1/stderr\\^2 that are positive"),
    ],
)
def test_what_no_line_goes_through_is_refused(flops, values, stderr, message):
    with np.errstate(divide="ignore"), pytest.raises(FitError, match=message):
        power_law(np.array(flops), np.array(values), None if stderr is None else np.array(stderr))
