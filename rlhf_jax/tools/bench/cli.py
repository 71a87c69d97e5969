"""The command line of `rlhf-jax bench`. No jax: what is measured is a process of its own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rlhf_jax.placement.machine import cores
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.messages import suggest
from rlhf_jax.tools.bench import tables
from rlhf_jax.tools.bench.population import bench_population
from rlhf_jax.tools.bench.ppo import bench_ppo, find_trl
from rlhf_jax.tools.bench.shapes import LADDER, PPO_LADDER, Shape, chosen
from rlhf_jax.tools.bench.train import Settings, bench_train, find_torch

BENCHMARKS = {"train": bench_train, "population": bench_population, "ppo": bench_ppo}
FEWEST = 5  # rounds of a comparison: a median of fewer is one lucky turn
AGAINST = {"train": "torch", "ppo": "trl"}


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "what",
        choices=tuple(BENCHMARKS),
        help="the training step; members of a population together; an iteration of PPO",
    )
    p.add_argument(
        "--shapes",
        metavar="NAME",
        nargs="+",
        help=f"of {', '.join(s.name for s in LADDER)}, layers x width; "
        f"ppo: of {', '.join(s.name for s in PPO_LADDER)} (default: all)",
    )
    p.add_argument("--rounds", metavar="N", type=int, default=7, help="turns of each (default: 7)")
    p.add_argument(
        "--threads",
        metavar="N",
        type=int,
        default=None,
        help="of each process (default: the machine's cores)",
    )
    p.add_argument(
        "--against",
        metavar="WHAT",
        help="turn by turn. train: torch, the same step in PyTorch; ppo: trl, the same "
        "iteration by TRL's trainer",
    )
    p.add_argument(
        "--torch-python",
        metavar="PATH",
        help="an interpreter with torch and numpy (default: .venv-torch/bin/python)",
    )
    p.add_argument(
        "--trl-python",
        metavar="PATH",
        help="an interpreter with trl and torch (default: .venv-trl/bin/python)",
    )
    p.add_argument("--json", action="store_true")


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


def command(args: argparse.Namespace, ladder: Sequence[Shape] | None = None) -> int:
    """Measures and prints. Returns 0; what cannot be measured is a ConfigError. `ladder` takes the
    place of the shapes that are known."""
    shapes, settings = checked(args, ladder)

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = BENCHMARKS[args.what](shapes, settings, log)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        tables.show(args.what, found)
    return 0
