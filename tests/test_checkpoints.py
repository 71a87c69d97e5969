"""Guarantees of `rlhf_jax.train.loop` and `rlhf_jax.train.checkpoints`: resume, divergence,
fingerprints."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import copied, mesh, same_bits, tiny_corpus
from tiny_results import HELDOUT
from tiny_toy import OPTIM, STEPS, all_decay, regression, toy, toy_step, uninterrupted

from rlhf_jax.kinds import Pretrain
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.pretrain import job as language
from rlhf_jax.model import decays
from rlhf_jax.model.sharding import AXES
from rlhf_jax.objectives import language_modelling
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, ModelConfig, OptimConfig
from rlhf_jax.study.files import write_json
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.runs import Runs
from rlhf_jax.train import (
    Checkpoints,
    Diverged,
    Runtime,
    Stopped,
    init_state,
    make_train_step,
    train_step,
)
from rlhf_jax.train.checkpoints import fingerprint
from rlhf_jax.worker import run_cell

__all__ = ["mesh", "toy", "toy_step", "uninterrupted"]
# Of coroutines that orbax drops when reading fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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


def test_the_newest_checkpoints_are_kept(toy):
    toy.train("two", saves=True)
    toy.train("three", saves=True, keep=3)
    assert toy.steps("two") == [STEPS - 1, STEPS]
    assert toy.steps("three") == [STEPS - 2, STEPS - 1, STEPS]


@pytest.mark.parametrize("saves", [False, True])
def test_a_loss_that_is_not_finite_is_named_and_never_saved(toy, saves):
    if not saves:
        with pytest.raises(Stopped):
            toy.train("cell", stop_at=1)
    last = 5 if saves else 2
    with pytest.raises(
        Diverged, match=rf"step 6 \(batch 5\).*last good checkpoint\s+is step {last}"
    ):
        toy.train("cell", poison=5, saves=saves)
    assert toy.steps("cell")[-1] == last
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
    step = make_train_step(lambda p, b: regression(p, b), OPTIM, all_decay, AXES)
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


def test_changes_of_all_elements_change_the_fingerprint():
    """Of an array of a power of two elements, to whose plain weighted sum some of these add 0."""
    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    mark = jax.jit(fingerprint)
    changed = {"negated": -x, "doubled": 2 * x, "reversed": x[::-1], "turned": x.T.reshape(x.shape)}
    for how, y in changed.items():
        assert int(mark(y)) != int(mark(x)), how


def mixed_sum(words):
    """The fingerprint in Python's integers, word by word."""
    total = 0
    for i, word in enumerate(words):
        word ^= i * 0x9E3779B9 % 2**32
        word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
        word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
        total += word ^ word >> 16
    return total % 2**32


@pytest.mark.parametrize(
    "dtype", ["float32", "int32", "bfloat16", "float16", "int8", "uint16", "bool"]
)
def test_every_element_of_an_array_of_any_width_is_in_its_fingerprint(dtype):
    rng = np.random.default_rng(1)
    x = np.array(
        jnp.asarray(
            rng.integers(-90, 90, (3, 5)) / 100 if "float" in dtype else rng.integers(0, 2, (3, 5))
        ).astype(dtype)
    )
    unsigned = np.dtype(f"uint{8 * x.dtype.itemsize}")
    clean = int(jax.jit(fingerprint)(x))
    assert clean == mixed_sum(map(int, x.view(unsigned).ravel()))
    for at in np.ndindex(x.shape):
        changed = x.copy()
        changed.view(unsigned)[at] ^= 1
        assert int(jax.jit(fingerprint)(changed)) != clean


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
    shared = train_step(
        lambda p, b: language_modelling(p, b, model, AXES), flat, partial(decays, model), AXES
    )
    monkeypatch.setattr(language, "train_step", lambda *_: shared)
    monkeypatch.setattr(language, "heldout_loss", lambda *_: HELDOUT)
    study = Study("s", cells, corpus.cfg)
    folders = Runs(tmp_path).folders(study, corpus.content_hash)
    trained, rows = {}, {}
    for cell in cells:
        with Heartbeat(folders[cell.name]) as beat:
            run = Runtime(mesh, AXES)
            ctx = Context(study, cell, folders, corpus, run, beat)
            run_cell(ctx)
            trained[cell.name] = ctx.language_model(cell.name)
            rows[cell.name] = folders[cell.name].metrics()
    # Its parent's last checkpoint or none: there is one before, and other numbers in this one.
    last = folders["short"].checkpoints / "3"
    shutil.copytree(last, folders["short"].checkpoints / "2")
    for file in (last / "rest").rglob("manifest.ocdbt"):
        file.write_bytes(b"")
    folders["longer"].clear()
    with Heartbeat(folders["longer"]) as beat:
        ctx = Context(study, cells[2], folders, corpus, Runtime(mesh, AXES), beat)
        with pytest.raises(ConfigError, match=r"step 3 in .*damaged.*--force short"):
            run_cell(ctx)
    assert last.exists() and not folders["longer"].done()
    assert same_bits(trained["longer"], trained["long"])
    assert not same_bits(trained["short"], trained["long"])
    timing = ("tokens_per_second", "mfu", "targets")
    long, longer = (
        [{k: v for k, v in r.items() if k not in timing} for r in rows[n]]
        for n in ("long", "longer")
    )
    assert longer == long[3:]


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
