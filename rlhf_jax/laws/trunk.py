"""Trunk and branch: one run of constant learning rate a size, and a short decay off it a budget, in
the place of one whole run a budget (warmup-stable-decay; Hu 2024, Haegele 2024)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.study.config import ConfigError, ModelConfig, OptimConfig

DECAY = 0.2  # share of a budget's tokens that its branch trains


def trunk_and_branch(
    name: str,
    model: ModelConfig,
    horizons: Sequence[int],
    batch: int,
    seq_len: int,
    optim: OptimConfig,
    decay: float = DECAY,
    seed: int = 0,
) -> tuple[list[Pretrain], list[Pretrain]]:
    """(trunk, branches) of one size: edges of the study's graph.

    Trunk cell i (`NAME-trunk-i`) continues trunk cell i - 1 to (1 - decay) of horizon i, at a
    constant learning rate; branch i (`NAME-branch-i`) continues it to horizon i while the learning
    rate falls linearly to `optim.final` of the peak. Only the first trunk cell warms up, for
    `optim.warmup` of its own steps.

    Args:
      horizons: tokens at the end of each branch, increasing.

    Raises:
      ConfigError: horizons that leave a cell without a step of its own.
    """
    step = batch * seq_len
    whole = [h // step * step for h in horizons]
    ends = [step * round((1 - decay) * h / step) for h in whole]
    if not horizons or any(a >= b for a, b in itertools.pairwise([0, *ends])):
        raise ConfigError(
            f"{name}: horizons {list(horizons)} must increase by a batch of {step} at least"
        )
    if any(end >= h for end, h in zip(ends, whole, strict=True)):
        raise ConfigError(
            f"{name}: a decay of {decay} leaves a branch without a step of {step} tokens"
        )
    trunk: list[Pretrain] = []
    branches: list[Pretrain] = []
    of_all: dict[str, Any] = {"model": model, "batch": batch, "seed": seed}
    for i, (end, horizon) in enumerate(zip(ends, whole, strict=True)):
        stable = replace(optim, schedule="constant", warmup=0.0 if i else optim.warmup)
        before = f"{name}-trunk-{i - 1}" if i else None
        trunk.append(
            Pretrain(f"{name}-trunk-{i}", tokens=end, optim=stable, continues=before, **of_all)
        )
        falling = replace(optim, schedule="linear", warmup=0.0)
        on = trunk[-1].name
        branches.append(
            Pretrain(f"{name}-branch-{i}", tokens=horizon, optim=falling, continues=on, **of_all)
        )
    return trunk, branches
