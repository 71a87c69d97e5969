"""`bench population`: many members of a shape as one program, against the same cells one after the
other, and against single-thread workers side by side (a study without populations). No jax here."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlhf_jax.study.config import to_json
from rlhf_jax.tools.bench.agreement import same_losses
from rlhf_jax.tools.bench.machine import machine
from rlhf_jax.tools.bench.peers import Peer, ours
from rlhf_jax.tools.bench.shapes import Shape
from rlhf_jax.tools.bench.train import Log, Row, Settings, in_turns, ready

MEMBERS = 8


class SideBySide:
    """Peers that are asked at once and answer as one: the slowest one's time, everyone's memory."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.peers = peers

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        with ThreadPoolExecutor(len(self.peers)) as pool:
            answers = list(pool.map(lambda p: p.ask(operation, **arguments), self.peers))
        merged = dict(answers[0])
        for key, combine in (("seconds", max), ("cpu_seconds", sum), ("peak_memory_bytes", sum)):
            if key in merged:
                merged[key] = combine(a[key] for a in answers)
        return merged


def bench_population(shapes: Sequence[Shape], settings: Settings, log: Log) -> dict[str, Any]:
    """Tokens/s of all members together, and the ratios of the population's to the others'.

    Raises:
      ConfigError: the population's first member does not compute what the cell alone computes.
    """
    rows = [_measure(shape, settings, log) for shape in shapes]
    return {
        "shapes": rows,
        "threads": settings.threads,
        "members": MEMBERS,
        "rounds": settings.rounds,
        "machine": machine(),
    }


def _measure(shape: Shape, settings: Settings, log: Log) -> Row:
    with contextlib.ExitStack() as stack:

        def start(program: str, threads: int, devices: int = 1) -> Peer:
            return stack.enter_context(ours(program, threads, devices))

        alone = start("train_program", settings.threads)
        workers = SideBySide([start("train_program", 1) for _ in range(settings.threads)])
        together = start("population_program", 1, settings.threads)
        log(f"{shape.name}: compiling")
        of = to_json(shape)
        alone.ask("load", shape=of)
        workers.ask("load", shape=of)
        together.ask("load", shape=of, members=MEMBERS)
        sides = {
            "sequential": ready(alone, shape.tokens),
            "workers": ready(workers, shape.tokens * settings.threads),
            "population": ready(together, shape.tokens * MEMBERS),
        }
        same_losses("the population", sides["population"].losses, sides["sequential"].losses)
        rates, others = in_turns(shape, sides, settings, log)
    row: Row = {"name": shape.name, **{n: statistics.median(r) for n, r in rates.items()}}
    for name, key in (("sequential", "ratio"), ("workers", "ratio_to_workers")):
        ratios = [a / b for a, b in zip(rates["population"], rates[name], strict=True)]
        row |= {
            key: statistics.median(ratios),
            f"{key}_low": min(ratios),
            f"{key}_high": max(ratios),
        }
    row["peak_memory_bytes"] = sides["population"].peak_memory_bytes
    row["others_share_of_cpu"] = others
    return row


__all__ = ["bench_population"]
