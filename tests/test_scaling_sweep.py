"""The planned grid spends its budgets, brackets the minimum and says what it leaves out."""

import math

import pytest

from rlhf_jax.config import ConfigError
from rlhf_jax.scaling.flops import train_flops
from rlhf_jax.scaling.sweep import (
    batch_rows,
    check_lr,
    depth,
    isoflop_grid,
    isoflop_plan,
    ladder,
    learning_rate,
)

SHAPES = ladder((64, 80, 96, 112, 128, 144, 160, 192, 256), vocab=1024, head_width=16)
BUDGETS = (1e14, 3e14, 1e15)


def test_every_point_spends_its_budget_in_whole_batches():
    for p in isoflop_grid(BUDGETS, SHAPES, seq_len=128, batch=64, min_sizes=4):
        assert p.tokens == p.steps * p.batch * p.seq_len
        assert p.steps >= 60
        assert p.flops == train_flops(p.model, 128, p.tokens)
        assert abs(p.flops / p.budget - 1) < 0.01
        assert 2 <= p.tokens / p.params <= 200


def test_every_budget_draws_on_one_ladder_and_keeps_enough_sizes():
    points = isoflop_grid(BUDGETS, SHAPES, seq_len=128, batch=64, min_sizes=4)
    for budget in BUDGETS:
        kept = [p.model for p in points if p.budget == budget]
        assert len(kept) >= 4
        assert set(kept) <= set(SHAPES)
    assert len({p.name for p in points}) == len(points)
    (odd, *_) = isoflop_plan((1.5e14,), SHAPES, 128, 64).points
    assert odd.name.startswith("c1_5e14-d")


def test_small_token_counts_get_small_batches():
    assert batch_rows(64 * 128 * 60, 128, 64) == 64
    assert batch_rows(64 * 128 * 59, 128, 64) == 32
    assert batch_rows(10, 128, 64) == 1


def test_everything_left_out_has_a_reason():
    plan = isoflop_plan(BUDGETS, SHAPES, 128, 64, available_tokens=2e7)
    assert len(plan.points) + len(plan.refused) == len(BUDGETS) * len(SHAPES)
    assert any("needs" in text and "corpus has 2e+07" in text for text in plan.refused)
    assert any("too large for the budget" in text for text in plan.refused)


def test_a_budget_with_too_few_sizes_is_refused_naming_the_others():
    with pytest.raises(
        ConfigError, match=r"(?s)budget 1e\+10 keeps 0 of 9 shapes.*c1e10-d64-l2"
    ) as e:
        isoflop_grid((1e10,), SHAPES, 128, 64)
    assert str(e.value).count("too large") == 9
    with pytest.raises(ConfigError, match="not a positive number"):
        isoflop_grid((math.nan,), SHAPES, 128, 64)


def test_the_ladder_follows_its_stated_laws():
    assert [m.layers for m in SHAPES] == [depth(m.width) for m in SHAPES]
    assert {m.C for m in SHAPES} == {16}
    assert depth(64) == 2
    assert depth(512) == 16
    with pytest.raises(ConfigError, match="not a multiple of the head width 32"):
        ladder((100,), 1024)


def test_learning_rate_is_a_power_law_in_parameters():
    assert learning_rate(1e5) == pytest.approx(1.6e-2)
    assert learning_rate(1e6) == pytest.approx(1.6e-2 * 10**-0.9)


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
