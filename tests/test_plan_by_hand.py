"""Plans against numbers worked out by hand: FLOPs of the kinds of cells, bytes, rates and
schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_jax.cost.memory import sampling_bytes, training_bytes
from rlhf_jax.kinds import (
    DPO,
    PPO,
    SFT,
    BestOfN,
    Compare,
    Ensemble,
    Evaluate,
    Pretrain,
    Reward,
    TaskConfig,
)
from rlhf_jax.kinds.ppo.memory import rlhf_bytes
from rlhf_jax.study import Study, plan
from rlhf_jax.study.config import CorpusConfig, ModelConfig
from rlhf_jax.study.plan import (
    GFLOPS,
    WARM,
    CellPlan,
    StudyPlan,
    cell_plan,
    computing_seconds,
    make_plan,
    rate,
    wall_seconds,
)
from rlhf_jax.study.runs import Runs

MODEL = ModelConfig(layers=2, width=64, heads=4, vocab=256)
# Of MODEL, from its shapes: attention 4 D^2 and feed-forward 8 D^2 a layer, embedding V D, norms.
PARAMS = 2 * 12 * 64**2 + 256 * 64 + 5 * 64
S = 40  # tokens of prompt and response


def forward(tokens: int) -> float:
    """FLOPs of a forward pass over a row: 2 a weight, and 4 H C a layer for each of (s + 1) / 2
    keys."""
    return tokens * (2 * (2 * 12 * 64**2 + 256 * 64) + 2 * 4 * 64 * (tokens + 1) / 2)


def study(*cells) -> Study:
    first = (
        Pretrain("base", model=MODEL, tokens=65_536, batch=8),
        SFT("sft", base="base", examples=96, epochs=2),
        Compare("compare", policy="sft", prompts=32, heldout_prompts=16, k=3),
        Compare("more", policy="sft", prompts=8, heldout_prompts=16, k=3),
        Reward("reward", base="sft", comparisons="compare", batch=4),
        Reward("second", base="sft", comparisons="compare", batch=4, seed=1),
    )
    return Study(
        "s", (*first, *cells), CorpusConfig(vocab=256, seq_len=64, heldout_tokens=4096), members=1
    )


def planned(*cells, name: str | None = None) -> CellPlan:
    of = study(*cells)
    return cell_plan(of, of[name or cells[-1].name])


def heldout() -> float:
    return 4096 / 64 * forward(64)


def test_flops_of_every_kind_of_cell_by_hand():
    passes = forward(S)
    assert planned(name="base").params == PARAMS
    assert planned(name="base").flops == pytest.approx(3 * 1024 * forward(64) + heldout())
    longer = Pretrain("longer", model=MODEL, tokens=131_072, batch=8, continues="base")
    assert planned(longer).flops == pytest.approx(3 * 1024 * forward(64) + heldout())
    assert planned(name="sft").flops == pytest.approx(3 * 2 * 96 * passes)
    compare = planned(name="compare")
    assert compare.flops == compare.decode_flops == pytest.approx(48 * 3 * passes)
    assert planned(name="reward").flops == pytest.approx((3 * 32 * 3 + 16 * 3) * passes)
    few = Reward("few", base="sft", comparisons="compare", prompts=10, batch=4)
    assert planned(few).flops == pytest.approx((3 * 10 * 3 + 16 * 3) * passes)
    joined = Reward("joined", base="sft", comparisons="compare", earlier=("more",), batch=4)
    assert planned(joined).flops == pytest.approx((3 * 40 * 3 + 16 * 3) * passes)
    dpo = DPO("dpo", policy="sft", comparisons="compare", batch=4)
    assert planned(dpo).flops == pytest.approx((3 * 32 * 3 + 16 * 3 + 32 * 3) * passes + heldout())
    pair = Ensemble("pair", members=("reward", "second"))
    assert planned(pair).flops == pytest.approx(2 * 16 * 3 * passes)
    best = BestOfN("best", policy="sft", reward="reward", prompts=16, n=8)
    assert planned(best).decode_flops == pytest.approx(128 * passes)
    assert planned(best).flops == pytest.approx(2 * 128 * passes)
    look = Evaluate("look", before="base", after="sft", reward="reward", prompts=12)
    # 24 responses are sampled, and scored by both policies and the reward model
    assert planned(look).flops == pytest.approx(24 * 4 * passes + 2 * heldout())


def test_flops_of_ppo_by_hand():
    passes = forward(S)
    cell = PPO("ppo", policy="sft", reward="reward", iterations=3, batch=8, epochs=2, minibatches=2)
    # a rollout; scores by the reference, the policy, the critic and the reward model; 2 epochs of
    # two
    assert planned(cell).flops == pytest.approx(24 * passes * (1 + 4 + 2 * 3 * 2))
    shared = replace(cell, critic="shared")
    assert planned(shared).flops == pytest.approx(24 * passes * (1 + 3 + 2 * 3))
    mixed = replace(cell, ptx_coef=1.0, ptx_batch=4)
    more = planned(mixed).flops - planned(cell).flops
    assert more == pytest.approx(3 * (3 * 2 * 2 * 4) * forward(64))
    siblings = replace(cell, algorithm="rloo", samples=4)
    assert planned(siblings).flops == pytest.approx(96 * passes * (1 + 3 + 2 * 3))


def test_bytes_of_training_and_sampling_by_hand():
    batch, s, rows = 8, 64, 512
    layer = rows * (8 * 64 + 2 * 64 + 2 * 64 + 3 * 256) + 2 * batch * 4 * s * s
    kept, carried = 2 * layer, 2 * rows * 64
    logits = 3 * 4 * rows * 256  # float32 in every dtype
    weights = 5 * 4 * PARAMS
    assert training_bytes(MODEL, batch, s, 1) == weights + 4 * (kept + carried) + logits
    half = replace(MODEL, compute="bfloat16")
    assert training_bytes(half, batch, s, 1) == weights + 2 * (kept + carried) + logits
    again = replace(MODEL, remat="full")
    assert training_bytes(again, batch, s, 1) == weights + 4 * (layer + carried) + logits
    cache, scored = 2 * 2 * rows * 64, rows * (2 * 256 + 4 * 64 + 2 * 256)
    assert sampling_bytes(MODEL, batch, s, 3) == 4 * (3 * PARAMS + cache + scored)


def test_bytes_of_ppo_by_hand():
    task = TaskConfig(prompt_len=24, response_len=16)
    cell = PPO("ppo", policy="sft", reward="reward", batch=64, minibatches=2, task=task)
    parts = rlhf_bytes(cell, MODEL, MODEL, [MODEL, MODEL])
    assert parts["2 reward models"] == 2 * 4 * PARAMS and "average of the policy" not in parts
    update = 2 * training_bytes(MODEL, 32, S, trained=0)
    cache = sampling_bytes(MODEL, 64, S, models=0)
    assert parts["activations of an update or the sampler's cache"] == max(update, cache)
    averaged = replace(cell, ema=0.9, minibatches=64, critic="shared")
    parts = rlhf_bytes(averaged, MODEL, MODEL, [])
    assert parts["average of the policy"] == 4 * PARAMS
    assert training_bytes(MODEL, 1, S, trained=0) < cache
    assert parts["activations of an update or the sampler's cache"] == cache


def test_rates_lie_between_the_rows_of_the_table():
    assert rate(64, 1, False) == 28e9 and rate(64, 3, False) == 3 * 28e9
    assert rate(80, 1, False) == pytest.approx((0.75 * 28 + 0.25 * 42) * 1e9)
    assert rate(80, 3, True) == pytest.approx((0.75 * 300 + 0.25 * 1000) * 1e9)
    assert (
        rate(1, 1, False) == 1e9 * GFLOPS[16][0] and rate(10**6, 1, True) == 1e9 * GFLOPS[2048][1]
    )


def cell_of(name: str, **values) -> CellPlan:
    known = {
        "params": 1,
        "sequences": 1,
        "tokens": 10,
        "flops": 1e9,
        "decode_flops": 0.0,
        "memory": 1.0,
        "disk": 2.0,
        "seconds": 1.0,
    }
    return CellPlan(name, "sft", values.pop("parents", ()), **known | values)


def test_a_sampled_flop_takes_four_times_as_long():
    cell = cell_of("a", flops=10e9, decode_flops=4e9)
    seconds = (6e9 + 4 * 4e9) / 28e9
    assert computing_seconds(cell, MODEL, 1, False) == pytest.approx(seconds)


def test_totals_by_hand():
    cells = (
        cell_of("a", seconds=2.0, memory=5.0, state="done"),
        cell_of("b", seconds=3.0, memory=1.0, parents=("a",)),
        cell_of("c", seconds=4.0, memory=7.0, parents=("a",), state="failed"),
        cell_of("d", seconds=1.0, memory=3.0),
    )
    totals = StudyPlan("s", cells, workers=2, threads=1, calibrated=0).totals()
    assert totals["memory"] == 12.0 and totals["disk"] == 8.0 and totals["tokens"] == 40
    assert totals["seconds"] == 10.0 and totals["wall_seconds"] == 6.0
    assert totals["remaining_cells"] == 3 and totals["remaining_wall_seconds"] == 4.0


def test_of_ready_cells_the_one_with_the_longest_path_goes_first():
    parents = dict.fromkeys("abc", ())
    assert wall_seconds({"a": 1.0, "b": 1.0, "c": 5.0}, parents, 2) == 5.0
    chain = {"a": (), "b": (), "c": ("a",), "d": ("a",), "e": ("d",)}
    seconds = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 1.0, "e": 4.0}
    assert wall_seconds(seconds, chain, 2) == 6.0  # a, d, e beside b, c; with c before d it is 8


def test_seconds_are_overhead_and_work_at_the_rate_that_was_measured(tmp_path, monkeypatch):
    """Only the first cell of a shape compiles."""
    monkeypatch.setattr(plan, "calibrate", lambda measured: (7.0, 3.0))
    twin = Pretrain("twin", model=MODEL, tokens=65_536, batch=8, seed=1)
    wider = Pretrain("wider", model=MODEL, tokens=65_536, batch=16, seed=2)
    cells = {c.name: c for c in make_plan(study(twin, wider), Runs(tmp_path)).cells}
    work = cells["base"].flops / 28e9
    assert cells["base"].seconds == cells["wider"].seconds == pytest.approx(7 + 3 * work)
    assert cells["twin"].seconds == pytest.approx(7 * WARM + 3 * work)


def test_a_population_takes_the_memory_of_its_members_and_one_process(tmp_path):
    twin = Pretrain("twin", model=MODEL, tokens=65_536, batch=8, seed=1)
    together = replace(study(twin), members=2)
    alone, both = (
        {c.name: c for c in make_plan(s, Runs(tmp_path)).cells}["twin"]
        for s in (study(twin), together)
    )
    own = training_bytes(MODEL, 8, 64, trained=1)
    assert both.members == 2 and both.memory - alone.memory == pytest.approx(own)
