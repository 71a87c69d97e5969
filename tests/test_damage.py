"""Damage to each file of a run folder: every command names the file and what to do, or heals it.
Nothing here trains."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tiny_results import whole

from launch import local, loop
from rlhf_jax import cli
from rlhf_jax import worker as execute
from rlhf_jax.data.feedback import Comparison, Demonstration, write
from rlhf_jax.kinds import BestOfN, Compare, Feedback, Reward
from rlhf_jax.kinds.compare.job import comparisons
from rlhf_jax.kinds.sampling import save_arrays
from rlhf_jax.placement import launchers
from rlhf_jax.study.config import to_json
from rlhf_jax.study.files import Damaged, write_json, write_sealed
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.runs import write_study

LOSS = 4.90625
# Files of a finished cell, of one that has failed, and of the study.
FINISHED = ("done.json", "config.json", "provenance.json", "metrics.jsonl", "results/heldout.json")
OTHERS = ("heartbeat.json", "failed.json", "lock", "study.json")
COMMANDS = ("status", "report", "plan", "run", "generate")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """A digit becomes another digit where there is one, so that JSON stays JSON."""
    data = bytearray(path.read_bytes())
    digits = [i for i, byte in enumerate(data) if byte in b"12345678"]
    if data:
        data[digits[len(digits) // 2] if digits else len(data) // 2] ^= 1
    path.write_bytes(data)


def delete(path):
    path.unlink()


@pytest.fixture
def world(fake, monkeypatch):
    """A study of which `b-child` has failed and all others are done, a corpus that needs no
    preparation, a model that needs no checkpoint, and the real report."""
    corpus = types.SimpleNamespace(content_hash="corpus", tokens=lambda split: 1000)
    module = types.ModuleType("rlhf_jax.data.corpus")
    module.find = lambda cfg, root: corpus
    module.prepare = lambda cfg, root, log: corpus
    import rlhf_jax.load as load

    monkeypatch.setattr("rlhf_jax.kinds.needs.check_data", lambda *given: [])
    monkeypatch.setitem(sys.modules, "rlhf_jax.data.corpus", module)
    monkeypatch.setattr(load, "read_model", lambda folder, cfg, runtime: {})
    monkeypatch.setattr(load, "read_manifest", lambda folder: {})
    monkeypatch.setattr(load, "Corpus", lambda *a: types.SimpleNamespace(tokenizer=None))
    monkeypatch.setattr(load, "keep_compiled", lambda folder: None)
    monkeypatch.setattr(load, "sample_text", lambda *a: "said")
    monkeypatch.setattr(launchers, "WORKER", fake.worker_command)
    for cell in fake.study.cells:
        folder = fake.folder(cell.name)
        model = to_json(fake.study.model_of(cell))
        config = {"kind": cell.KIND, **to_json(cell), "model": model, "corpus": "corpus"}
        write_json(folder.path / "config.json", config)
        write_json(folder.path / "provenance.json", {"sessions": [{"commit": "0123456789"}]})
        (folder.path / "metrics.jsonl").write_text(
            '{"step": 1, "loss": 6.5}\n{"step": 2, "loss": 5.375}\n'
        )
        folder.checkpoints.mkdir()
        with folder.held():
            if cell.name == "b-child":
                with Heartbeat(folder):
                    write_sealed(folder.path / "failed.json", {"reason": "not finite at step 7"})
            else:
                held = {"loss": LOSS, "stderr": 0.25}
                if cell.KIND == "pretrain":
                    held |= {"params": 1000, "train_tokens": 256, "flops": {"exact": 1e6}}
                for stem, content in whole(cell.RESULT, {"heldout": held}).items():
                    write_json(folder.results / f"{stem}.json", content)
                folder.finish(seconds=12.5)
    write_study(fake.study, fake.runs, "corpus", "rlhf-jax run", fake.path)
    return fake


def call(world, command, capsys):
    """(exit code, output, what it shows of cell a): no command ends in a traceback."""
    if command == "generate":
        words = [command, "fake/a", "--prompt", "x", "--runs", str(world.runs.root)]
    else:
        words = [command, str(world.path), "--runs", str(world.runs.root)]
        words += ["--json"] if command in ("status", "plan") else []
        words += ["--only", "a", "a-child", "--workers", "1"] if command == "run" else []
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert code in (0, 1, 2)
    return code, out + err


def check_numbers(world, command, output):
    """What a command shows with exit code 0 is what was measured."""
    if command == "status":
        rows = {c["name"]: c for c in json.loads(output)["cells"]}
        for name in ("a", "a-child"):
            if rows[name]["state"] == "done":
                assert rows[name]["headline"]["value"] == LOSS and rows[name]["step"] == 2
                assert rows[name]["seconds"] == 12.5 and "loss" not in rows[name]
        reason = rows["b-child"].get("reason", "")
        assert reason in ("", "not finite at step 7") or "failed.json is damaged" in reason
    if command in ("report", "run"):
        text = (world.runs.root / "studies" / "fake" / "report.html").read_text()
        shown = world.folder("a").result("heldout") if world.folder("a").done() else None
        assert shown is None or f"{shown['loss']:.3f}" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_without_damage_every_command_does_its_work(world, command, capsys):
    code, output = call(world, command, capsys)
    assert code == 0
    check_numbers(world, command, output)


@pytest.mark.parametrize("harm", [truncate, flip, delete])
@pytest.mark.parametrize("name", FINISHED)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_file_of_a_finished_cell_is_named_or_heals(world, command, name, harm, capsys):
    path = world.folder("a").path / name
    harm(path)
    code, output = call(world, command, capsys)
    reads = {
        "status": tuple(n for n in FINISHED if n != "config.json"),
        "report": FINISHED,
        "run": FINISHED[1:],
        "plan": ("done.json",),
        "generate": ("done.json", "config.json"),
    }[command]
    unfinished = name == "done.json" and harm is delete  # a cell like one that was interrupted
    if name not in reads or unfinished or (command, name) == ("run", "done.json"):
        assert code == 0
        check_numbers(world, command, output)
    else:
        assert code == (0 if command == "plan" else 1 if command == "status" else 2)
        assert str(path) in output and "is damaged" in output
        assert "rlhf-jax run STUDY --force a" in output
    if command == "run" and name == "done.json":  # the cell was finished again
        assert world.log() == ["start a", "end a"] and world.folder("a").done()


@pytest.mark.parametrize("harm", [truncate, flip, delete])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("command", COMMANDS)
def test_other_damaged_files_are_named_or_heal(world, command, name, harm, capsys):
    where = world.folder("a" if name == "lock" else "b-child").path
    path = where / name
    if name == "study.json":
        path = world.runs.root / "studies" / "fake" / name
    harm(path)
    code, output = call(world, command, capsys)
    if name == "study.json" and command == "generate" and harm is not flip:
        assert code == 2 and str(path) in output and "rlhf-jax report STUDY" in output
    else:
        assert code == 0
        if name == "study.json" and command in ("report", "run") and harm is truncate:
            assert f"{path} is damaged" in output and "written anew" in output
        check_numbers(
            world, command, output[: output.rfind("}") + 1] if command == "status" else output
        )
    if name == "failed.json" and command == "status" and harm is not delete:
        row = next(c for c in json.loads(output)["cells"] if c["name"] == "b-child")
        assert row["state"] == "failed" and f"{path} is damaged" in row["reason"]


def test_damage_of_one_cell_hides_no_other(world, capsys):
    truncate(world.folder("a").results / "heldout.json")
    assert cli.main(["status", str(world.path), "--runs", str(world.runs.root)]) == 1
    out, err = capsys.readouterr()
    assert "5 cells: 3 done, 0 running, 1 failed, 0 waiting, 1 damaged" in out
    assert out.count("held-out loss 4.9062 ± 0.2500 nats a token") == 3
    assert str(world.folder("a").results / "heldout.json") in err


def test_a_forced_cell_is_well_again(world, capsys):
    flip(world.folder("a").results / "heldout.json")
    words = [
        "run",
        str(world.path),
        "--runs",
        str(world.runs.root),
        "--only",
        "a",
        "--workers",
        "1",
    ]
    assert cli.main(words) == 2
    assert cli.main([*words, "--force", "a"]) == 0
    assert world.folder("a").result("heldout")["loss"] == 3.25


def drop_last_line(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def swap_arrays(path):
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "ranks": arrays["ranks"][:, ::-1]})


RECORDS = [Comparison(f"p{i}", ("yes", "no"), (1, 2)) for i in range(4)]
SHOWN = [Demonstration(f"p{i}", "yes") for i in range(4)]


@pytest.mark.parametrize(
    ("cell", "name", "records", "harm"),
    [
        (Compare("parent", prompts=4), "comparisons.jsonl", RECORDS, drop_last_line),
        (Feedback("parent"), "records.jsonl", SHOWN, drop_last_line),
        (BestOfN("parent"), "demonstrations.jsonl", SHOWN, drop_last_line),
    ],
)
def test_sft_refuses_records_that_are_not_what_their_cell_wrote(
    tmp_path, cell, name, records, harm
):
    folder = CellFolder(tmp_path / "parent-0")
    write(folder.results / name, records)
    folder.finish(seconds=1.0)
    ctx = types.SimpleNamespace(study={"parent": cell}, folders={"parent": folder})
    records_of = cell.job_function("records")
    assert len(records_of(ctx, cell)[1]) == 4
    harm(folder.results / name)
    with pytest.raises(Damaged, match=rf"{name} is damaged.*--force parent"):
        records_of(ctx, cell)


@pytest.mark.parametrize("harm", [swap_arrays, truncate, delete])
def test_rankings_that_are_not_what_their_cell_wrote_are_refused(tmp_path, harm):
    folder = CellFolder(tmp_path / "parent-0")
    arrays = {
        "prompts": np.ones((2, 3)),
        "responses": np.ones((2, 2, 4)),
        "mask": np.ones((2, 2, 4)),
        "ranks": np.array([[0, 1], [1, 0]]),
    }
    for split in ("train", "validation"):
        save_arrays(folder, split, arrays)
    folder.finish(seconds=1.0)
    ctx = types.SimpleNamespace(
        study={"parent": Compare("parent")},
        folders={"parent": folder},
        model=types.SimpleNamespace(max_positions=64),
    )
    cell = ctx.study["parent"]
    assert comparisons(ctx, cell, Reward("r"))["train"]["ranks"].tolist() == [[0, 1], [1, 0]]
    harm(folder.results / "train.npz")
    with pytest.raises(Damaged, match=r"train\.npz is damaged"):
        comparisons(ctx, cell, Reward("r"))


@pytest.fixture
def worker(fake, monkeypatch):
    """A worker whose cells have nothing to compute."""

    def run_cells(ctxs):
        for ctx in ctxs:
            (ctx.folder.path / "metrics.jsonl").write_text('{"step": 1}\n')
            ctx.folder.finish(seconds=1.0)
        return [None] * len(ctxs)

    monkeypatch.setattr(execute, "run_cells", run_cells)
    made = execute.Worker.__new__(execute.Worker)
    corpus = types.SimpleNamespace(content_hash="corpus")
    made.__dict__.update(study=fake.study, runs=fake.runs, corpus=corpus, runtime=None)
    return made


@pytest.mark.parametrize("name", ["kept.json", "done.json"])
def test_a_worker_runs_a_kept_cell_and_its_folder_then_is_an_ordinary_one(worker, fake, name):
    """`done.json` with a key `kept` is how older versions wrote it."""
    folder = fake.folder("a")
    write_json(folder.results / "kept-only.json", {"loss": 1.0})
    (folder.path / ".heartbeat.json.1.2").write_text("{")
    write_json(folder.path / name, {"seconds": 9.0, "kept": "results/fake"})
    [(_, outcome, reason)] = worker.run(["a-child"])
    assert (
        outcome == "failed"
        and "starts from a, not done here (of a only results are kept)" in reason
    )
    assert list(worker.run(["a"])) == [("a", "done", None)]
    assert folder.state() == {"state": "done", "seconds": 1.0}
    left = {p.name for p in folder.path.iterdir()}
    assert left == {"done.json", "lock", "metrics.jsonl"}
    assert folder.result_names() == []
    assert list(worker.run(["a-child"])) == [("a-child", "done", None)]
    assert list(worker.run(["a"])) == [("a", "done", None)]


def test_a_kept_cell_speaks_no_word(fake, capsys):
    folder = fake.folder("a")
    write_json(folder.path / "config.json", {"kind": "pretrain"})
    folder.finish("kept.json", kept="results/fake")
    words = ["generate", folder.path.name, "--prompt", "x", "--runs", str(fake.runs.root)]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert "holds results alone" in err and "rlhf-jax run STUDY --force a" in err


def test_signal_handlers_put_into_queues_that_may_be_interrupted():
    """`queue.Queue.put` takes a lock that the interrupted thread may hold; `SimpleQueue.put` does
    not."""
    for module in (execute, local, loop):
        source = Path(module.__file__).read_text()
        assert ("signal.signal(" in source) == (module is not local)
        assert ("SimpleQueue()" in source) == (module is not loop)  # its handler puts nothing
        assert "queue.Queue" not in source and "import Queue" not in source
