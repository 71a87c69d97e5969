"""Guarantees of populations: cells that differ in numbers alone are found, train as one program,
and come out as they would have alone, whatever happens to them or to each other."""

import dataclasses
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import mesh, same_bits, tiny_corpus
from tiny_results import HELDOUT

from launch.graph import Graph
from rlhf_jax.kinds import Pretrain
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.pretrain import job as language
from rlhf_jax.model import Axes, decays
from rlhf_jax.model.sharding import AXES
from rlhf_jax.objectives import language_modelling
from rlhf_jax.study import Study, load_study
from rlhf_jax.study.config import CorpusConfig, ModelConfig, OptimConfig, to_json
from rlhf_jax.study.files import read_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.plan import make_plan
from rlhf_jax.study.populations import populations
from rlhf_jax.study.runs import Runs
from rlhf_jax.train import Checkpoints, Diverged, Population, Runtime, Stopped, train_step
from rlhf_jax.train.checkpoints import Unwritten
from rlhf_jax.worker import run_cell, run_cells

__all__ = ["mesh"]
ROOT = Path(__file__).parent.parent
MODEL = ModelConfig(layers=1, width=16, heads=2, vocab=340)
STEPS = 6
BASE = Pretrain("m0", model=MODEL, batch=4, tokens=4 * 32 * STEPS, optim=OptimConfig(lr=1e-2))


def numbers(cell, name, **changes):
    optim = {k: changes.pop(k) for k in ("lr", "weight_decay") if k in changes}
    return dataclasses.replace(
        cell, name=name, optim=dataclasses.replace(cell.optim, **optim), **changes
    )


MEMBERS = (
    BASE,
    numbers(BASE, "m1", seed=1),
    numbers(BASE, "m2", lr=3e-3, weight_decay=0.0),
)


# --- who trains with whom ------------------------------------------------------------------------


def test_cells_that_differ_in_numbers_alone_are_one_population():
    others = (
        dataclasses.replace(BASE, name="batch", batch=2),
        dataclasses.replace(BASE, name="steps", tokens=4 * 32 * 7),
        dataclasses.replace(BASE, name="model", model=dataclasses.replace(MODEL, heads=4)),
        dataclasses.replace(BASE, name="clip", optim=dataclasses.replace(BASE.optim, clip=2.0)),
        dataclasses.replace(BASE, name="same-work"),
    )
    study = Study("s", MEMBERS + others, CorpusConfig(vocab=340, seq_len=32))
    assert populations(study) == dict.fromkeys(("m0", "m1", "m2"), ("m0", "m1", "m2"))
    assert populations(dataclasses.replace(study, members=1)) == {}
    assert populations(dataclasses.replace(study, members=2)) == dict.fromkeys(
        ("m0", "m1"), ("m0", "m1")
    )


def test_branches_of_different_trunks_are_one_population_and_of_different_lengths_are_not():
    def branch(name, trunk, seed=0):
        return dataclasses.replace(BASE, name=name, tokens=4 * 32 * 12, continues=trunk, seed=seed)

    longer = dataclasses.replace(BASE, name="longer", tokens=4 * 32 * 8)
    cells = (*MEMBERS, longer, branch("b0", "m0"), branch("b1", "m1", 1), branch("b2", "longer"))
    groups = populations(Study("s", cells, CorpusConfig(vocab=340, seq_len=32)))
    assert groups["b0"] == groups["b1"] == ("b0", "b1") and "b2" not in groups


def test_models_that_fill_a_device_train_alone():
    model = ModelConfig(12, 768, 12, vocab=340)
    large = dataclasses.replace(BASE, model=model, batch=256, tokens=10**6)
    study = Study("s", (large, numbers(large, "m1", seed=1)), CorpusConfig(vocab=340))
    assert populations(study) == {}


def test_a_population_begins_when_all_of_it_is_ready_and_is_planned_as_a_whole(tmp_path):
    branches = tuple(
        dataclasses.replace(BASE, name=f"b{i}", tokens=4 * 32 * 12, continues=f"m{i}", seed=i)
        for i in range(2)
    )
    study = Study("s", (*MEMBERS, *branches), CorpusConfig(vocab=340, seq_len=32))
    folders = {c.name: CellFolder(tmp_path / c.name) for c in study.cells}
    graph = Graph.of(study, folders, {})
    assert [j.name for j in graph.next_ready()] == ["m0", "m1", "m2"]
    graph.begin(graph.next_ready())
    graph.finish(graph.jobs["m0"], "done", None)
    graph.settle()
    assert graph.jobs["b0"].state == "ready" and graph.next_ready() == []
    graph.finish(graph.jobs["m1"], "done", None)
    graph.settle()
    assert [j.name for j in graph.next_ready()] == ["b0", "b1"]
    graph.finish(graph.jobs["b1"], "failed", None)
    assert [j.name for j in graph.next_ready()] == ["b0"]
    alone = make_plan(dataclasses.replace(study, members=1), Runs(tmp_path)).cells
    together = make_plan(study, Runs(tmp_path)).cells
    assert [c.members for c in together] == [3, 3, 3, 2, 2]
    assert together[0].memory > alone[0].memory and together[0].seconds == alone[0].seconds


