"""Run folders: states that tell the truth, locks that die with their holder, atomic files."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from rlhf_jax.kinds import Pretrain
from rlhf_jax.study import Study, load_study
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import Damaged, read_json, sweep, write_json
from rlhf_jax.study.folder import KEPT, CellFolder
from rlhf_jax.study.heartbeat import STALE_SECONDS, Heartbeat
from rlhf_jax.study.provenance import provenance
from rlhf_jax.study.runs import Runs, claim_study, status, write_study


@pytest.fixture
def folder(tmp_path):
    return CellFolder(tmp_path / "cell-0123456789")


def beat(folder, **facts):
    now = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time(), **facts}
    write_json(folder.path / "heartbeat.json", now)


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_cell_waits_until_somebody_runs_it(folder):
    assert folder.state() == {"state": "waiting"}
    assert not folder.done() and folder.metrics() == [] and folder.result("x") is None


def test_a_fresh_heartbeat_of_a_live_process_is_running(folder):
    beat(folder, step=7)
    assert folder.state()["state"] == "running" and folder.state()["step"] == 7


def test_a_stale_heartbeat_is_not_running(folder):
    beat(folder, step=7, time=time.time() - STALE_SECONDS - 1)
    assert folder.state() == {"state": "waiting", "stopped_at": 7}


def test_a_fresh_heartbeat_of_a_dead_process_is_not_running(folder):
    beat(folder, pid=dead_pid())
    assert folder.state()["state"] == "waiting"
    beat(folder, pid=dead_pid(), host="another-machine")
    assert folder.state()["state"] == "running"


def test_a_killed_process_that_nobody_waited_for_is_not_running(folder):
    process = subprocess.Popen(["sleep", "60"])
    beat(folder, pid=process.pid)
    assert folder.state()["state"] == "running"
    process.kill()
    deadline = time.time() + 5
    while folder.state()["state"] == "running" and time.time() < deadline:
        time.sleep(0.01)
    assert folder.state()["state"] == "waiting"  # a zombie still
    process.wait()


def test_failure_and_completion_outrank_old_heartbeats(folder):
    beat(folder, pid=dead_pid())
    write_json(folder.path / "failed.json", {"reason": "not finite"})
    assert folder.state() == {"state": "failed", "reason": "not finite"}
    write_json(folder.path / "done.json", {"seconds": 3})
    assert folder.state() == {"state": "done", "seconds": 3}


def test_a_failed_cell_that_is_tried_again_is_running(folder):
    write_json(folder.path / "failed.json", {"reason": "not finite"})
    beat(folder)
    assert folder.state()["state"] == "running"


def test_heartbeats_show_progress_and_end_with_the_cell(folder):
    folder.path.mkdir()
    with Heartbeat(folder, every=0.02) as heartbeat:
        heartbeat.progress(step=3, loss=2.0)
        deadline = time.time() + 5
        while folder.state().get("step") != 3 and time.time() < deadline:
            time.sleep(0.01)
        state = folder.state()
        assert state["state"] == "running" and state["loss"] == 2.0
        write_json(folder.path / "done.json", {})
    assert not (folder.path / "heartbeat.json").exists()


def test_a_cell_that_failed_is_failed_at_once_though_its_process_lives_on(folder):
    folder.path.mkdir()
    with Heartbeat(folder, every=0.02) as heartbeat:
        heartbeat.progress(step=3)
        write_json(folder.path / "failed.json", {"reason": "not finite"})
    assert folder.state() == {"state": "failed", "reason": "not finite"}
    (folder.path / "failed.json").unlink()
    assert folder.state() == {"state": "waiting", "stopped_at": 3}


def test_only_one_process_holds_a_cell(folder):
    with folder.held() as first, folder.held() as second:
        assert first and not second
    with folder.held() as again:
        assert again


HOLD = """
import sys, time
from pathlib import Path
from rlhf_jax.study.folder import CellFolder
with CellFolder(Path(sys.argv[1])).held() as held:
    print(held, flush=True)
    time.sleep(60)
