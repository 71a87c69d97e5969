"""A study file can define a kind of cell, and every command works with it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_corpus_config

from rlhf_jax import cli
from rlhf_jax.kinds.context import Context
from rlhf_jax.study import Study, load_study
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
        for kind in [kind for kind, cls in KNOWN.items() if cls.from_outside()]:
            monkeypatch.delitem(KNOWN, kind)
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
        ([("(frozen=True)\nclass TallyR", "\nclass TallyR")], (), "expected the frozen dataclass"),
        ([("tally: int", "tally: 'Number'")], (), "RESULT: name 'Number' is not defined"),
        ([('{"base":', '{"bsae":')], (), r"PARENTS of 'bsae', no field. Did you mean 'base'\?"),
        ([('{"base": "language_model"}', '["base"]')], (), "expected field -> role"),
        ([('"language_model"', '"langage_model"')], (), "no kind plays .* mean 'language_model'"),
        ([('KIND = "tally"', "KIND = 3")], (), "KIND = 3; expected a name"),
        ([('KIND = "tally"', 'KIND = "a/b"')], (), "KIND = 'a/b'; expected a name that a folder"),
        ([("    RESULT =", "    ROLES = 'reward'\n    RESULT =")], (), "expected a tuple of names"),
        ([("    RESULT =", "    ROLES = ('reward',)\n    RESULT =")], (), "no function .*:reward"),
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


def test_what_plays_its_roles_is_part_of_its_run_id(written):
    role = ("    RESULT =", "    ROLES = ('reward',)\n    RESULT =")
    ids = set()
    for text in (
        "def reward(context, cell):\n    return 1",
        "def reward(context, cell):\n    return 2",
    ):
        ids.add(written(role, ("def study(", f"{text}\n\n\ndef study(")).run_ids("")["tally"])
    assert len(ids) == 2
    with pytest.raises(ConfigError, match=r"reward of its kind.* takes \(context\)"):
        written(role, ("def study(", "def reward(context):\n    return 1\n\n\ndef study("))


def test_a_reward_gives_one_number_for_each_response(written):
    """A score of another shape would be broadcast to nonsense."""
    role = ("    RESULT =", "    ROLES = ('reward',)\n    RESULT =")
    text = "def reward(context, cell):\n    return {}\n\n\ndef study("
    made = "__import__('rlhf_jax.rl.scores').rl.scores.Reward(lambda arrays, rows, mask: {}, ())"
    for returned, message in (
        ("[1.0]", r"study_own_kind:reward gave \[1.0\]; expected rlhf_jax.rl.scores.Reward"),
        (made.format("mask"), r"array of shape \(2, 3\); expected \(2,\)"),
        (made.format("mask[:, 0]"), None),
    ):
        study = written(role, ("def study(", text.format(returned)))
        ctx = Context(study, study["base"], {}, None, None, None)
        if message:
            with pytest.raises(ConfigError, match=message):
                ctx.reward("tally").score((), None, np.ones((2, 3)))
        else:
            assert ctx.reward("tally").score((), None, np.ones((2, 3))).shape == (2,)


def test_two_study_files_may_call_different_kinds_alike_but_not_one_study(written, tmp_path):
    first = written()
    other = tmp_path / "other_kind.py"
    other.write_text(STUDY.replace("STEP = 2", "STEP = 5"))
    second = load_study(other)
    for study, count in ((first, 2), (second, 5)):
        assert study["tally"].job_function()(None, study["tally"]).tally == count
    with pytest.raises(ConfigError, match=r"class Tally and study_own_kind.Tally both have KIND"):
        Study("both", (*first.cells, type(second["tally"])("again")))


def test_an_ensemble_takes_reward_models_that_learn_from_rankings(written):
    role = ("    RESULT =", "    ROLES = ('reward_model',)\n    RESULT =")
    both = ('Tally("tally"))', 'Tally("tally"), Tally("other"), Ensemble("e", ("tally", "other")))')
    kinds = ("import Pretrain", "import Ensemble, Pretrain")
    with pytest.raises(ConfigError, match="'tally' is a tally cell, which learns from no rankings"):
        written(role, kinds, both)


def test_it_trains_alone_and_has_no_section_unless_it_says_so(written):
    study = written()
    cls = type(study["tally"])
    assert populations(study) == {} and cls.report_section() is None
    study = written(("def study(", "def section(study):\n    return 'shown'\n\n\ndef study("))
    assert type(study["tally"]).report_section()(None) == "shown"


NUMBERS = """
import json
from tiny_kinds import Draw, Total
from rlhf_jax.study import CorpusConfig, Study
from rlhf_jax.study.config import from_json

CORPUS = from_json(CorpusConfig, json.loads({corpus!r}))


def study(tiny):
    draws = (Draw("a", value=1), Draw("b", fails="raises"), Draw("c", fails="another"),
             Draw("d", fails="value"))
    return Study("numbers", (*draws, Total("total", of=("a", "b", "c", "d"))), CORPUS)
"""


def test_kinds_beside_a_study_fail_and_go_on_as_any_others(tmp_path, capsys, monkeypatch):
    """Roles and functions of one's own; a job that fails in each way; overrides, --only, --force
    and a relaunch."""
    path, here = tmp_path / "numbers.py", Path(__file__).parent
    path.write_text(NUMBERS.format(corpus=json.dumps(to_json(tiny_corpus_config(tmp_path)))))
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr("rlhf_jax.report.html.build", lambda folder, root: folder / "report.html")
    words = [str(path), "--runs", str(tmp_path / "runs")]
    run = ["run", *words, "--workers", "1", "--display", "lines"]
    assert cli.main(run) == 1
    said = "".join(capsys.readouterr())
    for reason in (
        "b: FAILED: ValueError: no number today",
        "c: FAILED: ConfigError: c: its job tiny_kinds:drawn returned SoupResult",
        "returned DrawResult with another value: draw.value: expected float, found 'three'",
        "total: waiting: parent",
    ):
        assert reason in said
    mended = ["[b-d].fails=", "b.value=10", "c.value=100", "d.value=1000"]
    assert cli.main([*run, *mended]) == 0
    said = "".join(capsys.readouterr())
    assert "a: done already" in said and "total 1111.0000" in said
    assert cli.main([*run, "--only", "total", "--force", "total", "--", *mended]) == 0
    said = "".join(capsys.readouterr())
    assert "total: started" in said and "1 of 1 cells done" in said
    assert cli.main(["status", *words, "--json", *mended]) == 0
    rows = json.loads(capsys.readouterr().out)["cells"]
    assert [(row["kind"], row["state"]) for row in rows][-2:] == [
        ("draw", "done"),
        ("total", "done"),
    ]


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
