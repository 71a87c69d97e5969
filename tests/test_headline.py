"""What is shown beside a finished cell is what was measured, and it is called by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_results import whole

from rlhf_jax.kinds import KINDS
from rlhf_jax.report.headline import headline
from rlhf_jax.study.files import Damaged, write_json
from rlhf_jax.study.folder import CellFolder

RESULTS = Path(__file__).parent.parent / "experiments" / "results"
# Kind, result file, what a cell wrote there, and what is shown of it.
MEASURED = (
    (
        "pretrain",
        "heldout",
        {"loss": 3.53297, "stderr": 0.018222},
        "held-out loss 3.5330 ± 0.0182 nats a token",
    ),
    (
        "reward",
        "report",
        {"accuracy": 0.607, "accuracy_interval": [0.5961, 0.6189]},
        "held-out accuracy 60.7% [59.6%, 61.9%]",
    ),
    (
        "ppo",
        "ppo",
        {"step": 60, "reward_gold": 0.6512, "reward_proxy": 3.4},
        "gold reward of iteration 60 0.651",
    ),
    (
        "evaluate",
        "evaluation",
        {"gain": 0.67, "gain_interval": [0.6471, 0.6932], "gold_before": 0.1},
        "gain in gold reward 0.670 [0.647, 0.693]",
    ),
    ("compare", "compare", {"prompts": 2304, "k": 8}, "comparisons 2,304 prompts x 8"),
)


def kept(study: str) -> dict:
    return {
        c["name"]: c for c in json.loads((RESULTS / study / "results.json").read_text())["cells"]
    }


def folder_of(tmp_path, cell) -> CellFolder:
    """The cell's folder. kind: of the cell whose results are given in part."""
    folder = CellFolder(tmp_path / cell["name"])
    results = cell["results"]
    if "kind" not in cell:
        results = whole(KINDS[cell["name"]].RESULT, results)
    for stem, content in results.items():
        write_json(folder.results / f"{stem}.json", content)
    folder.finish(seconds=1.0)
    return folder


def test_every_kind_of_cell_has_a_headline():
    assert all(hasattr(cls.RESULT, "headline") for cls in KINDS.values())


@pytest.mark.parametrize(("kind", "stem", "result", "text"), MEASURED)
def test_the_headline_of_a_result_is_what_was_measured(tmp_path, kind, stem, result, text):
    found = headline(kind, folder_of(tmp_path, {"name": kind, "results": {stem: result}}))
    assert found is not None and found.text() == text


def test_every_finished_cell_that_is_kept_has_a_headline(tmp_path):
    for path in RESULTS.glob("*/results.json"):
        for kind in {c["kind"] for c in kept(path.parent.name).values()}:
            cell = next(
                c for c in kept(path.parent.name).values() if c["kind"] == kind and c["done"]
            )
            assert headline(kind, folder_of(tmp_path / path.parent.name, cell)) is not None


def test_other_headlines_by_hand(tmp_path):
    curve = [
        {"n": n, "gold_gain": g, "gold_gain_interval": [g - 0.1, g + 0.1]}
        for n, g in ((1, 0.0), (4, 0.25))
    ]
    groups = [
        {"shots": s, "n": n, "choice": c} for s, n, c in ((0, 30, 0.5), (0, 10, 0.9), (4, 40, 1.0))
    ]
    for kind, stem, result, text in (
        (
            "best_of_n",
            "best_of_n",
            {"curve": curve},
            "gold gain of the best of 4 0.250 [0.150, 0.350]",
        ),
        (
            "prompting",
            "prompting",
            {"shots": [4, 0], "groups": groups},
            "right choices, 0 shots 60.0% of 40",
        ),
        (
            "feedback",
            "feedback",
            {"train_records": 900, "validation_records": 200},
            "feedback 1,100 records",
        ),
        (
            "dpo",
            "dpo",
            {"accuracy": 0.8, "accuracy_interval": [0.7, 0.9]},
            "held-out accuracy 80.0% [70.0%, 90.0%]",
        ),
    ):
        cell = {"name": kind, "results": {stem: result}}
        found = headline(kind, folder_of(tmp_path, cell))
        assert found is not None and found.text() == text
        assert found.to_json()["text"] == text


def test_an_unfinished_cell_has_no_headline_and_a_damaged_one_none_either(tmp_path):
    folder = CellFolder(tmp_path / "a")
    write_json(folder.results / "heldout.json", {"loss": 3.0})
    assert headline("pretrain", folder) is None
    folder.finish()
    (folder.results / "heldout.json").write_text('{"loss": 2.0}')
    with pytest.raises(Damaged):
        headline("pretrain", folder)
