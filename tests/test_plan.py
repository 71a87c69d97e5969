"""What a study is said to cost."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from rlhf_jax.cost.flops import flops_per_token, train_flops
from rlhf_jax.cost.memory import training_bytes
from rlhf_jax.kinds.between_cells import remarks
from rlhf_jax.study import Study
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import to_json
from rlhf_jax.study.files import write_json
from rlhf_jax.study.plan import calibrate, cell_plan, make_plan, remaining_paths, wall_seconds
from rlhf_jax.study.runs import Runs


def planned(study, tmp_path, **kw):
    plan = make_plan(study, Runs(tmp_path), **kw)
    return plan, {c.name: c for c in plan.cells}


def test_every_kind_of_cell_has_a_cost(rlhf_study, tmp_path):
    plan, cells = planned(rlhf_study, tmp_path)
    assert list(cells) == [c.name for c in rlhf_study.order()]
    for c in cells.values():
        assert min(c.params, c.sequences, c.tokens, c.flops, c.memory, c.disk, c.seconds) > 0
        assert c.state == "waiting"
    assert json.loads(json.dumps(plan.to_json()))["study"] == "all-kinds"


def test_flops_are_those_of_the_work(rlhf_study, tmp_path):
    _, cells = planned(rlhf_study, tmp_path)
    model = rlhf_study["base"].model
    heldout = 4096 * flops_per_token(model, 64) / 3
    assert cells["base"].flops == pytest.approx(train_flops(model, 64, 65_536) + heldout)
    # `longer` counts the tokens of the cell that it continues
    assert cells["longer"].tokens == 65_536
    s = 40  # prompt and response
    forward = flops_per_token(model, s) / 3 * s
    assert cells["sft"].flops == pytest.approx(3 * 128 * forward)
    assert cells["compare"].flops == pytest.approx((32 + 16) * 6 * forward)
    assert cells["reward"].flops == pytest.approx((3 * 32 + 16) * 6 * forward)
    # a rollout, four scores (policy, reference, critic, reward), 4 epochs of policy and critic
    assert cells["ppo"].flops == pytest.approx(3 * 8 * forward * (1 + 4 + 4 * 2 * 3))


def test_totals_add_up(rlhf_study, tmp_path):
    plan, cells = planned(rlhf_study, tmp_path, workers=2)
    totals = plan.totals()
    assert totals["flops"] == pytest.approx(sum(c.flops for c in cells.values()))
    assert totals["cells"] == totals["remaining_cells"] == len(cells)
    assert totals["wall_seconds"] <= totals["seconds"] * (1 + 1e-9)
    assert max(c.memory for c in cells.values()) < totals["memory"]


def test_more_work_needs_more_memory_and_time(rlhf_study, tmp_path):
    def base(**changes):
        cell = replace(rlhf_study["base"], **changes)
        return planned(Study("one", (cell,), rlhf_study.corpus), tmp_path)[1]["base"]

    assert base(batch=64).memory > base(batch=8).memory
    assert base(tokens=2**20).seconds > base(tokens=2**17).seconds
    remat = replace(rlhf_study["base"].model, layers=8, remat="full")
    deep = replace(remat, remat="none")
    assert base(batch=64, model=remat).memory < base(batch=64, model=deep).memory
    offload = replace(remat, remat="offload")  # products lie in the host's memory
    assert base(batch=64, model=offload).memory == base(batch=64, model=remat).memory


def test_memory_of_a_model_of_known_size_is_about_right(rlhf_study, tmp_path):
    """A large model in a batch of one row: 5 copies of its float32 parameters dominate."""
    model = replace(rlhf_study["base"].model, layers=12, width=768, heads=12)
    cell = replace(rlhf_study["base"], model=model, batch=1)
    one = planned(Study("one", (cell,), rlhf_study.corpus), tmp_path)[1]["base"]
    assert one.memory == pytest.approx(20 * one.params, rel=0.5)


def test_finished_cells_correct_the_rates_and_need_no_time(rlhf_study, tmp_path):
    runs = Runs(tmp_path)
    _, before = planned(rlhf_study, tmp_path, corpus_hash="c")
    folder = runs.folders(rlhf_study, "c")["base"]
    write_json(folder.path / "done.json", {"seconds": 100 * before["base"].seconds})
    plan, after = planned(rlhf_study, tmp_path, corpus_hash="c")
    assert plan.calibrated == 1 and after["base"].state == "done"
    assert after["longer"].seconds > 2 * before["longer"].seconds
    totals = plan.totals()
    assert totals["remaining_cells"] == 6
    assert totals["remaining_wall_seconds"] < totals["wall_seconds"]


def test_calibration_finds_overhead_and_rate_and_keeps_to_the_table_without_data():
    assert calibrate([]) == pytest.approx((10.0, 1.0))
    cells = [(w, 25.0 + 3.0 * w) for w in (0.1, 1.0, 10.0, 100.0, 300.0)] * 4
    overhead, factor = calibrate(cells)
    assert overhead == pytest.approx(25, rel=0.1) and factor == pytest.approx(3, rel=0.1)
    # small cells alone say nothing of the rate
    overhead, factor = calibrate([(0.01, 40.0)] * 20)
    assert overhead == pytest.approx(40, rel=0.1) and factor == pytest.approx(1, rel=0.1)
    assert min(calibrate([(100.0, 1.0), (1.0, 60.0)])) >= 0


def test_pretraining_cells_of_other_studies_correct_the_rates(rlhf_study, tmp_path):
    cell = replace(rlhf_study["base"], seed=99)
    folder = Runs(tmp_path).cell("other", "0123456789")
    write_json(folder.path / "config.json", {"kind": "pretrain", **to_json(cell)})
    write_json(folder.path / "done.json", {"seconds": 500.0})
    write_json(tmp_path / "cells" / "odd-1" / "config.json", {"model": 3})
    write_json(tmp_path / "cells" / "odd-1" / "done.json", {"seconds": 1.0})
    plan, cells = planned(rlhf_study, tmp_path)
    assert plan.calibrated == 1
    assert cells["base"].seconds > 15


def test_a_kind_without_a_cost_counts_as_nothing_and_the_plan_says_so(rlhf_study):
    @dataclass(frozen=True)
    class Odd(Cell):
        KIND = "odd"
        PARENTS = {"base": "language_model"}
        base: str = "base"

    study = replace(rlhf_study, cells=(*rlhf_study.cells, Odd("odd")))
    plan = cell_plan(study, study["odd"])
    assert (plan.flops, plan.tokens, plan.disk) == (0, 0, 0)
    assert plan.params == cell_plan(study, study["base"]).params
    assert "no cost is known for cells of kind 'odd'" in remarks(study)[-1]
    assert not [text for text in remarks(rlhf_study) if "no cost" in text]


def test_list_scheduling():
    parents = {"a": [], "b": [], "c": ["a"], "d": ["a", "b"]}
    seconds = {"a": 2.0, "b": 3.0, "c": 5.0, "d": 1.0}
    assert remaining_paths(seconds, parents) == {"a": 7.0, "b": 4.0, "c": 5.0, "d": 1.0}
    assert wall_seconds(seconds, parents, 1) == 11.0
    assert wall_seconds(seconds, parents, 2) == 7.0
    assert wall_seconds({}, parents, 2) == 0.0
    assert wall_seconds({"d": 1.0}, parents, 2) == 1.0  # its parents are done


def test_a_kept_cell_costs_nothing_until_a_cell_has_to_start_from_it(rlhf_study, tmp_path):
    runs = Runs(tmp_path)
    folders = runs.folders(rlhf_study, "c")
    for name in ("base", "longer", "sft"):
        folders[name].finish("kept.json", seconds=1.0, kept="results/x")

    def left():
        plan, cells = planned(rlhf_study, tmp_path, corpus_hash="c")
        assert cells["sft"].state == "kept"
        return plan.totals()["remaining_cells"]

    assert left() == 7  # compare starts from sft, which starts from longer, which continues base
    for name in ("compare", "reward", "ppo"):
        folders[name].finish(seconds=1.0)
    assert left() == 4  # evaluate still does
    folders["evaluate"].finish("kept.json", seconds=1.0, kept="results/x")
    assert left() == 0


def test_micro_batches_take_less_memory(rlhf_study, tmp_path):
    big = replace(rlhf_study["base"], batch=256)
    study = replace(
        rlhf_study,
        cells=(
            big,
            *(replace(c, batch=256) if c.name == "longer" else c for c in rlhf_study.cells[1:]),
        ),
    )
    _, whole = planned(study, tmp_path)
    _, split = planned(study, tmp_path, accumulate=4)
    model = big.model
    saved = training_bytes(model, 256, 64, 1) - training_bytes(model, 64, 64, 1)
    assert whole["base"].memory - split["base"].memory == pytest.approx(saved) and saved > 0
    assert split["ppo"].memory <= whole["ppo"].memory
    assert split["compare"].memory == whole["compare"].memory