# --- training together ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


class World:
    """A root of run folders, and the members' contexts in it."""

    def __init__(self, root, corpus, mesh, cells=MEMBERS):
        self.study = Study("s", cells, corpus.cfg)
        self.folders = Runs(root).folders(self.study, corpus.content_hash)
        self.corpus, self.mesh, self.logged = corpus, mesh, []

    def context(self, cell, **options):
        run = Runtime(self.mesh, AXES, log=self.logged.append, **options)
        beat = Heartbeat(self.folders[cell.name])
        self.folders[cell.name].path.mkdir(parents=True, exist_ok=True)
        return Context(self.study, cell, self.folders, self.corpus, run, beat)

    def together(self, cells=None, **options):
        ctxs = [self.context(c, **options) for c in cells or self.study.cells]
        for c in ctxs[1:]:
            c.runtime = ctxs[0].runtime
        return run_cells(ctxs)

    def model(self, name):
        return self.context(self.study[name]).language_model(name)

    def rows(self, name):
        timing = ("tokens_per_second", "mfu")
        return [
            {k: v for k, v in r.items() if k not in timing} for r in self.folders[name].metrics()
        ]


@pytest.fixture(autouse=True)
def one_program(monkeypatch):
    """The cells' programs are compiled once, whatever test runs them."""
    monkeypatch.setattr(language, "train_step", lambda *args: STEP[bool(args[3].params)])
    monkeypatch.setattr(
        Population,
        "compiled",
        lambda self, step: COMPILED.setdefault(self.devices, COMPILE(self, step)),
    )
    monkeypatch.setattr(language, "heldout_loss", lambda params, *_: HELDOUT)


def _step(axes):
    return train_step(
        lambda p, b: language_modelling(p, b, MODEL, axes), BASE.optim, partial(decays, MODEL), axes
    )


STEP = {True: _step(AXES), False: _step(Axes())}
COMPILE, COMPILED = Population.compiled, {}


@pytest.fixture(scope="module")
def alone(corpus, mesh, tmp_path_factory):
    world = World(tmp_path_factory.mktemp("alone"), corpus, mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "heldout_loss", lambda params, *_: HELDOUT)
        for cell in MEMBERS:
            run_cell(world.context(cell))
    return world


@pytest.fixture(scope="module")
def undisturbed(corpus, mesh, tmp_path_factory):
    world = World(tmp_path_factory.mktemp("together"), corpus, mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "heldout_loss", lambda params, *_: HELDOUT)
        assert world.together() == [None] * 3
    return world


def same(a, b, name):
    """Rows and parameters, within the rounding of programs that are compiled differently."""
    for x, y in zip(a.rows(name), b.rows(name), strict=True):
        assert x.keys() == y.keys()
        np.testing.assert_allclose([*x.values()], [*y.values()], rtol=2e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        *jax.device_get((a.model(name), b.model(name))),
    )


def same_to_the_bit(a, b, name):
    assert a.rows(name) == b.rows(name)
    assert same_bits(a.model(name), b.model(name))


def test_members_equal_the_same_cells_alone(alone, undisturbed):
    for cell in MEMBERS:
        same(alone, undisturbed, cell.name)
        assert read_json(undisturbed.folders[cell.name].path / "done.json")["seconds"] >= 0
    losses = [undisturbed.rows(c.name)[-1]["loss"] for c in MEMBERS]
    assert len(set(losses)) == 3


