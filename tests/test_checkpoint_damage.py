"""Guarantees of checkpoints that are damaged, cannot be read or cannot be written: no result rests
on wrong numbers, nothing whole is deleted, and whoever runs the command is told what to do."""

import json
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_models import mesh, same_bits
from tiny_toy import STEPS, Toy, toy, toy_step, uninterrupted

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import read_json, write_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.runs import Runs
from rlhf_jax.train import Checkpoints, Stopped
from rlhf_jax.train import checkpoints as module
from rlhf_jax.train.checkpoints import Unreadable, Unwritten
from rlhf_jax.train.loop import final_checkpoint, final_state

__all__ = ["mesh", "toy", "toy_step", "uninterrupted"]
# Of coroutines that orbax drops when reading fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def cells(mesh, toy_step, tmp_path_factory):
    """A finished cell (steps 8 and 9 are kept) and one that was stopped (5 and 6); tests work on
    copies."""
    toy = Toy(tmp_path_factory.mktemp("cells"), mesh, toy_step)
    toy.train("finished", saves=True)
    with pytest.raises(Stopped):
        toy.train("stopped", stop_at=5, saves=True)
    return toy.root


@pytest.fixture
def finished(cells, tmp_path):
    shutil.copytree(cells / "finished", tmp_path / "parent-0123456789")
    folder = CellFolder(tmp_path / "parent-0123456789")
    write_json(folder.path / "done.json", {"seconds": 1.0})
    return folder


@pytest.fixture
def stopped(cells, toy):
    shutil.copytree(cells / "stopped", toy.root / "stopped")
    return toy.folder("stopped")


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    file.write_bytes(raw)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def delete(file):
    file.unlink()


def rewrite(step, change):
    """Other parameters, written by orbax as the first ones were: every file of it is valid."""
    writer = ocp.PyTreeCheckpointer()
    params = change(jax.device_get(writer.restore(step / "params")))
    shutil.rmtree(step / "params")
    writer.save(step / "params", params)


def files(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def contents(folder):
    """Every path below, with what a write would change."""
    return {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in folder.rglob("*")}


def restored(path, like):
    checkpoints = Checkpoints(path, log=lambda _: None)
    try:
        return checkpoints.restore(like)
    finally:
        checkpoints.close()


def attempted(read):
    """What it gives, or the message with which it is refused."""
    try:
        return read(), None
    except ConfigError as e:
        return None, str(e)


def laid_out(shapes):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)


# --- a finished cell -----------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_a_finished_cell_is_read_at_its_last_step_or_not_at_all(
    toy, finished, uninterrupted, damage
):
    """With each of its files damaged in turn. Some are not needed: then what is read is whole."""
    expected, like, refused = uninterrupted[0], toy.fresh(), set()
    last = finished.checkpoints / str(STEPS)
    for path in [finished.path / "checkpoint.json", *(last / file for file in files(last))]:
        kept = path.read_bytes()
        damage(path)
        damaged = contents(finished.path)
        for read, whole in (
            (lambda: final_checkpoint(finished, laid_out), expected.params),
            (lambda: final_state(finished, like), expected),
        ):
            got, said = attempted(read)
            if said is None:
                assert same_bits(got, whole)
                continue
            assert "`rlhf-jax run STUDY --force parent`" in said
            assert str(path) in said or re.search(
                rf"(step|checkpoint) {STEPS} in {last.parent}", said
            )
            refused.add(path.relative_to(finished.path).parts[2:3] or path.name)
        assert contents(finished.path) == damaged
        path.write_bytes(kept)
    needed = {("params",), ("rest",), ("meta",)} | (
        {"checkpoint.json"} if damage is not delete else set()
    )
    assert refused == needed
    assert same_bits(final_state(finished, like), expected)


def swapped(params):
    return {"w_in": params["w_out"], "w_out": params["w_in"]}


