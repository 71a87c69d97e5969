"""`bench train`: the product's training step, alone or in turns with another implementation of it.

A machine that others use is never as fast twice, so both sides are alive at once and take turns: a
round is a block of steps of each, and what is reported is the median over rounds of the ratio
within a round. No jax here: whoever is measured is a process of its own.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_jax.cost.flops import flops_per_token
from rlhf_jax.study.config import to_json
from rlhf_jax.tools.bench.agreement import STEPS, Agreement, check
from rlhf_jax.tools.bench.machine import Answer, in_rounds, machine
from rlhf_jax.tools.bench.peers import Asked, Peer, interpreter, ours
from rlhf_jax.tools.bench.shapes import Shape

TORCH_PEER = Path(__file__).with_name("torch_peer.py")
INSTALL = (
    "python3.11 -m venv .venv-torch && .venv-torch/bin/pip install torch numpy"
    "  (in the checkout; or name an interpreter that has both with --torch-python)"
)
# Of a side's turn: thousands of times a timer's error, and still many turns a minute.
BLOCK_SECONDS = 1.75
Log = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How to measure. `torch` is the command that starts the other side, None for ours alone."""

    rounds: int = 7
    threads: int = 1
    torch: Sequence[str] | None = None
    block_seconds: float = BLOCK_SECONDS


@dataclass
class Side:
    """One implementation that is ready to be timed."""

    peer: Asked
    tokens: int  # of a step
    losses: list[float]  # of steps 1 to STEPS + 1
    step_seconds: float
    compile_seconds: float  # of the first step, less a step
    peak_memory_bytes: int


def find_torch(python: str | None) -> list[str]:
    """The command of the torch side, by an interpreter (default: that of `.venv-torch`).

    Raises:
      ConfigError: it is not there, or has no torch or numpy; says how to get them.
    """
    path, _ = interpreter("torch", python, "import torch, numpy", INSTALL)
    return [str(path), str(TORCH_PEER)]


def bench_train(shapes: Sequence[Shape], settings: Settings, log: Log) -> dict[str, Any]:
    """Measures every shape; rates are in tokens/s.

    Raises:
      ConfigError: the other side does not compute the same, or a process failed.
    """
    rows: list[Row] = []
    peaks: list[dict[str, float]] = []
    versions: Row = {}
    for shape in shapes:
        row, peak, versions = measure(shape, settings, log)
        rows.append(row)
        peaks.append(peak)
    # The machine's limit is one number; every shape's turn has tried to find it.
    peak_flops = max(max(p.values()) for p in peaks)
    for shape, row in zip(shapes, rows, strict=True):
        _against_peak(row, flops_per_token(shape.model, shape.seq_len), peak_flops)
    found: dict[str, Any] = {"shapes": rows}
    if settings.torch is not None:
        found["geomean"] = math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows))
    return {
        **found,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "peak_flops": peak_flops,
        "peak_flops_by": {who: max(p[who] for p in peaks) for who in peaks[0]},
        "machine": machine(),
        "versions": versions,
    }


def _against_peak(row: Row, per_token: float, peak_flops: float) -> None:
    row["model_flops_per_second"] = row["ours"] * per_token
    row["fraction_of_peak"] = row["model_flops_per_second"] / peak_flops
    if "torch" in row:
        row["torch_fraction_of_peak"] = row["torch"] * per_token / peak_flops
        row["ceiling"] = 1 / row["torch_fraction_of_peak"]


