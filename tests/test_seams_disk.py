"""What one process writes and another reads: never half of it, and never a model that is not the
one saved."""

import shutil
import threading

import numpy as np
import pytest
import tiny_policies as tiny
from tiny_models import mesh
from tiny_policies import FIXED, MODEL, TASK, Bench, compiled, policy

from rlhf_jax.data import feedback
from rlhf_jax.data.feedback import Demonstration
from rlhf_jax.kinds import SFT, BestOfN, Evaluate, Pretrain
from rlhf_jax.kinds.sampling import save_arrays
from rlhf_jax.model import param_axes
from rlhf_jax.model.sharding import place
from rlhf_jax.study.files import read_json, write_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.train import Checkpoints, init_state

__all__ = ["compiled", "mesh"]


def json_file(folder, n):
    write_json(folder / "x.json", list(range(n)))
    return folder / "x.json"


def records_file(folder, n):
    feedback.write(folder / "x.jsonl", [Demonstration("p", "word " * n)])
    return folder / "x.jsonl"


def arrays_file(folder, n):
    save_arrays(CellFolder(folder), "x", {"n": np.arange(n)})
    return folder / "results" / "x.npz"


@pytest.mark.parametrize("write", [json_file, records_file, arrays_file])
def test_who_reads_a_file_while_it_is_written_anew_reads_the_old_one_whole(tmp_path, write):
    old = write(tmp_path, 10_000).read_bytes()
    with open(write(tmp_path, 10_000), "rb") as reader:
        start = reader.read(100)
        new = write(tmp_path, 3).read_bytes()
        assert start + reader.read() == old != new
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [write(tmp_path, 3).name]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = json_file(tmp_path, 5)
    with pytest.raises(TypeError):
        write_json(path, [*range(50_000), object()])
    assert read_json(path) == [0, 1, 2, 3, 4]


def test_a_thread_never_reads_half_of_a_json_file(tmp_path):
    path, seen, over = json_file(tmp_path, 100_000), set(), threading.Event()

    def read():
        while not over.is_set():
            try:
                seen.add(len(read_json(path)))
            except ValueError:
                seen.add("half")

    thread = threading.Thread(target=read)
    thread.start()
    for n in (100_000, 90_000) * 3:
        json_file(tmp_path, n)
    over.set()
    thread.join()
    assert seen <= {100_000, 90_000} and seen


# --- a parent that is not what was saved ----------------------------------------------------------

PARENT = Pretrain("parent", model=MODEL, batch=2, tokens=64, seed=12)
CHILDREN = (
    BestOfN("best", policy="parent", reward="tiny_policies:proxy", task=TASK, prompts=4, n=2),
    SFT(
        "tuned",
        base="parent",
        records="tiny_policies:demonstrations",
        task=TASK,
        examples=20,
        batch=1,
    ),
    Evaluate(
        "judged", before="a", after="parent", reward="tiny_policies:proxy", task=TASK, prompts=4
    ),
)


@pytest.fixture(scope="module")
def bench(mesh, tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("disk"), mesh, "a")


@pytest.fixture(scope="module")
def parent(bench):
    """Its parameters are those of another model, whole and readable, where its fingerprint is its
    own; the checkpoint before is in order."""
    folder = bench.context(bench.study(PARENT), "parent").folder
    for name, path in (("a", folder.checkpoints), ("b", folder.path / "other")):
        placed = place(
            tiny.trunk(MODEL, policy(name).logits), param_axes(MODEL), bench.runtime.mesh
        )
        checkpoints = Checkpoints(path)
        for step in (0, 1):
            checkpoints.save(step, init_state(placed, FIXED, 1), {"totals": {}})
        checkpoints.close()
    shutil.rmtree(folder.checkpoints / "1" / "params")
    shutil.copytree(folder.path / "other" / "1" / "params", folder.checkpoints / "1" / "params")
    write_json(folder.path / "done.json", {"finished": "", "seconds": 0.0})
    return folder


@pytest.mark.parametrize("child", CHILDREN, ids=lambda c: c.KIND)
def test_no_child_starts_from_a_parent_that_only_its_fingerprint_shows_to_be_damaged(
    bench, parent, child
):
    """Nor from its older checkpoint. What is said names the parent, and the parent's files stay."""
    with pytest.raises(Exception, match="parent"):
        bench.run(child, beside=(PARENT,))
    ctx = bench.context(bench.study(PARENT, child), child.name)
    assert not ctx.folder.done() and not ctx.folder.metrics()
    assert all((parent.checkpoints / step / "params").is_dir() for step in "01")
