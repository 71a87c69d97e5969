"""A study file can define a kind of cell, and every command works with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny_models import tiny_corpus_config

from rlhf_jax import cli
from rlhf_jax.study import load_study
from rlhf_jax.study.cell import KNOWN
from rlhf_jax.study.config import ConfigError, to_json
from rlhf_jax.study.files import read_json
from rlhf_jax.study.populations import populations
from rlhf_jax.study.runs import Runs
from rlhf_jax.worker import written as results_of

PROBE = Path(__file__).parents[1] / "experiments" / "probe.py"
STUDY = """
from dataclasses import dataclass

from rlhf_jax.kinds import Pretrain
from rlhf_jax.study import Study
from rlhf_jax.study.cell import Cell

STEP = 2


@dataclass(frozen=True)
class TallyResult:
    tally: int


@dataclass(frozen=True)
class Tally(Cell):
    KIND = "tally"
    PARENTS = {"base": "language_model"}
    RESULT = TallyResult
    base: str = "base"
    times: int = 1


def count(times):
    return STEP * times  # a comment


def run(context, cell) -> TallyResult:
    return TallyResult(count(cell.times))


def study(tiny):
    return Study("own", (Pretrain("base"), Tally("tally")))
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Loads a study of this text, as a process of its own would."""

    def load(*changes, overrides=()):
        monkeypatch.delitem(KNOWN, "tally", raising=False)
        text = STUDY
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        path = tmp_path / "own_kind.py"
        path.write_text(text)
        return load_study(path, overrides=overrides)

    yield load
    KNOWN.pop("tally", None)


def test_its_run_id_depends_on_what_its_job_computes(written):
    ids = [
        written(*changes, overrides=overrides).run_ids("corpus")
        for changes, overrides in (
            ((), ()),
            ((), ()),
            ([("STEP = 2", "STEP = 3")], ()),
            ([("STEP * times", "STEP + times")], ()),
            ((), ["tally.times=2"]),
        )
    ]
    assert len({of["base"] for of in ids}) == 1
    first, again, constant, code, field = (of["tally"] for of in ids)
    assert first == again and len({first, constant, code, field}) == 4


def test_its_fields_parents_and_overrides_are_checked_like_any_others(written):
    assert written(overrides=["tally.times=3"])["tally"].times == 3
    for changes, overrides, message in (
        ((), ["tally.time=3"], r"unknown key 'time' in tally. Did you mean 'times'\?"),
        ([('Tally("tally")', 'Tally("tally", tmes=1)')], (), r"'tmes' for Tally. Did you mean"),
        ([('Tally("tally")', 'Tally("tally", base="other")')], (), r"'other', which is not"),
        ([('"language_model"', '"reward"')], (), "can be a reward: ensemble, reward, sft"),
        ([('KIND = "tally"', 'KIND = "sft"')], (), "is that of rlhf_jax.kinds.sft.cell.SFT"),
        ([('    KIND = "tally"\n', "")], (), "class Tally has no KIND"),
        ([("times: int = 1", "cost: int = 1"), ("cell.times", "2")], (), "has a field 'cost'"),
        ([("@dataclass(frozen=True)\nclass Tally(", "class Tally(")], (), "is not a dataclass"),
        ([("def run(", "def ran(")], (), r"own_kind:run' cannot be imported"),
        ([("def run(context, cell)", "def run(context)")], (), r"expected a function of \(context"),
        ([("    RESULT = TallyResult\n", "")], (), "RESULT = None; expected the frozen dataclass"),
        ([("-> TallyResult:", "-> dict:")], (), "returns dict; expected Tally.RESULT"),
    ):
        with pytest.raises(ConfigError, match=message):
            written(*changes, overrides=overrides)


def test_a_job_that_returns_something_else_than_its_result_is_an_error(written):
    cell = written()["tally"]
    result = cell.job_function()(None, cell)
    assert results_of(cell, result) == {"tally": 2}
    with pytest.raises(
        ConfigError, match=r"job study_own_kind:run returned .*; expected TallyResult"
    ):
        results_of(cell, {"tally": 2})


def test_it_trains_alone_and_has_no_section_unless_it_says_so(written):
    study = written()
    cls = type(study["tally"])
    assert populations(study) == {} and cls.report_section() is None
    study = written(("def study(", "def section(study):\n    return 'shown'\n\n\ndef study("))
    assert type(study["tally"]).report_section()(None) == "shown"


def test_the_probe_of_experiments_is_planned_run_reported_and_exported(tmp_path, capsys):
    corpus = to_json(tiny_corpus_config(tmp_path))
    overrides = [f"corpus.{k}={json.dumps(v)}" for k, v in corpus.items()]
    overrides += ["d16-64k.model.vocab=340", "d16-64k.tokens=2048", "d16-64k.batch=4"]
    words = [str(PROBE), "--tiny", "--runs", str(tmp_path / "runs")]
    assert cli.main(["plan", *words, *overrides]) == 0
    assert re.search(r"probe-d16-64k +probe +waiting", capsys.readouterr().out)
    assert cli.main(["run", *words, "--workers", "1", *overrides]) == 0
    capsys.readouterr()
    assert cli.main(["status", *words, "--json", *overrides]) == 0
    rows = json.loads(capsys.readouterr().out)["cells"]
    assert [(row["kind"], row["state"]) for row in rows] == [
        ("pretrain", "done"),
        ("probe", "done"),
    ]
    results = Path(rows[1]["folder"]) / "results"
    for name in ("next_token", "distance", "sentiment"):
        read = read_json(results / f"{name}.json")
        assert read["low"] <= read["accuracy"] <= read["high"]
        assert all(0 <= read[k] <= 1 for k in ("accuracy", "untrained", "shuffled", "majority"))
    folder = Runs(tmp_path / "runs").root / "studies" / "probe-tiny"
    assert "probe-d16-64k" in (folder / "report.html").read_text()
    exported = tmp_path / "exported"
    assert cli.main(["report", *words, "--export", str(exported), *overrides]) == 0
    kept = json.loads(next(exported.rglob("results.json")).read_text())
    assert {cell["kind"] for cell in kept["cells"]} == {"pretrain", "probe"}
