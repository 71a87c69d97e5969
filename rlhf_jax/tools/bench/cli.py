"""The command line of `rlhf-jax bench`. Light: numpy and the rest are imported when it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rlhf_jax.tools.bench.shapes import LADDER, PPO_LADDER, Shape


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "what",
        choices=("train", "population", "ppo", "decode", "data", "compile"),
        help="the training step; members of a population together; an iteration of PPO; "
        "sampling; reading batches; compiling the step",
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


def command(args: argparse.Namespace, ladder: Sequence[Shape] | None = None) -> int:
    """Measures and prints. Returns 0; what cannot be measured is a ConfigError. `ladder` takes the
    place of the shapes that are known."""
    from rlhf_jax.tools.bench import tables
    from rlhf_jax.tools.bench.measure import BENCHMARKS, checked

    shapes, settings = checked(args, ladder)

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = BENCHMARKS[args.what](shapes, settings, log)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        tables.show(args.what, found)
    return 0
