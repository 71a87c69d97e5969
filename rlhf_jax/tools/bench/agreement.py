"""Whether two sides compute the same: without that, comparing their speed says nothing. No jax."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.study.config import ConfigError

FIRST = 1e-4  # of the first step: its loss, relative to max(1, |loss|), and its gradients
LATER = 1e-3  # of the loss after this many steps; both sides round differently, and that grows
STEPS = 20


class Agreement(NamedTuple):
    """How far apart two sides are."""

    loss_difference: float
    gradient_difference: float  # of the worst array: largest difference over largest entry
    loss_difference_after_20: float


def check(
    name: str,
    losses: list[float],
    reference: list[float],
    gradients: Path,
    reference_gradients: Path,
) -> Agreement:
    """Compares the losses of `STEPS + 1` steps from the same weights on the same batches, and the
    gradients of the first (.npz files with arrays of the same names).

    Raises:
      ConfigError: they differ by more than the tolerance; it names what differs.
    """
    first = _first(name, losses, reference)
    worst, array = _worst(name, gradients, reference_gradients)
    _within(
        name, f"the gradient of {array}", worst, FIRST, "see rlhf_jax/tools/bench/torch_peer.py"
    )
    return Agreement(first, worst, _after(name, losses, reference))


def same_losses(name: str, losses: list[float], reference: list[float]) -> None:
    """The same without gradients.

    Raises:
      ConfigError: the losses differ by more than the tolerance.
    """
    _first(name, losses, reference)
    _after(name, losses, reference)


def _first(name: str, losses: list[float], reference: list[float]) -> float:
    apart = _relative(losses[0], reference[0])
    _within(name, "the loss of the first step", apart, FIRST, f"{losses[0]} and {reference[0]}")
    return apart


def _after(name: str, losses: list[float], reference: list[float]) -> float:
    apart = _relative(losses[STEPS], reference[STEPS])
    _within(
        name,
        f"the loss after {STEPS} steps",
        apart,
        LATER,
        f"{losses[STEPS]} and {reference[STEPS]}",
    )
    return apart


def _relative(a: float, b: float) -> float:
    return abs(a - b) / max(1.0, abs(b))


def _worst(name: str, path: Path, reference_path: Path) -> tuple[float, str]:
    """(difference, array's name) of the gradient that differs most."""
    with np.load(path) as theirs, np.load(reference_path) as ours:
        if set(theirs) != set(ours):
            odd = ", ".join(sorted(set(theirs) ^ set(ours)))
            raise ConfigError(
                f"{name} has other parameters than rlhf-jax: {odd}; nothing was timed"
            )
        apart = {}
        for key, g in ours.items():
            if theirs[key].shape != g.shape:
                raise ConfigError(
                    f"{name}: the gradient of {key} has shape {theirs[key].shape}, that of "
                    f"rlhf-jax {g.shape}; nothing was timed"
                )
            apart[key] = float(np.max(np.abs(theirs[key] - g)) / np.max(np.abs(g)))
    # A NaN is not the largest of anything; it is the worst all the same.
    array = max(apart, key=lambda k: np.inf if np.isnan(apart[k]) else apart[k])
    return apart[array], array


def _within(name: str, what: str, difference: float, tolerance: float, said: str) -> None:
    if not difference <= tolerance:
        raise ConfigError(
            f"{name} does not compute what rlhf-jax computes: {what} differs by {difference:.2g}, "
            f"more than {tolerance:g} ({said}); nothing was timed"
        )
