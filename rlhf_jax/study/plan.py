"""What a study will cost, before anything runs: FLOPs, memory, disk and time of every cell.

FLOPs are counted by the cells (`Cell.cost`). Time is those FLOPs over the rate in `GFLOPS` plus an
overhead, both corrected by what finished cells in RUNS took; memory and disk are estimates.
"""

from __future__ import annotations

import graphlib
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from rlhf_jax.cost.flops import param_counts
from rlhf_jax.cost.memory import BASELINE_BYTES
from rlhf_jax.study.cell import KNOWN, Cell, Cost
from rlhf_jax.study.config import ConfigError, ModelConfig, from_json, to_json
from rlhf_jax.study.files import Damaged
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.graph import Study
from rlhf_jax.study.populations import populations
from rlhf_jax.study.runs import Runs

# Training speed by model width: model GFLOP/s of one CPU core (measured, float32, batches of 8 to
# 16 rows of 128, a 2020s server core; the last two rows a guess), and of one GPU (a guess; small
# models there wait for kernel launches). Between two rows the rate is interpolated.
GFLOPS: dict[int, tuple[float, float]] = {
    16: (12.0, 30.0),
    32: (16.0, 100.0),
    64: (28.0, 300.0),
    128: (42.0, 1_000.0),
    256: (48.0, 4_000.0),
    512: (60.0, 12_000.0),
    1024: (65.0, 50_000.0),
    2048: (65.0, 150_000.0),
}
DECODE = 0.25  # share of that rate while sampling: one token a step reads every weight
COMPILE_SECONDS = 10.0  # a shape's first cell: tracing, compiling, provenance
WARM = 0.4  # the following ones, in proportion: restore, first steps, checkpoint
PRIOR = 0.3  # weight of the table's values beside one finished cell's


@dataclass(frozen=True)
class CellPlan:
    """One cell's cost. FLOPs are model FLOPs; `decode_flops` is the part spent sampling.

    Attributes:
      params: of the model trained or run. sequences, tokens: processed, all epochs counted.
      memory: peak bytes of the process that runs it, over all devices of its mesh. disk: bytes
          kept. seconds: on this machine.
      members: cells that train together with it in one program, itself included.
    """

    name: str
    kind: str
    parents: tuple[str, ...]
    params: int
    sequences: int
    tokens: int
    flops: float
    decode_flops: float
    memory: float
    disk: float
    seconds: float = 0.0
    state: str = "waiting"
    members: int = 1


@dataclass(frozen=True)
class StudyPlan:
    """Every cell, parents first, and the machine that the seconds are for."""

    study: str
    cells: tuple[CellPlan, ...]
    workers: int
    threads: int
    calibrated: int  # finished cells that corrected the rates

    def totals(self) -> dict[str, Any]:
        """Sums over cells; `memory` is of the `workers` hungriest at once; `remaining_*` leave out
        finished cells."""
        left: dict[str, float] = {}
        wanted: set[str] = set()  # to start from: of a kept cell there are results alone
        for c in reversed(self.cells):
            if c.state not in ("done", "kept") or (c.state == "kept" and c.name in wanted):
                left[c.name] = c.seconds
                wanted |= set(c.parents)
        parents = {c.name: c.parents for c in self.cells}
        everything = {c.name: c.seconds for c in self.cells}
        hungriest = sorted((c.memory for c in self.cells), reverse=True)[: self.workers]
        return {
            "cells": len(self.cells),
            "tokens": sum(c.tokens for c in self.cells),
            "flops": sum(c.flops for c in self.cells),
            "memory": sum(hungriest),
            "disk": sum(c.disk for c in self.cells),
            "seconds": sum(everything.values()),
            "wall_seconds": wall_seconds(everything, parents, self.workers),
            "remaining_cells": len(left),
            "remaining_wall_seconds": wall_seconds(left, parents, self.workers),
            "workers": self.workers,
            "threads": self.threads,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "cells": [to_json(c) for c in self.cells],
            "totals": self.totals(),
        }


