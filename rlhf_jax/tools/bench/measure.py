"""What `rlhf-jax bench` can measure, and the checks before it does. `bench train`, `bench
population` and `bench ppo` have their own modules; the others ask one question of a fresh process a
shape. No jax."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.placement.machine import cores
from rlhf_jax.study.config import ConfigError, suggest, to_json
from rlhf_jax.tools.bench.machine import machine
from rlhf_jax.tools.bench.peers import ours
from rlhf_jax.tools.bench.population import bench_population
from rlhf_jax.tools.bench.ppo import bench_ppo, find_trl
from rlhf_jax.tools.bench.shapes import LADDER, PPO_LADDER, Shape, chosen
from rlhf_jax.tools.bench.train import Log, Settings, bench_train, find_torch

FEWEST = 5  # rounds of a comparison: a median of fewer is one lucky turn
AGAINST = {"train": "torch", "ppo": "trl"}


def checked(
    args: argparse.Namespace, ladder: Sequence[Shape] | None = None
) -> tuple[list[Shape], Settings]:
    """The shapes (of `ladder`, or of those known) and how to measure them.

    Raises:
      ConfigError: anything in `args` that cannot be measured.
    """
    shapes = chosen(args.shapes, ladder or (PPO_LADDER if args.what == "ppo" else LADDER))
    threads = cores() if args.threads is None else args.threads
    if threads < 1:
        raise ConfigError(f"--threads is {threads}; it must be at least 1")
    if args.rounds < 1:
        raise ConfigError(f"--rounds is {args.rounds}; it must be at least 1")
    pythons = {"torch": args.torch_python, "trl": args.trl_python}
    for other, python in pythons.items():
        if python is not None and args.against != other:
            raise ConfigError(f"--{other}-python says where {other} is; it needs --against {other}")
    if args.against is None:
        return shapes, Settings(args.rounds, threads)
    if args.against not in pythons:
        raise ConfigError(f"--against {args.against!r}.{suggest(args.against, list(pythons))}")
    if AGAINST.get(args.what) != args.against:
        raise ConfigError(
            f"bench {args.what} is not measured against {args.against}; --against is of "
            "bench train (torch) and of bench ppo (trl)"
        )
    if args.rounds < FEWEST:
        raise ConfigError(f"--rounds is {args.rounds}; a comparison needs at least {FEWEST}")
    find = find_torch if args.against == "torch" else find_trl
    return shapes, Settings(args.rounds, threads, find(pythons[args.against]))


def _decode(shapes: Sequence[Shape], settings: Settings, log: Log) -> dict[str, Any]:
    def row(shape: Shape) -> dict[str, Any]:
        return _asked("decode_program", settings, shape=to_json(shape), rounds=settings.rounds)

    return _each(row, shapes, settings, log)


def _data(shapes: Sequence[Shape], settings: Settings, log: Log) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rlhf-jax-bench-") as folder:

        def row(shape: Shape) -> dict[str, Any]:
            return _asked(
                "data_program",
                settings,
                shape=to_json(shape),
                rounds=settings.rounds,
                seconds=settings.block_seconds,
                root=folder,
            )

        return _each(row, shapes, settings, log)


def _compile(shapes: Sequence[Shape], settings: Settings, log: Log) -> dict[str, Any]:
    def row(shape: Shape) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="rlhf-jax-bench-") as kept:
            cold, warm = (
                _asked("compile_program", settings, shape=to_json(shape), kept=kept)
                for _ in range(2)
            )
        if cold["from_cache"] or not warm["from_cache"]:
            raise ConfigError(
                f"{shape.name}: the compiled step was not found in {Path(kept).name}, where the "
                f"first process had kept it; is a setting of jax's compilation cache in the "
                "environment?"
            )
        return {
            "lower_seconds": cold["lower_seconds"],
            "compile_seconds": cold["compile_seconds"],
            "cached_seconds": warm["compile_seconds"],
        }

    return _each(row, shapes, settings, log)


def _asked(program: str, settings: Settings, **arguments: Any) -> dict[str, Any]:
    """The one answer of a fresh process."""
    with ours(program, settings.threads) as peer:
        return peer.ask("measure", **arguments)


def _each(
    row: Callable[[Shape], dict[str, Any]], shapes: Sequence[Shape], settings: Settings, log: Log
) -> dict[str, Any]:
    rows = []
    for shape in shapes:
        log(f"{shape.name} ...")
        rows.append({"name": shape.name, **row(shape)})
    return {"shapes": rows, "threads": settings.threads, "machine": machine()}


BENCHMARKS = {
    "train": bench_train,
    "population": bench_population,
    "ppo": bench_ppo,
    "decode": _decode,
    "data": _data,
    "compile": _compile,
}
