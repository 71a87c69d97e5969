"""Many members of a shape as one program, in a process that `bench.population` talks to."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax

from rlhf_jax.model import Axes, decays, init
from rlhf_jax.objectives import language_modelling
from rlhf_jax.study.config import from_json
from rlhf_jax.tools.bench.peers import serve
from rlhf_jax.tools.bench.shapes import Shape, batch_of, random_rows
from rlhf_jax.tools.bench.train_program import BATCHES, OPTIM, PLANNED_STEPS, peak_memory
from rlhf_jax.train import Population, init_state, train_step


class Program:
    """The operations; a step is one of every member."""

    def load(self, shape: dict[str, Any], members: int) -> dict[str, Any]:
        of = from_json(Shape, shape)
        cfg, axes = of.model, Axes()
        self.population = Population(members, jax.devices())
        self.step = self.population.compiled(
            train_step(
                lambda p, b: language_modelling(p, b, cfg, axes),
                OPTIM,
                functools.partial(decays, cfg),
                axes,
            )
        )
        fresh = jax.jit(lambda key: init(cfg, key))
        keys = [jax.random.key(seed) for seed in range(members)]
        self.state = self.population.join(
            [init_state(fresh(key), OPTIM, PLANNED_STEPS) for key in keys]
        )
        rows = [random_rows(of, BATCHES, seed) for seed in range(members)]
        self.batches = [[batch_of(r[t]) for r in rows] for t in range(BATCHES)]
        self.taken = 0
        return {}

    def steps(self, count: int) -> dict[str, Any]:
        """Takes steps and times them; the losses are those of the first member."""
        start, cpu = time.perf_counter(), time.process_time()
        measured = []
        for t in range(self.taken, self.taken + count):
            batch = self.population.join(self.batches[t % BATCHES])
            self.state, metrics = self.step(self.state, batch)
            measured.append(metrics["loss"])
        losses = [self.population.split(loss)[0] for loss in measured]
        jax.block_until_ready(self.state)
        self.taken += count
        return {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "losses": [float(x) for x in losses],
            "peak_memory_bytes": peak_memory(),
        }


if __name__ == "__main__":
    serve(Program())
