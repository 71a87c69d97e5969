"""The graph of a launch by itself: what is ready, what waits, how long the rest takes; and a cell
as shown."""

from __future__ import annotations

import json
import sys
import time
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from tiny_results import whole

from launch import display
from launch.graph import Graph
from launch.local import Local, LocalOptions, Worker
from launch.task import Task
from rlhf_jax.kinds import SFT, Compare, Pretrain, Reward
from rlhf_jax.placement import machine
from rlhf_jax.placement.launchers import Launch
from rlhf_jax.report import terminal
from rlhf_jax.study import Study
from rlhf_jax.study.config import CorpusConfig, ModelConfig
from rlhf_jax.study.files import write_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.runs import Runs
from rlhf_jax.study.selection import clear

MODEL = ModelConfig(layers=1, width=32, heads=2, vocab=64)


def graph_of(folder, only=(), seconds=None, members=1):
    """A base, what is compared, and a reward model that needs both; two bases that train together
    if `members` allows."""
    small = {"model": MODEL, "batch": 2, "tokens": 256}
    cells = (
        Pretrain("base", **small),
        Pretrain("other", **small, seed=1),
        SFT("sft", base="base", examples=16),
        Compare("compare", policy="sft", prompts=8),
        Reward("reward", base="base", comparisons="compare"),
    )
    study = Study("s", cells, CorpusConfig(vocab=64, seq_len=64), members=members)
    folders = {c.name: CellFolder(folder / c.name) for c in cells}
    return Graph.of(study, folders, seconds or {}, only)


def finish(graph, *names, outcome="done"):
    for name in names:
        graph.begin([graph.jobs[name]])
        graph.finish(graph.jobs[name], outcome, "why" if outcome == "failed" else None)
    graph.settle()


def states(graph):
    return {name: job.state for name, job in graph.jobs.items()}


def test_a_cell_is_ready_when_all_of_its_parents_are_done(tmp_path):
    graph = graph_of(tmp_path)
    assert [n for n, s in states(graph).items() if s == "ready"] == ["base", "other"]
    finish(graph, "base")  # one of the reward model's two parents
    assert states(graph)["sft"] == "ready" and states(graph)["reward"] == "waiting"
    finish(graph, "sft")
    assert states(graph)["reward"] == "waiting"
    finish(graph, "compare")
    assert states(graph)["reward"] == "ready" and not graph.complete()
    finish(graph, "reward", "other")
    assert graph.complete() and not graph.open() and graph.undone() == []


def test_a_failure_blocks_all_that_come_from_it_and_says_which_it_was(tmp_path):
    graph = graph_of(tmp_path)
    finish(graph, "base")
    finish(graph, "sft", outcome="failed")
    found = {name: (job.state, job.reason) for name, job in graph.jobs.items()}
    assert found["sft"] == ("failed", "why")
    assert found["compare"] == found["reward"] == ("blocked", "parent sft failed")
    assert found["other"][0] == "ready" and graph.open()
    finish(graph, "other")
    assert not graph.open() and not graph.complete()
    assert graph.undone() == ["sft", "compare", "reward"]


def test_a_selection_is_complete_without_the_rest_but_not_without_all_of_itself(tmp_path):
    graph = graph_of(tmp_path, only=["sft", "other"])
    assert list(graph.jobs) == ["base", "other", "sft"] and graph.selected == {"sft", "other"}
    finish(graph, "base", "other")
    assert not graph.complete()
    finish(graph, "sft")
    assert graph.complete()


def test_the_cell_with_the_most_work_behind_it_is_handed_out_first(tmp_path):
    seconds = {"base": 1.0, "other": 10.0, "sft": 2.0, "compare": 3.0, "reward": 4.0}
    assert graph_of(tmp_path, seconds=seconds).next_ready()[0].name == "other"
    seconds["reward"] = 5.0  # 1 + 2 + 3 + 5 against 10
    assert graph_of(tmp_path, seconds=seconds).next_ready()[0].name == "base"


def test_the_time_left_is_planned_by_hand(tmp_path, monkeypatch):
    """Cells took twice what was planned; members of a population share what it takes."""
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    seconds = {"base": 10.0, "other": 10.0, "sft": 20.0, "compare": 30.0, "reward": 40.0}
    graph = graph_of(tmp_path, seconds=seconds, members=2)
    assert graph.seconds_left(1, {}) == 110 and graph.seconds_left(2, {}) == 100
    pair = graph.next_ready()
    assert {job.name for job in pair} == {"base", "other"}
    graph.begin(pair)
    now[0] += 8.0  # of each of the two, 4 are spent
    assert graph.seconds_left(1, {}) == pytest.approx(6 + 6 + 90)
    beats = {"base": {"eta_seconds": 12.0}, "other": {"eta_seconds": 12.0}}
    assert graph.seconds_left(1, beats) == pytest.approx(6 + 6 + 90)
    now[0] += 32.0
    for job in pair:
        graph.finish(job, "done", None)
    assert graph.finished_here == [(10.0, 20.0), (10.0, 20.0)]
    graph.settle()
    assert graph.seconds_left(1, {}) == pytest.approx(2 * 90)
    finish(graph, "sft", "compare")
    graph.begin([graph.jobs["reward"]])
    assert graph.seconds_left(1, {"reward": {"eta_seconds": 500.0}}) == 500