def measure(shape: Shape, settings: Settings, log: Log) -> tuple[Row, dict[str, float], Row]:
    """(row, peak FLOP/s that each implementation's matrix product reaches, versions) of a shape.
    Every side is a fresh process, and has ended when this returns."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlhf-jax-bench-")))
        peer = stack.enter_context(ours("train_program", settings.threads))
        versions = {"ours": peer.ask("load", shape=to_json(shape))["versions"]}
        log(f"{shape.name}: rlhf-jax compiles, and takes {STEPS + 1} steps")
        sides = {"ours": ready(peer, shape.tokens)}
        row: Row = {"name": shape.name}
        if settings.torch is not None:
            exported = peer.ask("export", path=str(folder / "start.npz"))
            peer.ask("gradients", path=str(folder / "ours.npz"))
            apart = []
            for name in ("torch_eager", "torch_compiled"):
                log(f"{shape.name}: {name} does the same")
                other = stack.enter_context(_torch(name, settings, folder))
                versions["torch"] = other.ask(
                    "load",
                    path=str(folder / "start.npz"),
                    optim=exported["optim"],
                    threads=settings.threads,
                    compiled=name == "torch_compiled",
                )["versions"]
                sides[name] = ready(other, shape.tokens)
                apart.append(_agree(name, sides, folder))
            row |= Agreement(*(max(a) for a in zip(*apart, strict=True)))._asdict()
        before = _peaks(sides)
        rates, others = in_turns(shape, sides, settings, log)
        after = _peaks(sides)
    peaks = {who: max(before[who], after[who]) for who in before}
    row |= {**_summary(rates, sides), "others_share_of_cpu": others}
    return row, peaks, versions


def _peaks(sides: Mapping[str, Side]) -> dict[str, float]:
    """FLOP/s of a large matrix product, by each library."""
    asked = {"ours": "ours", "torch": "torch_eager"}
    return {
        who: sides[name].peer.ask("peak")["flops"] for who, name in asked.items() if name in sides
    }


def _torch(name: str, settings: Settings, folder: Path) -> Peer:
    assert settings.torch is not None
    # Compilation is timed, so nothing that is already compiled may be found.
    fresh = {
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / name),
    }
    return Peer(name, settings.torch, settings.threads, fresh)


def ready(peer: Asked, tokens: int) -> Side:
    """Lets a fresh process take the steps that both sides are compared on."""
    first = peer.ask("steps", count=1)
    rest = peer.ask("steps", count=STEPS)
    seconds = rest["seconds"] / STEPS
    return Side(
        peer,
        tokens,
        first["losses"] + rest["losses"],
        seconds,
        max(first["seconds"] - seconds, 0.0),
        rest["peak_memory_bytes"],
    )


def _agree(name: str, sides: Mapping[str, Side], folder: Path) -> Agreement:
    sides[name].peer.ask("gradients", path=str(folder / f"{name}.npz"))
    return check(
        name, sides[name].losses, sides["ours"].losses, folder / f"{name}.npz", folder / "ours.npz"
    )


def in_turns(
    shape: Shape, sides: Mapping[str, Side], settings: Settings, log: Log
) -> tuple[dict[str, list[float]], float]:
    """Tokens/s of every side in every round, and the share of the CPU that went elsewhere
    (`in_rounds`)."""
    steps = {n: max(2, round(settings.block_seconds / s.step_seconds)) for n, s in sides.items()}

    def rate(name: str, answer: Answer) -> float:
        return float(sides[name].tokens * steps[name] / answer["seconds"])

    def said(answers: Mapping[str, Answer]) -> str:
        return ", tokens/s: " + ", ".join(f"{n} {rate(n, a):,.0f}" for n, a in answers.items())

    asks = {n: partial(s.peer.ask, "steps", count=steps[n]) for n, s in sides.items()}
    answers, others = in_rounds(shape.name, asks, settings.rounds, said, log)
    return {name: [rate(name, a) for a in each] for name, each in answers.items()}, others


def _summary(rates: Mapping[str, list[float]], sides: Mapping[str, Side]) -> Row:
    """Medians; torch is the faster one of its two forms, in all rounds the same."""
    mine = sides["ours"]
    row: Row = {
        "ours": statistics.median(rates["ours"]),
        "ours_low": min(rates["ours"]),
        "ours_high": max(rates["ours"]),
        "compile_seconds": mine.compile_seconds,
        "peak_memory_bytes": mine.peak_memory_bytes,
    }
    if len(sides) == 1:
        return row
    medians = {n: statistics.median(r) for n, r in rates.items() if n != "ours"}
    best = max(medians, key=lambda n: medians[n])
    ratios = [a / b for a, b in zip(rates["ours"], rates[best], strict=True)]
    return {
        **row,
        **medians,
        "torch": medians[best],
        "torch_is": best,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "torch_compile_seconds": sides["torch_compiled"].compile_seconds,
        "torch_peak_memory_bytes": sides[best].peak_memory_bytes,
    }
