"""The local launcher, with a worker that does not train."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from launch import machine
from launch.display import LiveTable, duration
from launch.graph import Graph
from rlhf_jax.config import ConfigError
from rlhf_jax.runs import Heartbeat, read_json


def test_every_cell_runs_once_and_after_its_parents(fake):
    assert fake.run() == 0
    log = fake.log()
    assert sorted(log) == sorted(
        f"{w} {c.name}" for c in fake.study.cells for w in ("start", "end")
    )
    for cell in fake.study.cells:
        for parent in cell.parents():
            assert log.index(f"end {parent}") < log.index(f"start {cell.name}")


def test_finished_cells_are_not_run_again(fake):
    assert fake.run() == 0
    before = fake.log()
    assert fake.run() == 0
    assert fake.log() == before


def test_independent_cells_go_on_after_a_failure(fake, capfd):
    fake.tell("a", "fail")
    assert fake.run(again="rlhf-jax run STUDY") == 1
    states = fake.states()
    assert states["a"] == "failed" and states["a-child"] == "waiting"
    assert states["b"] == states["b-child"] == "done"
    told = capfd.readouterr().out
    assert "a: FAILED: asked to" in told
    assert "a-grandchild: waiting: parent a failed" in told
    assert "Continue with: rlhf-jax run STUDY" in told


def test_a_failed_cell_is_tried_again_by_the_next_run(fake):
    fake.tell("a", "fail")
    assert fake.run() == 1
    fake.tell("a", "")
    assert fake.run() == 0
    assert fake.log().count("start b") == 1


def test_only_runs_the_selection_and_its_unfinished_ancestors(fake):
    assert fake.run(only=["b-*"]) == 0
    assert fake.log() == ["start b", "end b", "start b-child", "end b-child"]
    fake.tell("b", "fail")  # would fail if it ran again
    assert fake.run(only=["b-child", "a"]) == 0
    assert fake.states()["a-child"] == "waiting"


def test_force_reruns_the_cells_and_all_that_start_from_them(fake):
    assert fake.run() == 0
    assert fake.run(force=["a-child"]) == 0
    log = fake.log()
    assert log.count("start a-child") == log.count("start a-grandchild") == 2
    assert log.count("start a") == log.count("start b-child") == 1


def test_force_refuses_while_a_live_process_holds_a_cell(fake):
    assert fake.run() == 0
    with fake.folder("a-grandchild").held() as ours:
        assert ours
        with pytest.raises(ConfigError, match=r"a-grandchild.*being run by another process"):
            fake.run(force=["a"])
    assert set(fake.states().values()) == {"done"}


def test_unknown_globs_are_refused(fake):
    with pytest.raises(ConfigError, match="Did you mean 'b-child'"):
        fake.run(only=["b-chil"])
    with pytest.raises(ConfigError, match="no cell matches 'zzz'"):
        fake.run(force=["zzz"])


def test_a_worker_that_dies_fails_its_cell_and_is_replaced(fake):
    fake.tell("a", "die")
    assert fake.run(workers=1) == 1
    state = fake.folder("a").state()
    assert state["state"] == "failed"
    assert "worker died (signal 9" in state["reason"] and "last words" in state["reason"]
    assert fake.states()["b-child"] == "done"
    fake.tell("a", "")
    assert fake.run() == 0


def test_a_worker_killed_from_outside_is_noticed(fake):
    fake.tell("a", "sleep 60")

    def kill() -> None:
        while (beat := read_json(fake.folder("a").path / "heartbeat.json")) is None:
            time.sleep(0.02)
        os.kill(beat["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    assert fake.run() == 1
    thread.join()
    assert "signal 9" in fake.folder("a").state()["reason"]


def test_a_worker_that_cannot_start_says_why(fake):
    fake.worker_command = (sys.executable, "-c", "raise SystemExit('no module named whatever')")
    assert fake.run(only=["a"]) == 1
    assert "exit code 1" in fake.folder("a").state()["reason"]
    assert "no module named whatever" in fake.folder("a").state()["reason"]


def test_a_cell_held_by_another_process_is_waited_for(fake):
    folder = fake.folder("a")
    release = threading.Event()

    def other() -> None:
        with folder.held(), Heartbeat(folder, every=0.1):
            release.wait(10)
            (folder.path / "done.json").write_text("{}")

    thread = threading.Thread(target=other)
    thread.start()
    threading.Timer(1.0, release.set).start()
    assert fake.run(only=["a-child"]) == 0
    thread.join()
    assert "start a" not in fake.log() and "end a-child" in fake.log()


def test_a_cell_whose_other_holder_vanishes_is_taken_over(fake):
    folder = fake.folder("a")

    def other() -> None:
        with folder.held():
            time.sleep(1.0)

    thread = threading.Thread(target=other)
    thread.start()
    time.sleep(0.2)
    assert fake.run(only=["a"]) == 0
    thread.join()
    assert fake.log() == ["start a", "end a"]


LAUNCH = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import FakeLaunch
launch = FakeLaunch.__new__(FakeLaunch)
launch.__dict__.update(
    path=Path({folder!r}) / "fake.py", control=Path({folder!r}) / "control",
    worker_command=(sys.executable, {folder!r} + "/worker.py", {folder!r} + "/control"))
from rlhf_jax.runs import Runs
from rlhf_jax.study import load_study
launch.runs, launch.study = Runs({folder!r} + "/runs"), load_study(launch.path)
sys.exit(launch.run(again="rlhf-jax run AGAIN"))
"""


