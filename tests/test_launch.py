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

from launch import loop
from launch.display import LiveTable
from launch.graph import Graph
from rlhf_jax.placement import machine
from rlhf_jax.report.terminal import duration
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import read_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.heartbeat import Heartbeat


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


def test_a_cell_that_kills_three_workers_fails_and_the_others_go_on(fake, capfd):
    fake.tell("a", "die")
    assert fake.run(workers=1) == 1
    assert "a: worker died" in (out := capfd.readouterr().out) and "trying again (3 of 3)" in out
    assert fake.log().count("start a") == 3
    state = fake.folder("a").state()
    assert state["state"] == "failed" and state["reason"].startswith("3 workers in turn")
    assert "worker died (signal 9" in state["reason"] and "last words" in state["reason"]
    assert fake.states()["b-child"] == "done"
    fake.tell("a", "")
    assert fake.run() == 0


def test_a_cell_whose_worker_is_killed_and_its_descendants_go_on_in_the_same_run(fake):
    fake.tell("a", "sleep 60")

    def kill() -> None:
        path = fake.folder("a").path / "heartbeat.json"
        while "start a" not in fake.log() or (beat := read_json(path)) is None:
            time.sleep(0.02)
        fake.tell("a", "")
        os.kill(beat["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    assert fake.run() == 0
    thread.join()
    assert fake.log().count("start a") == 2 and fake.log().count("end a-grandchild") == 1


def test_a_worker_that_dies_after_its_cell_has_finished_it(fake):
    fake.tell("a", "die-done")
    assert fake.run() == 0
    assert set(fake.states().values()) == {"done"}


def test_a_worker_that_cannot_start_says_why(fake):
    fake.worker_command = (sys.executable, "-c", "raise SystemExit('no module named whatever')")
    assert fake.run(only=["a"]) == 1
    assert "exit code 1" in fake.folder("a").state()["reason"]
    assert "no module named whatever" in fake.folder("a").state()["reason"]
    assert fake.folder("a").state()["reason"].startswith("worker died")  # once: it was not killed


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
from rlhf_jax.study.runs import Runs
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
    assert "FAILED" not in out
    assert "left: a, b, a-child" in out and "Continue with: rlhf-jax run AGAIN" in out
    assert fake.states()["a"] == "waiting"
    fake.tell("a", "")
    fake.tell("b", "")
    assert fake.run() == 0


def signalled(fake, monkeypatch, signals: int, **cells: str) -> int:
    """The exit code of a launch in this process that gets SIGINT once its first cell has
    started."""
    for name, todo in cells.items():
        fake.tell(name, todo)

    def interrupt() -> None:
        while len(fake.log()) < len(cells):
            time.sleep(0.02)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = fake.run(only=list(cells))
    thread.join()
    return code


def test_a_worker_that_saves_for_long_is_waited_for_and_one_that_hangs_is_not(fake, monkeypatch):
    monkeypatch.setattr(loop, "STOP_SECONDS", 0.5)
    monkeypatch.setattr(loop, "STALE_SECONDS", 1.5)
    assert signalled(fake, monkeypatch, 1, a="sleep 60 slow 4", b="sleep 60 hang") == 130
    assert "stopped a" in fake.log() and "stopped b" not in fake.log()


def test_a_second_signal_ends_a_worker_that_saves_at_once(fake, monkeypatch):
    assert signalled(fake, monkeypatch, 2, a="sleep 60 slow 60") == 130
    assert fake.log() == ["start a"]


def test_workers_get_the_mesh_and_a_cpu_as_many_devices(fake, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # of these tests
    assert fake.run(only=["a"], mesh="data=2,tensor=2", accumulate=3) == 0
    arguments, flags = (fake.control / "started").read_text().split("\n")
    assert "--mesh data=2,tensor=2 --accumulate 3" in arguments
    assert "--xla_force_host_platform_device_count=4" in flags
    assert fake.run(only=["b"]) == 0
    arguments, flags = (fake.control / "started").read_text().split("\n")
    assert "--mesh" not in arguments and "device_count" not in flags


def test_a_clear_that_is_killed_leaves_no_cell_done_without_its_files(fake, monkeypatch):
    assert fake.run() == 0
    seen = []

    def killed(folder) -> None:
        seen.append({n for n, state in fake.states().items() if state == "done"})
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_jax.study.folder.CellFolder.clear", killed)
    with pytest.raises(KeyboardInterrupt):
        fake.run(force=["a"])
    assert seen == [{"b", "b-child"}]


def test_a_cell_that_another_study_begins_under_another_name_is_followed(fake):
    """The launcher has looked for its folder before the other one made it."""
    graph = Graph.of(fake.study, fake.runs.folders(fake.study, "corpus"), {})
    old = graph.jobs["a"].folder
    other = CellFolder(old.path.with_name("z-" + old.path.name.rpartition("-")[2]))
    with other.held():
        assert fake.runs.current(old).path == other.path and not old.path.exists()
        assert fake.runs.current(old).name == "a"


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
    console = Console(width=180, height=40, file=io.StringIO())
    table = LiveTable("title", console)
    console.print(table._render(graph, 2, last=False))
    text = console.file.getvalue()
    assert "not finite at batch 7" in text and "parent a failed" in text
    assert "2 of 5 cells done" in text and "held-out loss 3.2500 ± 0.0125 nats a token" in " ".join(
        text.split()
    )
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
