"""What `rlhf-jax bench` can measure, and the checks before it does. `bench train` and `bench population` have their own modules;
the others ask one question of a fresh process a shape. No jax."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.bench.machine import machine
from rlhf_jax.bench.peers import ours
from rlhf_jax.bench.population import bench_population
from rlhf_jax.bench.shapes import Shape, chosen
from rlhf_jax.bench.train import Log, Settings, bench_train, find_torch
from rlhf_jax.config import ConfigError, suggest, to_json
from rlhf_jax.cpu import cores

FEWEST = 5  # rounds of a comparison: a median of fewer is one lucky turn


def checked(args: argparse.Namespace, ladder: Sequence[Shape]) -> tuple[list[Shape], Settings]:
    """The shapes and how to measure them.

    Raises:
      ConfigError: anything in `args` that cannot be measured.
    """
    shapes = chosen(args.shapes, ladder)
    threads = cores() if args.threads is None else args.threads
    if threads < 1:
        raise ConfigError(f"--threads is {threads}; it must be at least 1")
    if args.rounds < 1:
        raise ConfigError(f"--rounds is {args.rounds}; it must be at least 1")
    if args.against is None:
        if args.torch_python is not None:
            raise ConfigError("--torch-python says where torch is; it needs --against torch")
        return shapes, Settings(args.rounds, threads)
    if args.against != "torch":
        raise ConfigError(f"--against {args.against!r}.{suggest(args.against, ['torch'])}")
    if args.what != "train":
        raise ConfigError(f"bench {args.what} has no other side; --against is of bench train")
    if args.rounds < FEWEST:
        raise ConfigError(f"--rounds is {args.rounds}; a comparison needs at least {FEWEST}")
    return shapes, Settings(args.rounds, threads, find_torch(args.torch_python))


def _decode(shapes: Sequence[Shape], settings: Settings, log: Log) -> dict[str, Any]:
    def row(shape: Shape) -> dict[str, Any]:
        return _asked("decode_program", settings, shape=to_json(shape), rounds=settings.rounds)

    return _each(row, shapes, settings, log)


def _data(shapes: Sequence[Shape], settings: Settings, log: Log) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rlhf-jax-bench-") as folder:

        def row(shape: Shape) -> dict[str, Any]:
            return _asked("data_program", settings, shape=to_json(shape), rounds=settings.rounds,
                          seconds=settings.block_seconds, root=folder)  # fmt: skip

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
                f"{shape.name}: the compiled step was not found in {Path(kept).name}, where the first "
                "process had kept it; is a setting of jax's compilation cache in the environment?"
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
    "decode": _decode,
    "data": _data,
    "compile": _compile,
}