def start_launcher(fake) -> subprocess.Popen:
    code = LAUNCH.format(tests=os.path.dirname(__file__), folder=str(fake.path.parent))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 20
    while not {"start a", "start b"} <= set(fake.log()):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_launch_saves_says_what_is_left_and_goes_on(fake, number):
    fake.tell("a", "sleep 60")
    fake.tell("b", "sleep 60")
    process = start_launcher(fake)
    process.send_signal(number)
    out, _ = process.communicate(timeout=15)
    assert process.returncode == 128 + number
    assert "stopped a" in fake.log() and "stopped b" in fake.log()
    assert "left: a, b, a-child" in out and "Continue with: rlhf-jax run AGAIN" in out
    assert fake.states()["a"] == "waiting"
    fake.tell("a", "")
    fake.tell("b", "")
    assert fake.run() == 0


def test_a_killed_launcher_leaves_no_worker_in_a_cell_and_the_next_run_finishes(fake):
    fake.tell("a", "sleep 1.5")
    process = start_launcher(fake)
    process.kill()
    process.wait()
    fake.tell("a", "")
    assert fake.run() == 0
    assert set(fake.states().values()) == {"done"}


def test_the_longest_remaining_path_goes_first(fake):
    folders = fake.runs.folders(fake.study, "corpus")
    seconds = {"a": 1.0, "a-child": 1.0, "a-grandchild": 1.0, "b": 2.0, "b-child": 5.0}
    assert Graph.of(fake.study, folders, seconds).next_ready()[0].name == "b"
    seconds["a-grandchild"] = 9.0
    assert Graph.of(fake.study, folders, seconds).next_ready()[0].name == "a"


def test_the_table_shows_every_state_and_folds_when_it_is_too_long(fake):
    fake.tell("a", "fail")
    fake.run(display="none")
    graph = Graph.of(fake.study, fake.runs.folders(fake.study, "corpus"), {})
    graph.begin([graph.jobs["a"]])
    graph.finish(graph.jobs["a"], "failed", "not finite at batch 7")
    graph.settle()
    console = Console(width=100, height=40, file=io.StringIO())
    table = LiveTable("title", console)
    console.print(table._render(graph, 2, last=False))
    text = console.file.getvalue()
    assert "not finite at batch 7" in text and "parent a failed" in text
    assert "2 of 5 cells done" in text and "3.2500" in text
    small = Console(width=100, height=9, file=io.StringIO())
    small.print(LiveTable("title", small)._render(graph, 2, last=False))
    assert "not shown: 2 done" not in text
    graph.jobs.update({f"x{i}": graph.jobs["b"] for i in range(9)})
    small.print(LiveTable("title", small)._render(graph, 2, last=False))
    assert "done" in small.file.getvalue() and "not shown" in small.file.getvalue()


def test_durations_read_well():
    assert [duration(s) for s in (3.2, 200, 7500)] == ["3 s", "3 m 20 s", "2 h 05 m"]


def test_an_accelerator_is_seen_only_where_nothing_hides_it(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not machine.accelerator() and machine.default_workers() == machine.cores()
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert machine.accelerator() and machine.default_workers() == 1