def cell_plan(study: Study, cell: Cell, accumulate: int = 1) -> CellPlan:
    """The cost of one cell, without its seconds."""
    cost = cell.cost(study, accumulate)
    tokens = cost.sequences * cell.row_length(study) if cost.tokens is None else cost.tokens
    return CellPlan(
        cell.name,
        cell.KIND,
        cell.parents(),
        param_counts(study.model_of(cell))["total"] if study.origin(cell) else 0,
        cost.sequences,
        tokens,
        cost.flops,
        cost.decode_flops,
        BASELINE_BYTES + cost.memory,
        cost.disk,
    )


def _together(study: Study, cells: list[CellPlan]) -> list[CellPlan]:
    """The cells of a population take memory side by side."""
    groups, memory = populations(study), {c.name: c.memory - BASELINE_BYTES for c in cells}
    return [
        replace(
            c,
            members=len(groups[c.name]),
            memory=BASELINE_BYTES + sum(memory[n] for n in groups[c.name]),
        )
        if c.name in groups
        else c
        for c in cells
    ]


# --- time ------------------------------------------------------------------------------------


def rate(width: int, threads: int, accelerator: bool) -> float:
    """Model FLOP/s expected of one worker that trains a model of this width."""
    inside = min(max(width, min(GFLOPS)), max(GFLOPS))
    low = max(w for w in GFLOPS if w <= inside)
    high = min(w for w in GFLOPS if w >= inside)
    share = (inside - low) / (high - low) if high > low else 0.0
    column = 1 if accelerator else 0
    gflops = (1 - share) * GFLOPS[low][column] + share * GFLOPS[high][column]
    return 1e9 * gflops * (1 if accelerator else threads)


def computing_seconds(
    plan: CellPlan | Cost, model: ModelConfig | None, threads: int, accelerator: bool
) -> float:
    """Seconds of the FLOPs alone, by the table."""
    flops = plan.flops - plan.decode_flops + plan.decode_flops / DECODE
    return flops / rate(model.width if model else max(GFLOPS), threads, accelerator)


def make_plan(
    study: Study,
    runs: Runs,
    corpus_hash: str | None = None,
    workers: int = 1,
    threads: int = 1,
    accelerator: bool = False,
    accumulate: int = 1,
) -> StudyPlan:
    """Plans every cell.

    Args:
      corpus_hash: None before the corpus is prepared; then no cell is known to be done.
      workers: processes that run cells side by side, each with `threads` threads.
      accelerator: the rates of a GPU instead of CPU cores.
      accumulate: micro-batches a step, which bound the memory of activations.
    """
    cells = _together(study, [cell_plan(study, c, accumulate) for c in study.order()])
    models = {c.name: study.model_of(c) if study.origin(c) else None for c in study.cells}
    work = {c.name: computing_seconds(c, models[c.name], threads, accelerator) for c in cells}
    states: dict[str, dict[str, Any]] = {}
    mine = set()
    if corpus_hash is not None:
        folders = runs.folders(study, corpus_hash)
        states = {name: folder.state() for name, folder in folders.items()}
        mine = {folder.path.name for folder in folders.values()}
        cells = [replace(c, state=states[c.name]["state"]) for c in cells]
    measured = _measured(study, states, work)
    _measured_elsewhere(measured, study, runs, mine, threads, accelerator)
    everything = [m for of_kind in measured.values() for m in of_kind]
    overall, fits = calibrate(everything), {k: calibrate(m) for k, m in measured.items()}
    shapes = set()
    planned = []
    for c in cells:
        cell = study[c.name]
        shape = (c.kind, models[c.name], getattr(cell, "batch", None), cell.row_length(study))
        overhead, factor = fits.get(c.kind, overall)
        if shape in shapes:
            overhead *= WARM
        shapes.add(shape)
        planned.append(replace(c, seconds=overhead + factor * work[c.name]))
    return StudyPlan(study.name, tuple(planned), workers, threads, len(everything))


