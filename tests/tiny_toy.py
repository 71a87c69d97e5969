"""Cells that train in milliseconds, for the tests of the loop and of checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import copied, mesh

from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.study.config import OptimConfig
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.train import Checkpoints, Runtime, init_state, make_train_step
from rlhf_jax.train import train as train_loop

OPTIM = OptimConfig(lr=0.05, weight_decay=0.1)
STEPS = 9


def regression(params, batch):
    residual = jnp.tanh(batch["x"] @ params["w_in"]) @ params["w_out"] - batch["y"]
    return jnp.sum(residual**2), jnp.float32(len(batch["x"])), {}


def all_decay(params):
    return jax.tree.map(lambda _: True, params)


class Toy:
    """Cells that fit a small network to numbers drawn with the step as their seed."""

    def __init__(self, folder, mesh, step, width=4):
        self.root, self.mesh, self.step, self.width, self.logged = folder, mesh, step, width, []

    def folder(self, name):
        (self.root / name).mkdir(exist_ok=True)
        return CellFolder(self.root / name)

    def batch(self, t):
        rng = np.random.default_rng(t)
        x, y = rng.standard_normal((2, 8, self.width)).astype(np.float32)
        return place_batch({"x": x, "y": y}, self.mesh)

    def fresh(self):
        rng = np.random.default_rng(99)
        shape = (self.width, self.width)
        params = {
            n: jnp.asarray(rng.standard_normal(shape), jnp.float32) for n in ("w_in", "w_out")
        }
        return init_state(params, OPTIM, STEPS)

    def steps(self, name):
        """The steps of the checkpoints that a cell has."""
        checkpoints = Checkpoints(self.folder(name).checkpoints, read_only=True)
        try:
            return checkpoints.steps()
        finally:
            checkpoints.close()

    def train(self, name, *, stop_at=None, poison=None, saves=False, keep=2, steps=STEPS):
        run = Runtime(
            self.mesh,
            AXES,
            keep=keep,
            log=self.logged.append,
            checkpoint_seconds=-1.0 if saves else 1e9,
        )

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
    return make_train_step(regression, OPTIM, all_decay, AXES)


@pytest.fixture(scope="module")
def uninterrupted(toy_step, mesh, tmp_path_factory):
    toy = Toy(tmp_path_factory.mktemp("toy"), mesh, toy_step)
    state = toy.train("whole")
    return copied(state), toy.folder("whole").metrics()


@pytest.fixture
def toy(tmp_path, mesh, toy_step):
    return Toy(tmp_path, mesh, toy_step)


__all__ = [
    "OPTIM",
    "STEPS",
    "Toy",
    "all_decay",
    "mesh",
    "regression",
    "toy",
    "toy_step",
    "uninterrupted",
]
