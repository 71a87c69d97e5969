"""The command line: what it prints, refuses and returns. Nothing here trains."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from dataclasses import replace

import pytest

from rlhf_jax import cli
from rlhf_jax.kinds import Pretrain
from rlhf_jax.placement.mesh import check_placement, full_mesh
from rlhf_jax.report.export import export
from rlhf_jax.study import Study
from rlhf_jax.study.command import again
from rlhf_jax.study.files import write_json
from rlhf_jax.study.runs import find_cell


def test_run_runs_everything_and_names_the_report(command, fake, capsys):
    assert command("run", "--workers", "2") == 0
    assert set(fake.states().values()) == {"done"}
    assert "studies/fake/report.html" in capsys.readouterr().out
    index = json.loads((fake.runs.root / "studies" / "fake" / "study.json").read_text())
    assert index["command"].startswith("rlhf-jax run ") and len(index["cells"]) == 5


def test_run_returns_1_and_still_reports_when_a_cell_fails(command, fake, capsys):
    fake.tell("b", "fail")
    assert command("run") == 1
    out = capsys.readouterr().out
    assert "b-child: waiting: parent b failed" in out and "Report: " in out


def test_overrides_and_globs_may_stand_in_any_order(command, fake):
    assert command("run", "--only", "b", "a-child.epochs=2", "b.seed=4", "--workers", "1") == 0
    assert fake.log() == ["start b", "end b"]
    assert fake.states()["b"] == "waiting"  # another cell: its seed is 4


def test_dry_run_shows_the_plan_and_runs_nothing(command, fake, capsys):
    assert command("run", "--dry-run", "--only", "a-child") == 0
    out = capsys.readouterr().out
    assert "Would run: a, a-child" in out and "iB" in out and "FLOPs" in out
    assert fake.log() == [] and not fake.runs.root.exists()
    assert command("run") == 0
    capsys.readouterr()
    command("run", "--dry-run")
    assert "Would run: nothing; all is done" in capsys.readouterr().out
    command("run", "--dry-run", "--force", "a-child")
    assert "Would run: a-child, a-grandchild" in capsys.readouterr().out


def test_plan_json_has_every_cell_and_totals(command, capsys):
    assert command("plan", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["study"] == "fake" and len(plan["cells"]) == 5
    assert set(plan["cells"][0]) >= {
        "name",
        "kind",
        "params",
        "tokens",
        "flops",
        "memory",
        "disk",
        "seconds",
        "state",
    }
    assert set(plan["totals"]) >= {"flops", "disk", "memory", "seconds", "wall_seconds"}


def test_plan_as_a_table(command, capsys):
    assert command("plan") == 0
    out = capsys.readouterr().out
    assert "a-grandchild" in out and "typical rates" in out


def test_status_json_tells_states_and_other_commits(command, fake, capsys):
    fake.tell("b", "fail")
    command("run")
    sessions = [{"commit": "0123456789abcdef"}]
    write_json(fake.folder("a").path / "provenance.json", {"sessions": sessions})
    fake.folder("a").finish(seconds=0.5)
    capsys.readouterr()
    assert command("status", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    rows = {c["name"]: c for c in found["cells"]}
    assert found["study"] == "fake" and rows["a"]["state"] == "done"
    assert rows["a"]["other_commit"] is True and rows["a-child"]["other_commit"] is False
    assert rows["b"]["state"] == "failed" and rows["b"]["reason"] == "asked to"
    assert rows["b-child"] | {"state": "waiting", "waiting_for": ["b"]} == rows["b-child"]
    assert command("status") == 0
    out = capsys.readouterr().out
    assert "made by another commit (0123456789)" in out and "asked to" in out
    assert "5 cells: 3 done, 0 running, 1 failed, 1 waiting" in out


def test_a_corpus_that_is_too_small_is_refused_before_anything_runs(command, fake, capsys):
    assert command("run", "a.tokens=5000") == 2
    assert "there are 1,000 unique training tokens" in capsys.readouterr().err
    assert fake.log() == []
    assert command("plan", "a.tokens=5000") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "none.py"], "no study file none.py"),
        (["run", "STUDY", "a.sed=1"], "Did you mean 'seed'"),
        (["run", "STUDY", "--only", "a-chld"], "Did you mean 'a-child'"),
        (["plan", "STUDY", "a.model.heads=3"], "does not divide"),
        (["generate", "nothing", "--prompt", "x"], "Nothing has been run there"),
        (["fit", "none.csv"], "no file none.csv"),
    ],
)
def test_wrong_input_is_one_clear_message(fake, capsys, tmp_path, words, message):
    words = [str(fake.path) if w == "STUDY" else w for w in words]
    extra = [] if words[0] == "fit" else ["--runs", str(tmp_path / "none")]
    assert cli.main([*words, *extra]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and err.count("\n") == 1


# Cells of the fake study: width 32, 2 heads, feed-forward 128, vocabulary 64, batches of 2 and 16.
@pytest.mark.parametrize("name", ["run", "plan", "dry-run"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mesh", "data=0"], "data = '0' is not a number of devices of at least 1"),
        (["--mesh", "foo=2"], "unknown axis 'foo'. Known: data, fsdp, tensor"),
        (["--mesh", "dat=2"], "Did you mean 'data'"),
        (["--mesh", "data=2,data=4"], "data is given twice"),
        (["--mesh", "data"], "data = '' is not a number"),
        (["--mesh", "data=1.5"], "data = '1.5'"),
        (["--mesh", "data=4"], "a.batch = 2 rows do not divide into data 4 = 4 parts"),
        (
            ["--mesh", "data=2,fsdp=2"],
            "a.batch = 2 rows do not divide into data 2 x fsdp 2 = 4 parts",
        ),
        (["--accumulate", "3"], "a.batch = 2 rows do not divide into --accumulate 3 = 3 parts"),
        (["--mesh", "data=2", "--accumulate", "2"], "data 2 x --accumulate 2 = 4 parts"),
        (
            ["--mesh", "tensor=4"],
            "a.model.heads = 2 does not divide over tensor = 4; choose --mesh tensor=2",
        ),
        (
            ["--mesh", "tensor=2", "*.model.kv_heads=1"],
            "a.model.kv_heads = 1 does not divide over tensor",
        ),
        (
            ["--mesh", "tensor=2", "*.model.ff=65"],
            "a.model.ff = 65 does not divide over tensor = 2",
        ),
        (["--mesh", "fsdp=3", "*.batch=6"], "a.model.width = 32 does not divide over fsdp = 3"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused_before_anything_runs(
    command, fake, capsys, monkeypatch, name, words, message
):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    words = [w.replace("*.", "[ab].") for w in words]
    words += ["--only", "a", "b"] if name == "run" else []
    assert command(*(["run", "--dry-run"] if name == "dry-run" else [name]), *words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert fake.log() == [] and not fake.runs.root.exists()


def test_a_mesh_that_divides_is_planned(command, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert command("plan", "--mesh", "fsdp=2,tensor=2", "--accumulate", "1") == 0
    assert command("plan", "--mesh", "data=2", "--json") == 0


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    assert full_mesh("fsdp=2", None) == {"data": 1, "fsdp": 2, "tensor": 1}
    assert full_mesh("fsdp=2", 8) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert full_mesh("data=2", 8) == {"data": 2, "fsdp": 1, "tensor": 1}
    with pytest.raises(cli.ConfigError, match="needs 16 devices; there are 8"):
        full_mesh("fsdp=8,tensor=2", 8)
    with pytest.raises(cli.ConfigError, match="3 does not divide the 8 devices"):
        full_mesh("fsdp=3", 8)


def test_ppo_and_rankings_are_checked_by_the_rows_that_they_put_on_a_mesh(rlhf_study):
    def refused(*cells, accumulate=1, **mesh):
        with pytest.raises(cli.ConfigError) as e:
            check_placement(study, cells, {"data": 1, "fsdp": 1, "tensor": 1} | mesh, accumulate)
        return str(e.value)

    ppo = replace(rlhf_study["ppo"], batch=8, samples=3, minibatches=4, ptx_coef=1.0, ptx_batch=6)
    study = replace(rlhf_study, cells=(*(c for c in rlhf_study.cells if c.name != "ppo"), ppo))
    assert "ppo.batch = 8 rows" in refused("ppo", data=3)
    assert "samples / minibatches = 6 rows" in refused("ppo", accumulate=4)
    study = replace(study, cells=(*study.cells[:-1], replace(ppo, minibatches=1, ptx_batch=5)))
    assert "ppo.ptx_batch = 5 rows" in refused("ppo", data=2)
    study = replace(study, cells=(*study.cells[:-1], ppo))
    assert "reward.batch = 16 rows" in refused("reward", data=32)
    check_placement(study, ["ppo"], {"data": 2, "fsdp": 1, "tensor": 2}, 3)
    for changes, message in (
        ({"vocab": 64}, "base.model.vocab = 64 does not divide over tensor = 3"),
        (
            {"vocab": 63, "width": 50, "head_width": 16},
            "base.model.width = 50 does not divide over tensor",
        ),
    ):
        model = replace(rlhf_study["base"].model, **{"heads": 3, "width": 48, "ff": 96} | changes)
        corpus = replace(rlhf_study.corpus, vocab=model.vocab)
        study = Study("one", (Pretrain("base", model=model, tokens=65_536),), corpus)
        assert message in refused("base", tensor=3)
    study = rlhf_study
    check_placement(study, ["evaluate", "compare"], {"data": 64, "fsdp": 1, "tensor": 1})


@pytest.mark.parametrize("name", ["run", "plan", "status", "report"])
def test_a_runs_folder_that_is_a_file_is_refused(fake, tmp_path, capsys, name):
    (tmp_path / "file").write_text("")
    for runs in (tmp_path / "file", tmp_path / "file" / "runs"):
        assert cli.main([name, str(fake.path), "--runs", str(runs)]) == 2
        err = capsys.readouterr().err
        assert f"{tmp_path / 'file'} is a file; give a folder" in err and err.count("\n") == 1


def test_a_runs_folder_that_cannot_be_made_is_refused(fake, capsys):
    assert cli.main(["run", str(fake.path), "--runs", "/proc/none"]) == 2
    err = capsys.readouterr().err
    assert "--runs /proc/none: no folder can be made there" in err and err.count("\n") == 1


def test_a_second_study_of_the_same_name_replaces_nothing(command, fake, tmp_path, capsys):
    assert command("run", "--only", "b") == 0
    index = fake.runs.root / "studies" / "fake" / "study.json"
    before = index.read_bytes()
    other = tmp_path / "other.py"
    other.write_text(fake.path.read_text().replace("seed=1", "seed=2"))
    capsys.readouterr()
    for name in ("run", "report", "fit", "predict"):
        words = ["--at", "1e20"] if name == "predict" else []
        assert cli.main([name, str(other), *words, "--runs", str(fake.runs.root)]) == 2
        assert f"belongs to the study in {fake.path}" in capsys.readouterr().err
    assert index.read_bytes() == before and fake.log() == ["start b", "end b"]
    assert command("run", "--only", "b", "b.seed=5") == 0
    assert "is replaced: it was of 2 cells" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["rnu"], ["run"], ["run", "x.py", "--workers", "0"]])
def test_wrong_usage_exits_2(words, capsys):
    try:
        code = cli.main(words)
    except SystemExit as e:
        code = e.code
    assert code == 2


def test_the_continuation_does_not_force_again():
    words = ["run", "s.py", "--force", "a", "b*", "--only", "c", "--force=d", "x.y=1"]
    assert again(words) == "rlhf-jax run s.py --only c x.y=1"
    assert again(["run", "s.py", "--force", "a", "x.y=1"]) == "rlhf-jax run s.py x.y=1"


def test_fit_reads_any_table(tmp_path, capsys):
    """Three IsoFLOP groups whose columns have names of their own; tokens are computed."""
    rows = ["size,cost,final"]
    for c in (1e17, 1e18, 1e19):
        for x in (-0.6, -0.3, 0.0, 0.3, 0.6):
            n = (c / 6) ** 0.5 * 10**x / 5
            d = c / 6 / n
            rows.append(f"{n},{c},{1.7 + 400 / n**0.34 + 410 / d**0.28 + 1e-4 * (len(rows) % 3)}")
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(rows) + "\n")
    columns = ["--columns", "params=size", "flops=cost", "loss=final", "--resamples", "20"]
    assert cli.main(["fit", str(table), *columns, "--approach", "2", "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert fit["n"] == 15 and fit["approach"] == 2 and 0.35 < fit["a"] < 0.55
    assert cli.main(["fit", str(table), *columns, "--approach", "2"]) == 0
    out = capsys.readouterr().out
    assert "approach 2, 15 runs" in out and ".." in out
    assert cli.main(["fit", str(table), "--columns", "params=X"]) == 2
    assert "no column 'X'" in capsys.readouterr().err


def test_a_run_is_found_by_path_study_and_name(fake):
    folder = fake.folder("a").path
    write_json(folder / "config.json", {})
    write_json(
        fake.runs.root / "studies" / "fake" / "study.json",
        {"cells": [{"name": "a", "folder": f"cells/{folder.name}"}]},
    )
    for text in (str(folder), "fake/a", "a", folder.name):
        assert find_cell(text, fake.runs) == folder
    write_json(fake.runs.root / "cells" / "a-0000000000" / "config.json", {})
    with pytest.raises(cli.ConfigError, match="several cells are named 'a'"):
        find_cell("a", fake.runs)
    with pytest.raises(cli.ConfigError, match="no cell 'aa'"):
        find_cell("aa", fake.runs)


def test_generate_prints_the_distribution_and_a_continuation(fake, monkeypatch, capsys):
    load = types.ModuleType("rlhf_jax.load")
    load.load_run = lambda path: path
    load.next_tokens = lambda run, prompt, top: [(" blue", 0.91), (" [red]", 0.05)][:top]
    load.sample_text = lambda run, prompt, tokens, temperature, seed: " blue and clear."
    monkeypatch.setitem(sys.modules, "rlhf_jax.load", load)
    write_json(fake.folder("a").path / "config.json", {})
    words = ["generate", "a", "--prompt", "The sky is", "--top", "2"]
    assert cli.main([*words, "--runs", str(fake.runs.root)]) == 0
    out = capsys.readouterr().out
    assert "91.0%" in out and "█" * 36 in out and "' [red]'" in out
    assert "The sky is blue and clear." in out


def test_planning_and_launching_never_import_jax(fake):
    code = (
        "import sys; from rlhf_jax import cli; import launch.local, rlhf_jax.study.plan;"
        f"cli.main(['plan', {str(fake.path)!r}, '--runs', 'none', "
        "'corpus.sources=[\"shakespeare\"]']);"
        "bad = {'jax', 'tensorflow'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_results_kept_beside_the_study_count_as_done_when_run_folders_are_gone(
    command, fake, capsys
):
    assert command("run", "--only", "a", "b", "b-child", "--kept") == 2
    assert "no results are kept" in capsys.readouterr().err
    command("run", "--only", "a", "b", "b-child")
    for name in ("a", "b", "b-child"):
        write_json(fake.folder(name).path / "config.json", {"kind": "pretrain", "name": name})
        fake.folder(name).finish(seconds=0.5)
    study = fake.runs.root / "studies" / "fake"
    export(study, fake.runs.root, fake.path.parent / "results" / "fake")
    shutil.rmtree(fake.runs.root / "cells")
    capsys.readouterr()
    assert command("status", "--json", "--kept") == 0
    rows = {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)["cells"]}
    assert rows == {
        "a": "kept",
        "a-child": "waiting",
        "a-grandchild": "waiting",
        "b": "kept",
        "b-child": "kept",
    }
    assert fake.folder("b").result("heldout")["loss"] == 3.25
    (fake.control / "log").unlink()
    # a-child is not done and starts from a's checkpoint, which is not kept: a runs again. So it
    # does without --kept.
    command("run", "--dry-run")
    assert "Would run: a, a-child, a-grandchild\n" in capsys.readouterr().out
    assert command("run") == 0
    assert [line for line in fake.log() if line.startswith("start")] == [
        "start a",
        "start a-child",
        "start a-grandchild",
    ]
    assert fake.states() == {
        "a": "done",
        "a-child": "done",
        "a-grandchild": "done",
        "b": "kept",
        "b-child": "kept",
    }
    assert not (fake.folder("a").path / "kept.json").exists()
