"""The planned grid spends its budgets, brackets the minimum and says what it leaves out."""

import math

import pytest

from rlhf_jax.cost.flops import all_conventions, train_flops
from rlhf_jax.kinds import Pretrain
from rlhf_jax.laws.grid import grid
from rlhf_jax.laws.sweep import (
    batch_rows,
    depth,
    grid_point,
    isoflop_grid,
    isoflop_plan,
    ladder,
    pretrain,
)
from rlhf_jax.laws.trunk import trunk_and_branch
from rlhf_jax.study import Analysis, Study
from rlhf_jax.study.config import ConfigError, CorpusConfig, OptimConfig

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


def test_the_learning_rate_is_of_the_batch_that_is_trained():
    seen = []

    def lr(params, batch_tokens):
        seen.append((params, batch_tokens))
        return 0.5

    point = grid_point(1e12, SHAPES[0], 128, 512, lr=lr)
    assert point.batch < 512 and point.lr == 0.5
    assert seen == [(point.params, point.batch * 128)]


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


def test_a_point_becomes_a_cell_with_its_batch_tokens_and_rate():
    point = isoflop_grid(BUDGETS, SHAPES, 128, 64, min_sizes=4)[0]
    cell = pretrain(point, "mine", factor=3.0, seed=2)
    assert (cell.name, cell.tokens, cell.batch, cell.seed) == ("mine", point.tokens, point.batch, 2)
    assert cell.optim.lr == pytest.approx(3 * point.lr)
    assert pretrain(point).name == point.name


def test_a_trunk_is_trained_once_and_every_branch_ends_at_its_horizon():
    horizons = [2000, 3000, 4500, 6750]
    model = ladder((32,), 512, head_width=16)[0]
    trunk, branches = trunk_and_branch(
        "w", model, horizons, batch=1, seq_len=8, optim=OptimConfig()
    )
    Study("t", (*trunk, *branches), CorpusConfig(vocab=512, seq_len=8))  # the graph is sound
    assert [b.tokens for b in branches] == [h // 8 * 8 for h in horizons]
    assert [b.continues for b in branches] == [t.name for t in trunk]
    assert [t.continues for t in trunk] == [None, *(t.name for t in trunk[:-1])]
    assert {t.optim.schedule for t in trunk} == {"constant"}
    assert [t.optim.warmup > 0 for t in trunk] == [True, False, False, False]
    assert all(b.optim.warmup == 0 and b.optim.schedule == "linear" for b in branches)


def spent_tokens(cells: list[Pretrain]) -> int:
    """What is trained in all: a cell pays for what lies beyond the one it continues."""
    ends = {c.name: c.tokens for c in cells} | {None: 0}
    return sum(c.tokens - ends[c.continues] for c in cells)


@pytest.mark.parametrize(
    ("horizons", "published"),  # Haegele 2024
    [([100 ** (i / 3) for i in range(4)], 0.83), ([1.5**i for i in range(8)], 0.49)],
)
def test_trunk_and_branches_cost_the_published_share_of_whole_runs(horizons, published):
    model, tokens = ladder((32,), 512, head_width=16)[0], [round(8e4 * h) for h in horizons]
    cells = trunk_and_branch("w", model, tokens, batch=1, seq_len=8, optim=OptimConfig())
    share = spent_tokens([c for part in cells for c in part]) / sum(tokens)
    assert share == pytest.approx(published, abs=0.015)
    S = sum(horizons) / max(horizons)
    assert share == pytest.approx((0.8 + 0.2 * S) / S, abs=1e-3)


def test_horizons_without_a_step_of_their_own_are_refused():
    model = ladder((32,), 512, head_width=16)[0]
    for horizons in ([], [800, 800], [800, 804], [8]):
        with pytest.raises(ConfigError, match=r"horizons|leaves a branch"):
            trunk_and_branch("w", model, horizons, 1, 8, OptimConfig())


def test_the_grid_counts_seeds_conventions_and_what_a_branch_adds():
    point = isoflop_plan((1e15,), SHAPES, 128, 64).points[0]
    trunk, branches = trunk_and_branch(
        "w", point.model, [100_000, 200_000], 8, 128, OptimConfig(lr=1e-3)
    )
    seeds = [pretrain(point, f"c-{seed}", seed=seed) for seed in range(3)]
    study = Study(
        "t",
        (*seeds, *trunk, *branches),
        CorpusConfig(vocab=1024),
        (Analysis("isoflop", ("c-*",)), Analysis("isoflop", ("w-branch*",))),
    )
    first, small, large = grid(study, "h100", 0.5)
    assert first["seeds"] == 3
    assert first["flops"] == all_conventions(point.model, 128, point.tokens)
    assert first["chip_hours"] == pytest.approx(3 * point.flops / (989e12 * 0.5 * 3600))
    assert (
        small["steps"] + large["steps"]
        == sum(b.tokens - t.tokens for b, t in zip(branches, trunk, strict=True)) // 1024
    )
    with pytest.raises(ConfigError, match="MFU is 2"):
        grid(study, "h100", 2.0)
    with pytest.raises(ConfigError, match="h100"):
        grid(study, "h1000", 0.4)