@pytest.mark.parametrize(
    "change",
    [
        lambda p: {**p, "w_in": 2 * p["w_in"]},
        lambda p: {**p, "w_out": -p["w_out"]},
        lambda p: {**p, "w_out": p["w_out"][::-1]},
        swapped,
    ],
    ids=["doubled", "negated", "reversed", "swapped"],
)
def test_a_checkpoint_that_only_its_fingerprint_shows_to_be_damaged(toy, finished, stopped, change):
    rewrite(finished.checkpoints / str(STEPS), change)
    with pytest.raises(ConfigError, match=r"fingerprint of its params differs.*--force parent"):
        final_checkpoint(finished, laid_out)
    rewrite(stopped.checkpoints / "6", change)
    state, _ = restored(stopped.checkpoints, toy.fresh())
    assert int(state.step) == 5 and toy.steps("stopped") == [5]


def test_numbers_beside_the_arrays_are_checked_too(toy, stopped):
    meta = stopped.checkpoints / "6" / "meta" / "metadata"
    saved = json.loads(meta.read_text())
    saved["totals"]["sum"] += 1
    meta.write_text(json.dumps(saved))
    state, read = restored(stopped.checkpoints, toy.fresh())
    assert int(state.step) == 5 and read == {"totals": {"sum": stopped.metrics()[4]["sum"]}}


def test_a_whole_checkpoint_of_another_step_is_not_taken_for_the_last(toy, finished):
    last = finished.checkpoints / str(STEPS)
    shutil.rmtree(last)
    with pytest.raises(ConfigError, match=r"no checkpoint of its last step, 9.*steps there: \[8\]"):
        final_checkpoint(finished, laid_out)
    shutil.copytree(finished.checkpoints / "8", last)
    with pytest.raises(ConfigError, match="not those that training ended with"):
        final_checkpoint(finished, laid_out)
    with pytest.raises(ConfigError, match="not those that training ended with"):
        final_state(finished, toy.fresh())
    shutil.rmtree(finished.checkpoints)
    with pytest.raises(ConfigError, match=r"steps there: none.*--force parent"):
        final_checkpoint(finished, laid_out)


def test_a_cell_that_an_older_version_finished_is_read_at_its_newest_step_or_not_at_all(
    toy, finished, uninterrupted
):
    (finished.path / "checkpoint.json").unlink()
    assert same_bits(final_state(finished, toy.fresh()), uninterrupted[0])
    (finished.path / "metrics.jsonl").rename(finished.path / "elsewhere")
    assert same_bits(final_state(finished, toy.fresh()), uninterrupted[0])
    (finished.path / "elsewhere").rename(finished.path / "metrics.jsonl")
    last = finished.checkpoints / str(STEPS)
    rewrite(last, swapped)
    with pytest.raises(ConfigError, match="fingerprint of its params differs"):
        final_checkpoint(finished, laid_out)
    shutil.rmtree(last)
    with pytest.raises(ConfigError, match="no checkpoint of its last step, 9"):
        final_checkpoint(finished, laid_out)


def test_a_checkpoint_of_an_older_version_is_read_and_checked(toy, tmp_path):
    """Written here as it was written there: with a sum of words times odd numbers."""
    state = toy.fresh()
    rest = {"step": state.step, "opt": state.opt, "hyper": state.hyper, "extra": state.extra}

    def marks(tree):
        words = (
            np.asarray(x).view(np.uint32).ravel().astype(object) for x in jax.tree.leaves(tree)
        )
        return [int(sum(w * (2 * i + 1) for i, w in enumerate(x)) % 2**32) for x in words]

    prints = {"params": marks(state.params), "rest": marks(rest)}
    manager = ocp.CheckpointManager(tmp_path / "old", item_names=("params", "rest", "meta"))
    for step in (1, 2):
        meta = {"totals": {"a": 1.0}, "fingerprint": prints}
        args = {"params": ocp.args.StandardSave(state.params), "rest": ocp.args.StandardSave(rest)}
        manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args))
    manager.close()
    got, meta = restored(tmp_path / "old", state)
    assert same_bits(got, state) and meta == {"totals": {"a": 1.0}}
    rewrite(tmp_path / "old" / "2", lambda p: {**p, "w_in": p["w_in"] + np.float32(1e-3)})
    restored(tmp_path / "old", state)
    assert sorted(p.name for p in (tmp_path / "old").iterdir()) == ["1"]