"""


def test_the_lock_is_released_when_its_holder_is_killed(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    with folder.held() as ours:
        assert not ours
    process.send_signal(signal.SIGKILL)
    process.wait()
    with folder.held() as ours:
        assert ours


def test_json_is_replaced_whole(tmp_path):
    path, stop, seen = tmp_path / "x.json", threading.Event(), []
    write_json(path, {"n": 0, "pad": "x" * 50_000})

    def read():
        while not stop.is_set():
            seen.append(json.loads(path.read_text())["n"])  # raises on a torn file

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(1, 30):
        write_json(path, {"n": n, "pad": "x" * 50_000})
    stop.set()
    reader.join()
    assert seen == sorted(seen) and len(seen) > 1
    assert os.listdir(tmp_path) == ["x.json"]
    assert read_json(tmp_path / "none.json") is None


def test_a_json_file_is_never_written_in_place(tmp_path):
    """A reader that has the old file open, or another name of it, goes on with the old content."""
    path, other = tmp_path / "x.json", tmp_path / "other"
    write_json(path, {"n": 0, "pad": "x" * 50_000})
    before = path.read_bytes()
    os.link(path, other)
    with open(path, "rb") as reader:
        half = reader.read(20_000)
        write_json(path, {"n": 1, "pad": "y" * 60_000})
        assert half + reader.read() == before == other.read_bytes()
    assert read_json(path)["n"] == 1


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"n": 0})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"n": 1})
    with pytest.raises(TypeError):
        write_json(path, {"n": object()})
    assert os.listdir(tmp_path) == ["x.json"] and read_json(path) == {"n": 0}


def test_a_heartbeat_outlives_a_full_disk(folder, monkeypatch):
    folder.path.mkdir()
    calls, real, full = [], os.fsync, threading.Event()

    def fsync(descriptor):
        calls.append(descriptor)
        if full.is_set():
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    full.set()
    with Heartbeat(folder, every=0.01) as heartbeat:
        deadline = time.time() + 20
        while len(calls) < 3 and time.time() < deadline:
            time.sleep(0.01)
        full.clear()
        heartbeat.progress(step=3)
        while folder.heartbeat().get("step") != 3 and time.time() < deadline:
            time.sleep(0.01)
        assert folder.heartbeat()["step"] == 3
    assert os.listdir(folder.path) == ["heartbeat.json"]


def test_what_killed_processes_left_is_swept(tmp_path):
    (tmp_path / ".done.json.123.456").write_text("{")
    (tmp_path / ".cleared-checkpoints-7").mkdir()
    (tmp_path / "done.json").write_text("{}")
    sweep(tmp_path, older=60)
    assert len(os.listdir(tmp_path)) == 3
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["done.json"]


def finished(folder, loss=3.25):
    write_json(folder.results / "heldout.json", {"loss": loss})
    (folder.results / "train.npz").write_bytes(b"arrays")
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n')
    folder.finish(seconds=1.5)


def test_a_finished_cell_lists_the_digest_of_every_file_that_it_wrote(folder):
    finished(folder)
    digests = read_json(folder.path / "done.json")["digests"]
    assert sorted(digests) == ["metrics.jsonl", "results/heldout.json", "results/train.npz"]
    for name, digest in digests.items():
        known = subprocess.run(
            ["sha256sum", folder.path / name], capture_output=True, text=True, check=True
        )
        assert known.stdout.split()[0] == digest
    assert folder.result("heldout") == {"loss": 3.25} and folder.result_names() == ["heldout"]
    assert folder.result("other") is None
    with pytest.raises(ConfigError, match="wrote no"):
        folder.result_file("other.npz")


def test_results_of_older_versions_are_read_without_digests(folder):
    write_json(folder.results / "heldout.json", {"loss": 3.25})
    write_json(folder.path / "done.json", {"seconds": 1.5})
    assert folder.done() and folder.result("heldout") == {"loss": 3.25}
    assert folder.result_names() == ["heldout"] and folder.result_file("heldout.json").exists()
    (folder.results / "heldout.json").write_text('{"loss": ')
    with pytest.raises(Damaged, match=r"heldout\.json is damaged: it is not JSON.*--force cell"):
        folder.result("heldout")


@pytest.mark.parametrize("name", ["results/heldout.json", "results/train.npz", "metrics.jsonl"])
def test_another_whole_file_in_place_of_a_result_is_noticed(folder, name):
    finished(folder)
    (folder.path / name).write_text('{"loss": 2.25}\n')
    with pytest.raises(Damaged, match=r"its content is not what the cell wrote"):
        folder.read(name)
    (folder.path / name).unlink()
    with pytest.raises(Damaged, match="it is gone"):
        folder.read(name)


def test_kept_results_are_not_a_finished_cell(folder):
    write_json(folder.results / "heldout.json", {"loss": 3.25})
    folder.finish(KEPT, seconds=1.5, kept="results/x")
    assert folder.kept() and not folder.done()
    assert folder.state() == {"state": "kept", "seconds": 1.5, "kept": "results/x"}
    # as older versions restored them
    (folder.path / "kept.json").rename(folder.path / "done.json")
    assert folder.kept() and not folder.done() and folder.state()["state"] == "kept"
    write_json(folder.path / "done.json", {"seconds": 1.5, "kept": "results/x"})
    assert folder.kept() and not folder.done()


def test_a_cell_whose_lock_is_held_is_running_whatever_its_heartbeat_says(folder):
    assert not folder.in_use()
    with folder.held():
        assert folder.state() == {"state": "running"}  # no heartbeat yet
        beat(folder, step=7, time=time.time() - STALE_SECONDS - 10)
        state = folder.state()  # as of a process that is stopped
        assert state["state"] == "running" and state["step"] == 7
        assert STALE_SECONDS + 10 <= state["silent_seconds"] < STALE_SECONDS + 60
        beat(folder, step=7, ended=True)  # of the one that held it before
        write_json(folder.path / "failed.json", {"reason": "earlier"})
        assert folder.state() == {"state": "running"}
    assert folder.state()["state"] == "failed"


def test_looking_at_a_cell_never_keeps_a_process_from_holding_it(folder):
    stop, looks = threading.Event(), []

    def look():
        while not stop.is_set():
            looks.append(folder.in_use())

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for thread in lookers:
        thread.start()
    try:
        for _ in range(200):
            with folder.held() as ours:
                assert ours
    finally:
        stop.set()
        for thread in lookers:
            thread.join()
    assert any(looks)


def test_who_looks_at_a_cell_does_not_hold_it(folder):
    """Another process that looks has the lock shared; whoever wants it waits for that moment to
    pass."""
    folder.path.mkdir()
    with open(folder.path / "lock", "w") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        assert not folder.in_use() and folder.state() == {"state": "waiting"}
        release = threading.Timer(0.3, fcntl.flock, (look, fcntl.LOCK_UN))
        release.start()
        with folder.held() as ours:
            assert ours and folder.in_use()
        release.join()


def test_a_lock_file_that_was_replaced_while_it_was_waited_for_is_not_the_cells(
    folder, monkeypatch
):
    """Whoever locks a file that has another name by now, or none, holds nothing."""
    real, replaced = fcntl.flock, []

    def flock(f, how):
        real(f, how)
        if not replaced and how & fcntl.LOCK_EX:  # between opening the file and locking it
            replaced.append((folder.path / "lock").rename(folder.path / "old"))

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder.held() as ours:
        assert ours and replaced
        with folder.held() as second:
            assert not second


def test_clearing_a_cell_first_forgets_that_it_is_done_and_keeps_its_lock(folder, monkeypatch):
    finished(folder)
    seen = []
    real = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda *a, **k: (seen.append(folder.done()), real(*a, **k))
    )
    with folder.held():
        inode = (folder.path / "lock").stat().st_ino
        folder.clear()
        with folder.held() as second:
            assert not second
    assert seen and not any(seen)
    assert os.listdir(folder.path) == ["lock"] and (folder.path / "lock").stat().st_ino == inode


def test_work_that_two_studies_began_at_once_is_done_in_one_folder(tmp_path):
    runs = Runs(tmp_path)
    one, two = (CellFolder(tmp_path / "cells" / f"{n}-0123456789") for n in ("base", "trunk"))
    with two.held() as ours:
        assert ours
        with one.held() as second:
            assert not second
        assert runs.cell("base", "0123456789") == two
    finished(two)
    with one.held() as late:
        assert not late
    assert runs.cell("base", "0123456789") == runs.current(one) == two


def claimed(runs, study, source):
    ids = study.run_ids("corpus")
    said = claim_study(study, runs, source, ids)
    write_study(study, runs, "corpus", f"rlhf-jax run {source}", source)
    return said


def test_a_study_folder_belongs_to_one_study_file(fake, tmp_path, monkeypatch):
    other = tmp_path / "other.py"
    other.write_text("# another study of the same name")
    assert claimed(fake.runs, fake.study, fake.path) == ""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.py").symlink_to(fake.path)
    for spelling in (fake.path.name, f"./{fake.path.name}", "link.py", fake.path):
        assert claimed(fake.runs, fake.study, spelling) == ""
    with pytest.raises(
        ConfigError, match=r"belongs to the study in .*fake\.py.*other\.py has the same"
    ):
        claim_study(fake.study, fake.runs, other, {})
    changed = load_study(fake.path, overrides=["b.seed=7"])
    said = claimed(fake.runs, changed, fake.path)
    assert "is replaced: it was of 2 cells" in said and "(b, b-child)" in said
    (tmp_path / "link.py").unlink()
    fake.path.rename(tmp_path / "moved.py")
    assert "fake.py, which is gone; " in claimed(fake.runs, changed, tmp_path / "moved.py")


def test_a_metrics_line_cut_by_a_crash_is_left_out(folder):
    folder.path.mkdir()
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert folder.metrics() == [{"step": 1}, {"step": 2}]


def test_equal_work_of_two_studies_has_one_folder(fake):
    runs = fake.runs
    made = runs.cell("trunk", "abcdef0123")
    made.path.mkdir(parents=True)
    assert runs.cell("base", "abcdef0123") == made


def test_status_names_what_is_waited_for(fake):
    write_json(fake.folder("b").path / "done.json", {})
    rows = {r["name"]: r for r in status(fake.study, fake.runs, "corpus")["cells"]}
    assert rows["b"]["state"] == "done"
    assert rows["a-child"]["waiting_for"] == ["a"] and rows["b-child"]["waiting_for"] == []
    assert rows["a"]["run_id"] == fake.study.run_ids("corpus")["a"]
    before = status(fake.study, fake.runs, None)["cells"]
    assert {r["state"] for r in before} == {"waiting"} and before[0]["run_id"] is None


def test_the_study_folder_lists_its_cells_by_id(fake):
    path = write_study(fake.study, fake.runs, "corpus", "rlhf-jax run fake.py")
    index = read_json(path / "study.json")
    assert index["command"] == "rlhf-jax run fake.py" and index["corpus"]["hash"] == "corpus"
    for cell in index["cells"]:
        assert (Runs(fake.runs.root).root / cell["folder"]) == fake.folder(cell["name"]).path


def test_provenance_names_code_versions_and_hardware():
    found = provenance()
    assert set(found) >= {"commit", "dirty", "python", "versions", "host", "hardware", "started"}
    assert "jax" in found["versions"]


def test_cells_of_equal_science_share_one_folder_before_it_exists(tmp_path):
    study = Study("twins", (Pretrain("one"), Pretrain("two"), Pretrain("other", seed=1)))
    folders = Runs(tmp_path).folders(study, "corpus")
    assert folders["one"].path == folders["two"].path != folders["other"].path
