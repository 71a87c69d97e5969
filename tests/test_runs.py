"""Run folders: states that tell the truth, locks that die with their holder, atomic files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from rlhf_jax.cells import Pretrain
from rlhf_jax.runs import (
    STALE_SECONDS,
    CellFolder,
    Heartbeat,
    Runs,
    provenance,
    read_json,
    status,
    write_json,
    write_study,
)
from rlhf_jax.study import Study


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
from rlhf_jax.runs import CellFolder
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