def test_reading_a_finished_cell_changes_nothing_in_its_folder(toy, finished):
    (finished.checkpoints / "7.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    before = contents(finished.path)
    final_checkpoint(finished, laid_out)
    final_state(finished, toy.fresh())
    assert contents(finished.path) == before


def test_what_is_not_wanted_is_not_read(finished, uninterrupted):
    got = final_checkpoint(finished, lambda shapes: {**laid_out(shapes), "w_in": ...})
    assert got["w_in"] is ... and same_bits(got["w_out"], uninterrupted[0].params["w_out"])


# --- an unfinished cell --------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_a_damaged_file_of_an_unfinished_cell_costs_the_steps_after_the_checkpoint_before(
    toy, stopped, cells, damage
):
    like, seen, there = toy.fresh(), set(), stopped.checkpoints
    whole = cells / "stopped" / "checkpoints"
    newest = restored(there, like)[0]
    shutil.rmtree(there / "6")
    before = restored(there, like)[0]
    assert (int(before.step), int(newest.step)) == (5, 6)
    for file in files(whole / "6"):
        shutil.rmtree(there)
        shutil.copytree(whole, there)
        damage(there / "6" / file)
        got, said = attempted(lambda: restored(there, like)[0])
        left = {p.name for p in there.iterdir()}
        if said is None:
            assert same_bits(got, newest if left == {"5", "6"} else before)
        else:  # a file decodes, and says something else
            assert f"delete {there / '6'} to go on without it" in said and left == {"5", "6"}
        seen.add((file.parts[0], said is None and int(got.step)))
    assert seen >= {("params", 5), ("rest", 5), ("meta", 5)}


@pytest.mark.parametrize("part", ["params", "rest"])
def test_a_resume_from_the_checkpoint_before_is_bit_exact(toy, stopped, uninterrupted, part):
    for file in (stopped.checkpoints / "6" / part).rglob("d/*"):
        flip(file)
    state = toy.train("stopped")
    (said,) = toy.logged
    assert "checkpoint 6" in said and "damaged" in said and "falling back to step 5" in said
    assert same_bits(state, uninterrupted[0])
    assert stopped.metrics() == uninterrupted[1]


def test_a_cell_whose_checkpoints_are_all_damaged_starts_over_and_says_so(
    toy, stopped, uninterrupted
):
    rewrite(stopped.checkpoints / "5", swapped)
    (stopped.checkpoints / "6" / "meta" / "metadata").write_text("{")
    state = toy.train("stopped")
    assert [s.rpartition("falling back to ")[2] for s in toy.logged] == ["step 5", "the beginning"]
    assert same_bits(state, uninterrupted[0])
    assert stopped.metrics() == uninterrupted[1]


def test_what_a_killed_write_leaves_behind_is_cleared_away(toy, stopped, uninterrupted):
    left = stopped.checkpoints / "7.orbax-checkpoint-tmp" / "params"
    left.mkdir(parents=True)
    (left / "manifest.ocdbt").write_text("half")
    assert same_bits(toy.train("stopped"), uninterrupted[0])
    assert [p.name for p in stopped.checkpoints.iterdir() if "tmp" in p.name] == []