def test_of_a_population_that_trains_the_longest_says_how_long_it_takes(tmp_path):
    graph = graph_of(tmp_path, only=["base", "other"], members=2)
    graph.begin(graph.next_ready())
    beats = {"base": {"eta_seconds": 60.0}, "other": {"eta_seconds": 90.0}}
    assert graph.seconds_left(2, beats) == 90


def test_a_cell_that_another_process_holds_is_looked_at_again_later(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    graph = graph_of(tmp_path)
    job = graph.jobs["base"]
    graph.begin([job])
    graph.finish(job, "held", None)
    write_json(job.folder.path / "done.json", {"seconds": 1.0})
    graph.settle()
    assert job.state == "elsewhere" and graph.open()
    now[0] += 2.5
    graph.settle()
    assert job.state == "done" and graph.jobs["sft"].state == "ready"


# --- a cell as it is shown ------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    graph = graph_of(tmp_path)
    found = graph.jobs["base"]
    found.folder.path.mkdir()
    return found, graph


def test_what_is_shown_of_a_finished_cell_is_what_it_ended_with(job):
    job, graph = job
    rows = [{"step": s, "loss": 9.0 - s, "tokens_per_second": 100.0 * s} for s in (1, 2, 3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (job.folder.path / "metrics.jsonl").write_text(lines + '{"step": 4, "lo')
    assert terminal.last_metrics(job.folder) == rows[-1]
    held = whole(Pretrain.RESULT, {"heldout": {"loss": 2.5, "stderr": 0.25}})
    write_json(job.folder.results / "heldout.json", held["heldout"])
    job.folder.finish(seconds=75.0)
    job.state = "done"
    shown = display.row(job, graph)
    assert shown.seconds == 75.0 and shown.training_loss is None
    assert "2.5000 ± 0.2500" in shown.detail


def test_the_heartbeat_of_an_earlier_process_is_not_shown(job):
    job, graph = job
    graph.begin([job])
    beat = {"time": job.began - 60, "step": 7, "eta_seconds": 30.0, "progress_time": job.began}
    write_json(job.folder.path / "heartbeat.json", beat)
    assert display.row(job, graph).step is None and display.row(job, graph).detail == "starting"
    write_json(job.folder.path / "heartbeat.json", {**beat, "time": job.began + 1, "steps": 9})
    shown = display.row(job, graph)
    assert (shown.step, shown.steps, shown.seconds) == (7, 9, 30.0)


def test_a_waiting_cell_names_what_it_waits_for(tmp_path):
    graph = graph_of(tmp_path)
    finish(graph, "base")
    assert display.row(graph.jobs["reward"], graph).detail == "for compare"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 m 00 s"),
        (3599, "59 m 59 s"),
        (3600, "1 h 00 m"),
        (90_060, "25 h 01 m"),
    ],
)
def test_durations_at_their_borders(seconds, text):
    assert terminal.duration(seconds) == text


# --- what a worker is started with ----------------------------------------------------------------


def test_a_worker_gets_its_threads_devices_and_all_cells_of_a_population(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # what is set already is kept
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS'], os.environ['XLA_FLAGS'], input())"
    events = SimpleQueue()
    worker = Worker([sys.executable, "-c", code], 3, tmp_path / "w.log", events, 0, devices=5)
    worker.give(["m0", "m1"])
    assert events.get(timeout=60) == (worker, None)
    said = worker.log.read_text()
    assert said.startswith("3 ") and "device_count=5" in said and said.endswith("m0 m1\n")


def test_a_cpu_is_split_into_a_device_a_core_for_a_population_alone(fake, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(machine, "cores", lambda: 8)
    started = []

    def worker(command, threads, log, events, slot, devices):
        started.append(devices)
        return SimpleNamespace(cells=[], devices=devices, slot=slot, give=lambda cells: None)

    monkeypatch.setattr("launch.local.Worker", worker)
    for mesh, cells in (("", ("a", "b")), ("", ("a",)), ("data=2", ("a", "b"))):
        launch = Launch(fake.study, fake.path, fake.runs, "corpus", mesh=mesh)
        Local(launch, LocalOptions(workers=1)).start(Task(cells))
    assert started == [8, 1, 2]


def test_a_worker_loads_the_study_that_was_asked_for(fake, monkeypatch):
    started = []
    monkeypatch.setattr(Local, "run", lambda launcher: started.append(launcher))
    monkeypatch.setattr(machine, "cores", lambda: 8)
    fake.run(tiny=True, overrides=["members=1"], workers=2, wandb="offline")
    (launcher,) = started
    assert (launcher.workers, launcher.threads) == (2, 4)
    said = launcher.command[len(fake.worker_command) :]
    assert said == [
        str(fake.path),
        "--tiny",
        "--runs",
        str(fake.runs.root),
        "--threads",
        "4",
        "--wandb",
        "offline",
        "--accumulate",
        "1",
        "members=1",
    ]


def test_cells_that_share_a_folder_are_forgotten_together(tmp_path):
    small = {"model": MODEL, "batch": 2, "tokens": 256}
    cells = (Pretrain("a", **small), Pretrain("b", **small), SFT("c", base="b", examples=16))
    study = Study("s", cells, CorpusConfig(vocab=64, seq_len=32))
    folders = Runs(tmp_path).folders(study, "corpus")
    assert folders["a"].path == folders["b"].path
    write_json(folders["a"].path / "results" / "heldout.json", {})
    folders["a"].finish()
    assert clear(study, folders, ["a", "b"]) == ["a", "b", "c"]
    assert not folders["a"].done() and not folders["a"].results.exists()
