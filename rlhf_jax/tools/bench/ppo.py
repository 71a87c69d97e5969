"""`bench ppo`: one iteration of PPO by the product's compiled program, alone or in turns with TRL's
trainer: generate, score, update. No jax here: whoever is measured is a process of its own.

Both sides take the same iteration: the same four models (policy, reference, critic, reward: a Llama
each, separate parameters, float32), prompts, formulas and settings. Neither side stops early: no
model ever gives EOS, and for TRL no token is PAD or stops a response, so a response always has its
full length.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.cost.flops import param_counts
from rlhf_jax.study.config import ConfigError, ModelConfig, to_json
from rlhf_jax.tools.bench.machine import Answer, in_rounds, machine
from rlhf_jax.tools.bench.peers import Asked, Peer, interpreter, ours
from rlhf_jax.tools.bench.shapes import Shape
from rlhf_jax.tools.bench.train import Log, Row, Settings

TRL_PEER = Path(__file__).with_name("trl_peer.py")
TRL = "1.9.0"  # whose trainer the other side drives: its functions have no stable interface
INSTALL = (
    f"python -m venv .venv-trl && .venv-trl/bin/pip install trl=={TRL} torch"
    "  (in the checkout; or name an interpreter that has both with --trl-python)"
)
PHASES = ("generate", "score", "update")
EPOCHS = 4
SAME = 1e-4  # nats, scores, values; of a loss, relative to max(1, |loss|)
MOVED = 1e-3  # of what the iteration changed, relative to the largest change


def find_trl(python: str | None) -> list[str]:
    """The command of TRL's side, by an interpreter (default: that of `.venv-trl`).

    Raises:
      ConfigError: it is not there, or has no torch or another TRL; says how to get them.
    """
    ask = "from importlib.metadata import version; version('torch'); print(version('trl'))"
    path, found = interpreter("trl", python, ask, INSTALL)
    if found != TRL:
        raise ConfigError(
            f"--against trl: {path} has trl {found}, and the trainer of trl {TRL} is measured. Get "
            f"it with: {INSTALL}"
        )
    return [str(path), str(TRL_PEER)]


def bench_ppo(shapes: Sequence[Shape], settings: Settings, log: Log) -> dict[str, Any]:
    """Measures every shape; `settings.torch` is TRL's side. Times are seconds an iteration.

    Raises:
      ConfigError: the other side does not compute the same, or a process failed.
    """
    rows: list[Row] = []
    peaks: list[float] = []
    versions: Row = {}
    for shape in shapes:
        row, peak, versions = measure(shape, settings, log)
        rows.append(row)
        peaks.append(peak)
    peak_flops = max(peaks)
    for shape, row in zip(shapes, rows, strict=True):
        half = shape.seq_len // 2
        flops = iteration_flops(shape.llama, shape.batch, half, shape.seq_len - half)
        row["floor_seconds"] = flops / peak_flops
        row["share_of_floor"] = row["floor_seconds"] / row["ours"]["total"]
    return {
        "shapes": rows,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "peak_flops": peak_flops,
        "machine": machine(),
        "versions": versions,
    }


def iteration_flops(cfg: ModelConfig, rows: int, prompt: int, response: int) -> float:
    """FLOPs of the products of an iteration at the least, as `rlhf_jax.cost.flops` counts them:
    sample with a cache; score by the reference, critic and reward model; forward and backward of
    policy and critic in every epoch. Only the states in which a response token is chosen need the
    vocabulary's logits, and the last token of a row is read by the reward model alone."""
    count = param_counts(cfg)
    body = 2.0 * (count["attention"] + count["feed_forward"])

    def trunk(length: int) -> float:
        return rows * length * (body + 2.0 * cfg.layers * cfg.heads * cfg.C * (length + 1))

    T = prompt + response
    values = trunk(T - 1)
    log_probs = values + rows * response * 2.0 * count["embedding"]
    sampled, scored = log_probs, log_probs + values + trunk(T)
    return sampled + scored + EPOCHS * 3 * (log_probs + values)