# --- reading fails, and says nothing about the checkpoint ----------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        OSError(5, "Input/output error"),
        PermissionError(13, "Permission denied"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 64 bytes."),
        ValueError("PERMISSION_DENIED: Error opening: Permission denied [os_error_code='13']"),
        ValueError(
            "FAILED_PRECONDITION: Error reading 'w_in/0.0': Is a directory [os_error_code='21']"
        ),
        ValueError(
            "User-provided restore item and on-disk value metadata tree structures do not match"
        ),
    ],
    ids=lambda e: f"{type(e).__name__}-{str(e)[:17]}",
)
def test_an_error_that_may_pass_deletes_nothing(toy, stopped, finished, monkeypatch, error):
    before = contents(stopped.checkpoints)

    def failing(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", failing)
        with pytest.raises(Unreadable, match=r"checkpoint 6 in .*nothing was deleted"):
            toy.train("stopped")
        with pytest.raises(
            Unreadable, match=r"checkpoint 9 in .*nothing was deleted.*--force parent"
        ):
            final_checkpoint(finished, laid_out)
    assert contents(stopped.checkpoints) == before
    assert not toy.logged


def test_a_cell_goes_on_bit_for_bit_after_an_error_that_passed(toy, stopped, uninterrupted):
    """A file that cannot be opened: its name is a link to itself."""
    data = max((stopped.checkpoints / "6" / "params").rglob("d/*"), key=lambda f: f.stat().st_size)
    data.rename(stopped.path / "aside")
    data.symlink_to(data)
    with pytest.raises(Unreadable, match=r"Too many levels of symbolic links.*nothing was deleted"):
        toy.train("stopped")
    (stopped.path / "aside").replace(data)
    assert toy.steps("stopped") == [5, 6]
    assert same_bits(toy.train("stopped"), uninterrupted[0])


# --- writing fails -------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_fails_the_cell_and_the_next_run_finishes_it(
    mesh, toy_step, tmp_path
):
    """As on a full disk: files cannot grow beyond a size that the arrays need."""
    toy = Toy(tmp_path, mesh, toy_step, width=64)
    expected = jax.device_get(toy.train("whole"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for options in ({}, {"saves": True}, {"stop_at": 4}):
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
        try:
            with pytest.raises(Unwritten, match=r"could not be written to .*disk full"):
                toy.train("cell", **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert toy.steps("cell") == [] and not (toy.root / "cell" / "checkpoint.json").exists()
    assert same_bits(toy.train("cell"), expected)
    assert read_json(toy.root / "cell" / "checkpoint.json")["step"] == STEPS


def test_the_last_checkpoint_is_read_back_before_training_counts_as_done(
    toy, uninterrupted, monkeypatch
):
    wait = Checkpoints.wait

    def damaging(self):
        wait(self)
        for file in (self.path / str(STEPS) / "rest").glob("manifest.ocdbt"):
            truncate(file)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "wait", damaging)
        with pytest.raises(Unwritten, match=f"step {STEPS}, read back, is damaged"):
            toy.train("cell")
    assert not (toy.root / "cell" / "checkpoint.json").exists()
    assert same_bits(toy.train("cell"), uninterrupted[0])
    assert "checkpoint 9" in toy.logged[0] and (toy.root / "cell" / "checkpoint.json").exists()


def test_a_save_that_the_library_passes_over_is_an_error(toy, stopped):
    checkpoints = Checkpoints(stopped.checkpoints)
    with pytest.raises(Unwritten, match=r"step 6 does not come after those there: \[5, 6\]"):
        checkpoints.save(6, toy.fresh(), {"totals": {}})
    checkpoints.close()


@pytest.mark.parametrize("name", ["a[1]", "a*", "what?", "back\\slash", "\udce9"])
def test_a_runs_folder_that_checkpoints_cannot_be_written_to_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"checkpoints cannot be written.*--runs"):
        Runs(tmp_path / name / "runs")


def test_a_folder_that_checkpoints_are_not_written_to_is_noticed(toy):
    """The library takes brackets for a pattern, and writes checkpoints without arrays."""
    with pytest.raises(Unwritten, match="read back, is damaged"):
        toy.train("a[1]")


def test_spaces_and_letters_of_any_script_are_fine_in_a_runs_folder(toy, uninterrupted):
    name = "é 中 {a,b} #%41 'q'"
    Runs(toy.root / name)
    assert same_bits(toy.train(name), uninterrupted[0])


# --- copies --------------------------------------------------------------------------------------


def test_arrays_are_copied_on_the_cpu_alone(toy, monkeypatch, tmp_path):
    copies, copied = [], module._copied
    monkeypatch.setattr(module, "_copied", lambda tree: copies.append(1) or copied(tree))
    state = toy.fresh()
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state, {"totals": {}})
    assert copies == [1]
    monkeypatch.setattr(module, "_on_cpu", lambda _: False)
    checkpoints.save(2, state.replace(step=jnp.int32(2)), {"totals": {}})
    assert copies == [1] and int(checkpoints.restore(state)[0].step) == 2
    checkpoints.close()
