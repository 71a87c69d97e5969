"""Guarantees of `rlhf_jax.train.loop` and `rlhf_jax.train.checkpoints`: resume, damage, divergence."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import copied, mesh, same_bits, tiny_corpus

from rlhf_jax.cells import Pretrain
from rlhf_jax.config import ModelConfig, OptimConfig
from rlhf_jax.execute import run_cell
from rlhf_jax.jobs import language
from rlhf_jax.jobs.context import Context
from rlhf_jax.objectives import language_modelling
from rlhf_jax.parallel import AXES, place_batch
from rlhf_jax.runs import CellFolder, Heartbeat, Runs, write_json
from rlhf_jax.study import Study
from rlhf_jax.train import (
    Checkpoints,
    Diverged,
    Runtime,
    Stopped,
    init_state,
    make_train_step,
    train_step,
)
from rlhf_jax.train import train as train_loop
from rlhf_jax.train.checkpoints import fingerprint

__all__ = ["mesh"]
OPTIM = OptimConfig(lr=0.05, weight_decay=0.1)
STEPS = 9


def regression(params, batch):
    residual = jnp.tanh(batch["x"] @ params["w_in"]) @ params["w_out"] - batch["y"]
    return jnp.sum(residual**2), jnp.float32(len(batch["x"])), {}


class Toy:
    """Cells that fit a small network to numbers drawn with the step as their seed."""

    def __init__(self, folder, mesh, step):
        self.root, self.mesh, self.step, self.logged = folder, mesh, step, []

    def folder(self, name):
        (self.root / name).mkdir(exist_ok=True)
        return CellFolder(self.root / name)

    def batch(self, t):
        rng = np.random.default_rng(t)
        x, y = rng.standard_normal((2, 8, 4)).astype(np.float32)
        return place_batch({"x": x, "y": y}, self.mesh)

    def fresh(self):
        rng = np.random.default_rng(99)
        params = {n: jnp.asarray(rng.standard_normal((4, 4)), jnp.float32) for n in ("w_in", "w_out")}  # fmt: skip
        return init_state(params, OPTIM, STEPS)

    def train(self, name, *, stop_at=None, poison=None, saves=False, keep=2, steps=STEPS):
        run = Runtime(
            self.mesh, AXES, keep=keep, log=self.logged.append,
            checkpoint_seconds=-1.0 if saves else 1e9,
        )  # fmt: skip

        def batch_at(t):
            if t == stop_at:
                run.stop.set()
            batch = self.batch(t)
            return {**batch, "y": batch["y"] * jnp.nan} if t == poison else batch

        def row(metrics, totals):
            totals["sum"] = totals.get("sum", 0.0) + metrics["loss"]
            return {"loss": metrics["loss"], "lr": metrics["lr"], "sum": totals["sum"]}

        folder = self.folder(name)
        return train_loop(
            folder, self.fresh(), self.step, batch_at, steps, run, row, Heartbeat(folder)
        )


@pytest.fixture(scope="module")
def toy_step(mesh):
    return make_train_step(regression, OPTIM, AXES)


@pytest.fixture(scope="module")
def uninterrupted(toy_step, mesh, tmp_path_factory):
    toy = Toy(tmp_path_factory.mktemp("toy"), mesh, toy_step)
    state = toy.train("whole")
    return copied(state), toy.folder("whole").metrics()


@pytest.fixture
def toy(tmp_path, mesh, toy_step):
    return Toy(tmp_path, mesh, toy_step)


@pytest.mark.parametrize("stop_at", [0, 4, STEPS - 1])
def test_resume_is_bit_exact(toy, uninterrupted, stop_at):
    with pytest.raises(Stopped, match=f"step {stop_at + 1} of {STEPS}"):
        toy.train("cut", stop_at=stop_at)
    assert [r["step"] for r in toy.folder("cut").metrics()] == list(range(1, stop_at + 2))
    state = toy.train("cut")
    expected, rows = uninterrupted
    assert same_bits(state, expected)
    assert toy.folder("cut").metrics() == rows
    assert [r["step"] for r in rows] == list(range(1, STEPS + 1))
    assert not toy.logged


def test_a_finished_cell_is_not_trained_again(toy, uninterrupted):
    toy.train("cell")
    state = toy.train("cell", poison=0)
    assert same_bits(state, uninterrupted[0])
    assert toy.folder("cell").metrics() == uninterrupted[1]


def _data_files(path):
    files = [p for p in path.rglob("*") if p.is_file() and p.parent.name == "d"]
    assert files
    return files


def flip(step, part):
    for file in _data_files(step / part):
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 0x10
        file.write_bytes(raw)


def truncate(step, part):
    for file in _data_files(step / part):
        file.write_bytes(file.read_bytes()[:-20])


def delete(step, part):
    for file in _data_files(step / part):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "part"), [(flip, "params"), (flip, "rest"), (delete, "params"), (truncate, "rest")]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(toy, uninterrupted, damage, part):
    with pytest.raises(Stopped):
        toy.train("cell", stop_at=5, saves=True)
    assert _steps(toy, "cell") == [5, 6]
    damage(toy.folder("cell").checkpoints / "6", part)
    state = toy.train("cell")
    assert len(toy.logged) == 1 and "checkpoint 6" in toy.logged[0] and "damaged" in toy.logged[0]
    assert same_bits(state, uninterrupted[0])
    assert toy.folder("cell").metrics() == uninterrupted[1]


def test_a_cell_whose_checkpoints_are_all_damaged_starts_over(toy, uninterrupted):
    with pytest.raises(Stopped):
        toy.train("cell", stop_at=5, saves=True)
    flip(toy.folder("cell").checkpoints / "5", "params")
    (toy.folder("cell").checkpoints / "6" / "meta" / "metadata").write_text("{")
    state = toy.train("cell")
    assert len(toy.logged) == 2
    assert same_bits(state, uninterrupted[0])
    assert toy.folder("cell").metrics() == uninterrupted[1]


def _steps(toy, name):
    checkpoints = Checkpoints(toy.folder(name).checkpoints)
    try:
        return checkpoints.steps()
    finally:
        checkpoints.close()


def test_the_newest_checkpoints_are_kept(toy):
    toy.train("two", saves=True)
    toy.train("three", saves=True, keep=3)
    assert _steps(toy, "two") == [STEPS - 1, STEPS]
    assert _steps(toy, "three") == [STEPS - 2, STEPS - 1, STEPS]


@pytest.mark.parametrize("saves", [False, True])
def test_a_loss_that_is_not_finite_is_named_and_never_saved(toy, saves):
    if not saves:
        with pytest.raises(Stopped):
            toy.train("cell", stop_at=1)
    last = 5 if saves else 2
    with pytest.raises(Diverged, match=rf"step 6 \(batch 5\).*last good checkpoint\s+is step {last}"):  # fmt: skip
        toy.train("cell", poison=5, saves=saves)
    assert _steps(toy, "cell")[-1] == last
    assert [r["step"] for r in toy.folder("cell").metrics()] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(r["loss"]) for r in toy.folder("cell").metrics())


def test_metrics_are_cut_to_the_step_that_is_resumed(toy, uninterrupted):
    with pytest.raises(Stopped):
        toy.train("cell", stop_at=3)
    path = toy.folder("cell").path / "metrics.jsonl"
    with path.open("a") as f:  # a process that was killed had gone on
        f.write(json.dumps({"step": 5, "loss": 1.0}) + "\n" + '{"step": 6, "lo')
    toy.train("cell")
    assert toy.folder("cell").metrics() == uninterrupted[1]


def test_a_save_is_not_touched_by_later_donated_updates(toy, toy_step):
    wide = {n: jnp.ones((600, 600)) for n in ("w_in", "w_out")}  # writing takes longer than a step
    state = init_state(wide, OPTIM, 50)
    data = {k: np.ones((8, 600), np.float32) for k in ("x", "y")}
    step = make_train_step(lambda p, b: regression(p, b), OPTIM, AXES)
    state, _ = step(state, data)
    checkpoints = Checkpoints(toy.root / "checkpoints")
    taken = copied(state)
    checkpoints.save(1, state, {"totals": {}})
    for _ in range(10):
        state, _ = step(state, data)
    jax.block_until_ready(state)
    checkpoints.wait()
    restored, meta = checkpoints.restore(state)
    checkpoints.close()
    assert same_bits(restored, taken) and meta == {"totals": {}}
    assert not same_bits(state.params, taken.params)


def test_one_flipped_bit_changes_the_fingerprint():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 7)).astype(np.float32)
    mark = jax.jit(fingerprint)
    clean = int(mark({"x": x})["x"])
    for bit in range(32):
        words = x.copy().view(np.uint32)
        words[rng.integers(5), rng.integers(7)] ^= np.uint32(1 << bit)
        assert int(mark({"x": words.view(np.float32)})["x"]) != clean
    swapped = x.copy()
    swapped[0, 0], swapped[4, 6] = x[4, 6], x[0, 0]
    assert int(mark({"x": swapped})["x"]) != clean


# --- a real pretraining cell ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_cell_that_continues_another_equals_one_long_cell(corpus, mesh, tmp_path, monkeypatch):
    """With a learning rate that is constant the two are the same computation: moments, data
    position and schedule carry over bit for bit."""
    model = ModelConfig(layers=1, width=16, heads=2, vocab=340)
    flat = OptimConfig(schedule="constant", warmup=0.0)
    cells = (
        Pretrain("short", model=model, batch=4, tokens=4 * 32 * 3, optim=flat),
        Pretrain("long", model=model, batch=4, tokens=4 * 32 * 6, optim=flat),
        Pretrain("longer", model=model, batch=4, tokens=4 * 32 * 6, optim=flat, continues="short"),
    )
    # The three cells share one program; compile it once, and leave the held-out loss out.
    shared = train_step(lambda p, b: language_modelling(p, b, model, AXES), flat, AXES)
    monkeypatch.setattr(language, "train_step", lambda *_: shared)
    monkeypatch.setattr(language, "heldout_loss", lambda *_: {})
    study = Study("s", cells, corpus.cfg)
    folders = Runs(tmp_path).folders(study, corpus.content_hash)
    trained = {}
    for cell in cells:
        with Heartbeat(folders[cell.name]) as beat:
            run = Runtime(mesh, AXES)
            ctx = Context(study, cell, folders, corpus, run, beat)
            run_cell(ctx)
            trained[cell.name] = ctx.language_model(cell.name)
    assert same_bits(trained["longer"], trained["long"])
    assert not same_bits(trained["short"], trained["long"])
    timing = ("tokens_per_second", "mfu", "targets")
    rows = [{k: v for k, v in r.items() if k not in timing} for r in folders["long"].metrics()]
    more = [{k: v for k, v in r.items() if k not in timing} for r in folders["longer"].metrics()]
    assert more == rows[3:]


# --- Weights & Biases ----------------------------------------------------------------------------


def test_wandb_offline_keeps_our_rows(toy, monkeypatch, uninterrupted):
    wandb = pytest.importorskip("wandb")
    from rlhf_jax.train.metrics import Sink

    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = toy.folder("name-0123456789")
    write_json(folder.path / "config.json", {"kind": "pretrain", "seed": 3})
    with Sink(folder, "offline") as sink:
        for row in uninterrupted[1]:
            sink.write(row)
    assert folder.metrics() == uninterrupted[1]
    wandb.teardown()  # its process writes the end of the file when it leaves, as at the end of ours
    (run,) = (folder.path / "wandb").glob("offline-run-*-0123456789")
    raw = b"".join(p.read_bytes() for p in run.glob("*.wandb"))
    assert [word for word in (b"loss", b"lr", b"seed") if word not in raw] == []
    shutil.rmtree(folder.path / "wandb")
