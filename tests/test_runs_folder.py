"""Runs folders that cannot be made or written, full disks and disks that can only be read: one
message in words, exit code 2, and nothing half written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from rlhf_jax import cli
from rlhf_jax import worker as execute
from rlhf_jax.report.export import export
from rlhf_jax.study.files import disk_words, write_json
from rlhf_jax.study.folder import CellFolder

COMMANDS = ("plan", "run", "status", "report", "fit", "generate")


def bad_root(tmp_path, what):
    (tmp_path / "file").write_text("text")
    return {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "deep" / "runs",
        "a name too long": tmp_path / ("x" * 300),
        "a NUL": f"{tmp_path}/a\0b",
        "no folder can be made": "/proc/none/runs",
    }[what]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("what", ["a file", "below a file", "a name too long", "a NUL"])
def test_a_runs_folder_that_cannot_be_is_refused_in_words(fake, tmp_path, capsys, name, what):
    root = bad_root(tmp_path, what)
    words = [str(fake.path)] if name != "generate" else ["base", "--prompt", "a"]
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([name, *words, "--runs", str(root)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rlhf-jax: ") and err.count("\n") == 1 and "--runs" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["plan", "run", "status", "report"])
def test_where_no_folder_can_be_made_every_command_says_so(command, capsys, name):
    assert command(name, "--runs", "/proc/none/runs") == 2
    err = capsys.readouterr().err
    assert "--runs /proc/none/runs: no" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["plan", "status", "report"])
def test_looking_at_a_runs_folder_does_not_make_it(fake, name):
    around = sorted(fake.runs.root.parent.iterdir())
    cli.main([name, str(fake.path), "--runs", str(fake.runs.root)])
    assert sorted(fake.runs.root.parent.iterdir()) == around


def refuse(monkeypatch, number, what="os.fsync"):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(what, fail)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_run_on_a_disk_that_takes_nothing_begins_no_cell(
    command, fake, capsys, monkeypatch, number
):
    fake.runs.root.mkdir()
    refuse(monkeypatch, number, "pathlib.Path.write_bytes")
    assert command("run") == 2
    err = capsys.readouterr().err
    assert "nothing can be written there" in err and os.strerror(number) in err
    assert fake.log() == [] and list(fake.runs.root.iterdir()) == []


def test_a_report_that_finds_no_room_says_so_and_leaves_the_old_files(
    command, fake, capsys, monkeypatch
):
    assert command("run") == 0
    old = {p: p.read_bytes() for p in fake.runs.root.rglob("*") if p.is_file()}
    capsys.readouterr()
    refuse(monkeypatch, errno.ENOSPC)
    assert command("report") == 2
    err = capsys.readouterr().err
    assert "study.json: No space left on device: the disk is full; make room" in err
    assert {p: p.read_bytes() for p in fake.runs.root.rglob("*") if p.is_file()} == old


def test_an_export_that_finds_no_room_leaves_the_earlier_one_whole(command, fake, monkeypatch):
    assert command("run") == 0
    folder, to = fake.runs.root / "studies" / "fake", fake.runs.root / "kept"
    write_json(folder / "fits" / "a.json", {"a": 1})
    export(folder, fake.runs.root, to)
    old = {p: p.read_bytes() for p in to.rglob("*") if p.is_file()}
    write_json(folder / "fits" / "a.json", {"a": 2})
    refuse(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        export(folder, fake.runs.root, to)
    assert {p: p.read_bytes() for p in to.rglob("*") if p.is_file()} == old
    monkeypatch.undo()
    export(folder, fake.runs.root, to)
    assert json.loads((to / "fits" / "a.json").read_text()) == {"a": 2}
    assert not list(to.glob(".*"))


def test_a_full_disk_is_recognised_in_the_errors_that_libraries_make_of_it():
    error = RuntimeError("checkpoint not saved")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/a/b")
    assert disk_words(error) == "/a/b: No space left on device: the disk is full; make room"
    said = disk_words(ValueError("RESOURCE: write failed: No space left on device [os_error='28']"))
    assert said == "No space left on device: the disk is full; make room"
    numpys = OSError("122655 requested and 79808 written")
    assert disk_words(numpys) == said
    assert disk_words(ValueError("something else")) == ""
    assert disk_words(FileNotFoundError(errno.ENOENT, "No such file", "x")) == ""


def test_a_worker_on_a_full_disk_answers_with_the_reason(tmp_path, monkeypatch, capsys):
    refuse(monkeypatch, errno.ENOSPC)
    ctx = type("Context", (), {"folder": CellFolder(tmp_path / "a-1")})
    error = OSError(errno.ENOSPC, "No space left on device", "x.npz")
    outcome, reason = execute._failed(ctx, error)
    assert outcome == "failed" and reason.startswith("x.npz: No space left on device")
    assert "What was saved stays" in reason
    assert not list(tmp_path.rglob("*.json"))


def test_a_launcher_on_a_full_disk_goes_on_when_a_worker_dies(fake, monkeypatch):
    fake.tell("b", "die")
    refuse(monkeypatch, errno.ENOSPC)
    assert fake.run(only=["b", "a"], workers=1) == 1
    assert "end a" in fake.log()


def test_a_limit_on_the_size_of_files_ends_a_command_in_words(fake):
    """The kernel's own refusal, not one put in: a process that may write 100 bytes a file."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "from rlhf_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(fake.path), "--runs", str(fake.runs.root)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "nothing can be written there" in done.stderr and "File too large" in done.stderr
    assert not fake.runs.root.exists()