def measure(shape: Shape, settings: Settings, log: Log) -> tuple[Row, float, Row]:
    """(row, peak FLOP/s, versions) of a shape. Every side is a fresh process, and has ended when
    this returns."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlhf-jax-bench-")))
        peer = stack.enter_context(ours("ppo_program", settings.threads))
        versions: Row = {"ours": peer.ask("load", shape=to_json(shape))["versions"]}
        log(f"{shape.name}: rlhf-jax compiles, and takes an iteration")
        first = peer.ask("once", path=str(folder / "ours.npz"))
        if first["stop_rate"]:
            raise ConfigError(
                f"{shape.name}: {first['stop_rate']:.0%} of the responses stopped early; none "
                "should"
            )
        row: Row = {"name": shape.name}
        sides: dict[str, Asked] = {"ours": peer}
        if settings.torch is not None:
            log(f"{shape.name}: trl does the same")
            other, versions["trl"], apart = _agreeing(peer, first, folder, settings, stack)
            sides["trl"] = other
            row["agreement"] = apart
        row["reward_step"] = peer.ask("reward_step")
        times, others = in_turns(shape, sides, settings, log)
        peak = max(side.ask("peak")["flops"] for side in sides.values())
    row |= summary(shape, times)
    return {**row, "others_share_of_cpu": others}, peak, versions


def _agreeing(
    mine: Peer, first: Answer, folder: Path, settings: Settings, stack: contextlib.ExitStack
) -> tuple[Peer, Row, dict[str, float]]:
    """(TRL's side, its versions, how far it is from ours) after the iteration that ours has
    taken."""
    assert settings.torch is not None
    start = folder / "start.npz"
    exported = mine.ask("export", path=str(start))
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    other = stack.enter_context(Peer("trl", settings.torch, settings.threads, quiet))
    loaded = other.ask("load", path=str(start), threads=settings.threads, **exported)
    theirs = other.ask("once", path=str(folder / "trl.npz"), responses=str(folder / "ours.npz"))
    return (
        other,
        loaded["versions"],
        agreement(theirs, first, folder / "trl.npz", folder / "ours.npz"),
    )


def agreement(theirs: Answer, mine: Answer, path: Path, reference_path: Path) -> dict[str, float]:
    """Largest differences of one whole iteration on the same responses: of log-probs (nats), values
    and scores before it, of the losses over its epochs, and of how far it moved log-probs and
    values.

    Raises:
      ConfigError: something differs by more than its tolerance; it names what.
    """
    apart: dict[str, tuple[float, float]] = {}
    with np.load(path) as a, np.load(reference_path) as b:
        for name in ("reference", "log_probs", "values", "scores"):
            apart[name] = _largest(a[name] - b[name]), SAME
        for name in ("policy_loss", "value_loss"):
            apart[name] = abs(theirs[name] - mine[name]) / max(1.0, abs(mine[name])), SAME
        for name in ("log_probs", "values"):
            moved, by_us = (x[f"{name}_after"] - x[name] for x in (a, b))
            apart[f"{name}_moved"] = _largest(moved - by_us) / _largest(by_us), MOVED
    for name, (difference, tolerance) in apart.items():
        if not difference <= tolerance:
            raise ConfigError(
                f"trl does not compute what rlhf-jax computes: {name} differs by {difference:.2g}, "
                f"more than {tolerance:g} (see rlhf_jax/tools/bench/trl_peer.py); nothing was timed"
            )
    return {name: difference for name, (difference, _) in apart.items()}


def _largest(x: np.ndarray) -> float:
    return float(np.max(np.abs(x)))


def in_turns(
    shape: Shape, sides: Mapping[str, Asked], settings: Settings, log: Log
) -> tuple[dict[str, list[Row]], float]:
    """Every side's answers in every round, and the share of the CPU that went elsewhere
    (`in_rounds`)."""
    counts = {}
    for name, side in sides.items():
        side.ask("time", count=1)  # warms up; ours compiles
        counts[name] = max(1, round(settings.block_seconds / side.ask("time", count=1)["seconds"]))

    def said(answers: Mapping[str, Answer]) -> str:
        return ": " + ", ".join(f"{n} {1000 * a['total']:,.0f} ms" for n, a in answers.items())

    asks = {n: partial(side.ask, "time", count=counts[n]) for n, side in sides.items()}
    return in_rounds(shape.name, asks, settings.rounds, said, log)


def summary(shape: Shape, times: Mapping[str, Sequence[Answer]]) -> Row:
    """Medians over rounds, and of the ratios within a round: above 1, ours is faster."""
    made = shape.batch * (shape.seq_len - shape.seq_len // 2)
    row: Row = {}
    for name, answers in times.items():
        phases = [p for p in ("total", *PHASES, "collect") if p in answers[0]]
        row[name] = {p: statistics.median(a[p] for a in answers) for p in phases}
        row[name]["tokens_per_second"] = made / row[name]["generate"]
        row[name]["peak_memory_bytes"] = answers[-1]["peak_memory_bytes"]
    if "trl" not in times:
        return row

    def ratios(of: Callable[[Answer], float]) -> list[float]:
        return [of(b) / of(a) for a, b in zip(times["ours"], times["trl"], strict=True)]

    total = ratios(lambda a: a["total"])
    uncollected = ratios(lambda a: a["total"] - a.get("collect", 0.0))
    return {
        "ratio": statistics.median(total),
        "ratio_low": min(total),
        "ratio_high": max(total),
        "ratio_without_collect": statistics.median(uncollected),
        "decode_ratio": statistics.median(ratios(lambda a: a["generate"])),
        **row,
    }