def test_members_do_not_depend_on_the_devices(undisturbed, corpus, mesh, tmp_path, monkeypatch):
    """Three on one device are computed like two and two on two."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    world = World(tmp_path, corpus, mesh)
    assert world.together() == [None] * 3
    for cell in MEMBERS:
        same_to_the_bit(world, undisturbed, cell.name)


@pytest.mark.parametrize("lost", [False, True], ids=["stopped", "killed between two saves"])
def test_an_interrupted_population_equals_an_undisturbed_one(
    undisturbed, corpus, mesh, tmp_path, monkeypatch, lost
):
    world = World(tmp_path, corpus, mesh)
    batch = type(corpus).batch

    def stopping(self, split, size, seed, t, subset=None):
        if t == 3:
            ctxs[0].runtime.stop.set()
        return batch(self, split, size, seed, t, subset)

    ctxs = [world.context(c, checkpoint_seconds=-1.0) for c in MEMBERS]
    for c in ctxs[1:]:
        c.runtime = ctxs[0].runtime
    with monkeypatch.context() as patch:
        patch.setattr(type(corpus), "batch", stopping)
        with pytest.raises(Stopped, match=f"step 4 of {STEPS}"):
            run_cells(ctxs)
    if lost:  # one member had not been saved yet when the process died
        checkpoints = Checkpoints(world.folders["m1"].checkpoints)
        assert checkpoints.steps() == [3, 4]
        checkpoints.forget_after(3)
        checkpoints.close()
    assert world.together() == [None] * 3
    for cell in MEMBERS:
        same_to_the_bit(world, undisturbed, cell.name)


def test_a_member_that_diverges_does_not_hurt_the_others(undisturbed, corpus, mesh, tmp_path):
    wild = numbers(BASE, "wild", lr=1e38)
    world = World(tmp_path, corpus, mesh, (BASE, wild, *MEMBERS[1:]))
    outcomes = world.together()
    assert isinstance(outcomes.pop(1), Diverged) and outcomes == [None] * 3
    for cell in MEMBERS:
        same_to_the_bit(world, undisturbed, cell.name)
    assert not world.folders["wild"].done()
    assert all(np.isfinite(r["loss"]) for r in world.folders["wild"].metrics())
    with pytest.raises(Diverged, match="Lower the learning rate"):
        world.together([wild])


@pytest.mark.parametrize("method", ["save", "verify"])
def test_a_member_whose_checkpoint_is_not_written_does_not_hurt_the_others(
    undisturbed, corpus, mesh, tmp_path, monkeypatch, method
):
    world, real = World(tmp_path, corpus, mesh), getattr(Checkpoints, method)

    def failing(self, *args):
        if self.path == world.folders["m1"].checkpoints:
            raise Unwritten("as planned")
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, method, failing)
        outcomes = world.together()
    assert isinstance(outcomes.pop(1), Unwritten) and outcomes == [None] * 2
    for name in ("m0", "m2"):
        same_to_the_bit(world, undisturbed, name)
    assert not world.folders["m1"].done()
    assert not (world.folders["m1"].path / "checkpoint.json").exists()


def test_a_member_that_joins_later_catches_up_by_itself(
    undisturbed, corpus, mesh, tmp_path, monkeypatch
):
    world = World(tmp_path, corpus, mesh)
    batch, runtime = type(corpus).batch, []

    def stopping(self, split, size, seed, t, subset=None):
        if t == 2:
            runtime[0].stop.set()
        return batch(self, split, size, seed, t, subset)

    ctxs = [world.context(c) for c in MEMBERS[:2]]
    ctxs[1].runtime = ctxs[0].runtime
    runtime.append(ctxs[0].runtime)
    with monkeypatch.context() as patch:
        patch.setattr(type(corpus), "batch", stopping)
        with pytest.raises(Stopped):
            run_cells(ctxs)
    assert world.together() == [None] * 3
    for cell in MEMBERS:
        same(world, undisturbed, cell.name)


def test_under_vmap_members_equal_the_same_cells_alone(alone, mesh, corpus, monkeypatch):
    """As on an accelerator, where a device takes its members at once."""
    from rlhf_jax.train import population as module

    monkeypatch.setattr(module, "platform", lambda: "gpu")
    pop = Population(4, jax.local_devices()[:2])
    step = COMPILE(pop, STEP[False])
    ctxs = [alone.context(c) for c in MEMBERS]
    members = [language._pretrain_member(c, alone=False) for c in ctxs]
    state = pop.join([m.state for m in members])
    losses = []
    for t in range(STEPS):
        state, metrics = step(state, pop.join([m.batch_at(t) for m in members]))
        losses.append([float(m["loss"]) for m in pop.split(metrics)[:3]])
    for cell, got in zip(MEMBERS, np.transpose(losses), strict=True):
        np.testing.assert_allclose(got, [r["loss"] for r in alone.rows(cell.name)], rtol=2e-5)


# --- as a user runs it ---------------------------------------------------------------------------

STUDY = """
from dataclasses import replace
from rlhf_jax.kinds import Pretrain
from rlhf_jax.study import CorpusConfig, ModelConfig, OptimConfig
from rlhf_jax.study.config import from_json
from rlhf_jax.study import Study


def study(tiny):
    corpus = from_json(CorpusConfig, {corpus!r})
    model = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.vocab)
    base = Pretrain("m0", model=model, batch=4, tokens=4 * 32 * 6, optim=OptimConfig(lr=1e-2))
    wild = replace(base, name="wild", optim=OptimConfig(lr=1e38))
    return Study("pop", (base, replace(base, name="m1", seed=1), wild), corpus)
"""


def test_a_launch_trains_a_population_in_one_worker(corpus, tmp_path):
    path, runs = tmp_path / "pop.py", Runs(tmp_path / "runs")
    path.write_text(STUDY.format(corpus=to_json(corpus.cfg)))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    words = ["run", str(path), "--runs", str(runs.root), "--display", "lines"]
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_jax.cli", *words],
        env=env,
        text=True,
        capture_output=True,
        timeout=280,
    )
    assert done.returncode == 1 and "wild: FAILED: Diverged" in done.stdout, done.stderr[-2000:]
    study = load_study(path)
    folders = runs.folders(study, corpus.content_hash)
    assert folders["m0"].done() and folders["m1"].done() and not folders["wild"].done()
    sessions = [read_json(f.path / "provenance.json")["sessions"] for f in folders.values()]
    assert [[s["members"] for s in of_cell] for of_cell in sessions] == [[3]] * 3
    for name in ("m0", "m1"):
        assert [r["step"] for r in folders[name].metrics()] == list(range(1, STEPS + 1))
        assert folders[name].result("heldout")["loss"] > 0
