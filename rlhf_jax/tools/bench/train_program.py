"""The product's training step on a shape, in a process that `bench.train` talks to."""

from __future__ import annotations

import dataclasses
import functools
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from rlhf_jax.model import decays, initialised
from rlhf_jax.model.sharding import AXES, make_mesh, place_batch
from rlhf_jax.objectives import language_modelling
from rlhf_jax.study.config import OptimConfig, from_json
from rlhf_jax.tools.bench.peers import serve
from rlhf_jax.tools.bench.shapes import Shape, batch_of, random_rows
from rlhf_jax.train import gradients, init_state, make_train_step
from rlhf_jax.train.metrics import matmul_peak
from rlhf_jax.train.state import learning_rate

OPTIM = OptimConfig()
PLANNED_STEPS = 200  # of the schedule: ten of warmup; after the last the learning rate stays
BATCHES = 8  # different ones, in turn


class Training:
    """A fresh model with its optimizer, started as a pretraining cell starts."""

    def __init__(self, shape: Shape, compute: Literal["float32", "bfloat16"] = "float32") -> None:
        self.cfg = dataclasses.replace(shape.model, compute=compute)
        self.mesh = make_mesh(devices=jax.devices()[:1])
        jax.set_mesh(self.mesh)
        self.rows = random_rows(shape, BATCHES)
        self.batches = [batch_of(rows) for rows in self.rows]
        self.step = make_train_step(
            self.objective, OPTIM, functools.partial(decays, self.cfg), AXES
        )
        self.state = init_state(self.initial(), OPTIM, PLANNED_STEPS)
        self.taken = 0

    def objective(self, params: Any, batch: Any) -> Any:
        return language_modelling(params, batch, self.cfg, AXES)

    def initial(self) -> Any:
        """The parameters of step 0; made anew each time, because the step takes over their
        memory."""
        return initialised(self.cfg, jax.random.key(0), self.mesh)

    def batches_at(self, first: int, count: int) -> Iterator[dict[str, jax.Array]]:
        for t in range(first, first + count):
            yield place_batch(self.batches[t % BATCHES], self.mesh, AXES)

    def run(self, batches: Iterable[dict[str, jax.Array]]) -> list[float]:
        """Takes a step a batch and returns the losses. As in the product's loop a batch is asked
        for while the last step runs, and its loss is read while the next one does."""
        losses, pending = [], None
        for batch in batches:
            self.state, metrics = self.step(self.state, batch)
            if pending is not None:
                losses.append(float(pending["loss"]))
            pending = metrics
            self.taken += 1
        jax.block_until_ready(self.state)
        assert pending is not None
        return [*losses, float(pending["loss"])]


def named(tree: Any) -> dict[str, Any]:
    """Arrays by path: `embed`, `layers/wq`, ..."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in leaves}


def peak_memory() -> int:
    """Most bytes that this process has had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Program:
    """The operations. `torch_peer` has the same, but for `export`."""

    def load(self, shape: dict[str, Any]) -> dict[str, Any]:
        self.training = Training(from_json(Shape, shape))
        versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
        return {"versions": {**versions, "python": platform.python_version()}}

    def export(self, path: str) -> dict[str, Any]:
        """Writes what another implementation needs to take the same steps."""
        rates = [
            learning_rate(OPTIM, self.training.state.replace(step=jnp.int32(t)))
            for t in range(PLANNED_STEPS)
        ]
        np.savez(
            path, rows=self.training.rows, rates=np.array(rates), **named(self.training.initial())
        )
        names = ("weight_decay", "b1", "b2", "eps", "clip")
        return {"optim": {name: getattr(OPTIM, name) for name in names}}

    def steps(self, count: int) -> dict[str, Any]:
        """Takes steps and times them, to the end of the last one."""
        start, cpu = time.perf_counter(), time.process_time()
        losses = self.training.run(self.training.batches_at(self.training.taken, count))
        return {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "losses": losses,
            "peak_memory_bytes": peak_memory(),
        }

    def gradients(self, path: str) -> dict[str, Any]:
        """Writes the gradients of the first step, before clipping."""
        compute = jax.jit(lambda p, b: gradients(self.training.objective, p, b, AXES)[0])
        batch = next(self.training.batches_at(0, 1))
        np.savez(path, **named(compute(self.training.initial(), batch)))
        return {}

    def peak(self) -> dict[str, Any]:
        return {"flops": matmul_peak()}


if __name__ == "__main__":
    serve(Program())
