"""Compiling the product's training step for a shape, as a process. The first one to run with a
folder compiles; a second one finds the program there, as every later worker of a study does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.placement.cpu import keep_compiled
from rlhf_jax.study.config import from_json
from rlhf_jax.tools.bench.peers import serve
from rlhf_jax.tools.bench.shapes import Shape
from rlhf_jax.tools.bench.train_program import Training

HIT = "/jax/compilation_cache/cache_hits"


def measure(shape: dict[str, Any], kept: str) -> dict[str, Any]:
    """Seconds to trace and lower the step, and to compile it or to get it from the folder
    `kept`."""
    jax.config.update("jax_enable_compilation_cache", True)
    keep_compiled(Path(kept))
    # Whatever little the step takes to compile, here it is kept.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    training = Training(from_json(Shape, shape))
    batch = next(training.batches_at(0, 1))
    events: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    start = time.perf_counter()
    lowered = training.step.lower(training.state, batch)  # type: ignore[attr-defined]
    half = time.perf_counter()
    lowered.compile()
    seconds = time.perf_counter() - half
    return {
        "lower_seconds": half - start,
        "compile_seconds": seconds,
        "from_cache": HIT in events,
    }


if __name__ == "__main__":
    serve({"measure": measure})