def calibrate(measured: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The overhead of a cell in seconds, and how much longer its work takes than the table says.

    Args:
      measured: (work by the table, seconds taken) of finished cells.

    Least squares of ln(overhead + factor x work) - ln(taken), in the logarithms of both, held to
    the table's values by `PRIOR`, so that few cells or equal ones decide nothing absurd.
    """
    u, v = math.log(COMPILE_SECONDS), 0.0
    for _ in range(50):  # Gauss-Newton with bounded steps
        held = PRIOR**2
        uu, uv, vv = held, 0.0, held
        gu, gv = held * (u - math.log(COMPILE_SECONDS)), held * v
        for work, taken in measured:
            total = math.exp(u) + math.exp(v) * work
            a, b = math.exp(u) / total, math.exp(v) * work / total
            r = math.log(total / taken)
            uu, uv, vv, gu, gv = uu + a * a, uv + a * b, vv + b * b, gu + a * r, gv + b * r
        det = uu * vv - uv * uv
        du, dv = (vv * gu - uv * gv) / det, (uu * gv - uv * gu) / det
        u, v = u - max(-1.0, min(1.0, du)), v - max(-1.0, min(1.0, dv))
    return math.exp(u), math.exp(v)


Measured = dict[str, list[tuple[float, float]]]


def _measured(
    study: Study, states: Mapping[str, Mapping[str, Any]], work: Mapping[str, float]
) -> Measured:
    """By kind, (work by the table, seconds taken) of the study's finished cells."""
    found: Measured = {}
    for name, state in states.items():
        if state["state"] == "done" and state.get("seconds"):
            found.setdefault(study[name].KIND, []).append((work[name], state["seconds"]))
    return found


def _measured_elsewhere(
    found: Measured, study: Study, runs: Runs, mine: set[str], threads: int, accelerator: bool
) -> None:
    """Adds every cell in RUNS that starts from no other and is not in `mine`."""
    for path in sorted((runs.root / "cells").glob("*/done.json")):
        if path.parent.name in mine:
            continue
        try:
            folder = CellFolder(path.parent).snapshot()
            config, record = folder.json("config.json"), folder.record()
        except Damaged:
            continue  # another study's: no estimate rests on it
        seconds = (record or {}).get("seconds")
        if not seconds or not isinstance(config, dict) or config.get("kind") not in KNOWN:
            continue
        cls = KNOWN[config["kind"]]
        try:
            cell = from_json(cls, {f.name: config[f.name] for f in fields(cls) if f.name in config})
            if cell.parents() or not (origin := study.origin(cell)):
                continue
            cost = cell.cost(study)
        except (KeyError, ConfigError):
            continue  # written by another version, or by a kind of another study
        rated = computing_seconds(cost, study.model_of(origin), threads, accelerator)
        found.setdefault(cell.KIND, []).append((rated, seconds))


# --- order -----------------------------------------------------------------------------------


def remaining_paths(
    seconds: Mapping[str, float], parents: Mapping[str, Iterable[str]]
) -> dict[str, float]:
    """Seconds of the longest chain of cells that starts with each cell, itself included."""
    children = _children(seconds, parents)
    paths: dict[str, float] = {}

    order = graphlib.TopologicalSorter(children).static_order()  # children first
    for name in order:
        paths[name] = seconds[name] + max((paths[c] for c in children[name]), default=0.0)
    return paths


def _children(names: Iterable[str], parents: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Name -> those that start from it, all of `names`."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for name in found:
        for parent in dict.fromkeys(parents[name]):
            if parent in found:
                found[parent].append(name)
    return found


def wall_seconds(
    seconds: Mapping[str, float], parents: Mapping[str, Iterable[str]], workers: int
) -> float:
    """Time until all is done when `workers` take ready cells, longest remaining path first.
    Parents that are not in `seconds` count as done."""
    paths, children = remaining_paths(seconds, parents), _children(seconds, parents)
    blocked = {n: {p for p in parents[n] if p in seconds} for n in seconds}
    ready = [(-paths[n], n) for n, by in blocked.items() if not by]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < max(1, workers):
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[name], name))
        now, finished = heapq.heappop(running)
        for name in children[finished]:
            blocked[name].remove(finished)
            if not blocked[name]:
                heapq.heappush(ready, (-paths[name], name))
    return now
