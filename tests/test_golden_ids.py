"""Run ids of the studies in experiments/ are what they were: kept results depend on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_jax.study import load_study

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STUDIES = sorted(p for p in EXPERIMENTS.glob("*.py") if "def study(" in p.read_text())
GOLDEN = json.loads((Path(__file__).parent / "golden_ids.json").read_text())


def test_every_study_has_golden_ids():
    assert {p.stem for p in STUDIES} == set(GOLDEN)


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
@pytest.mark.parametrize("form", ["tiny", "full"])
def test_run_ids_for_one_corpus_hash_are_the_stored_ones(path, form):
    assert load_study(path, form == "tiny").run_ids("corpus") == GOLDEN[path.stem][form]


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_run_ids_are_those_of_the_kept_results(path):
    study = load_study(path)
    kept = EXPERIMENTS / "results" / study.name / "results.json"
    if not kept.exists():
        pytest.skip(f"no results of {study.name} are kept")
    results = json.loads(kept.read_text())
    ids = {cell["name"]: cell["run_id"] for cell in results["cells"]}
    assert study.run_ids(results["corpus"]["hash"]) == ids
