"""Trunk and branch: each size is trained once at a constant learning rate (the trunk), and a short
decay branches off it for each budget, instead of one whole run for each (warmup-stable-decay; Hu
2024, Haegele 2024)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.study.config import ConfigError, ModelConfig, OptimConfig

DECAY = 0.2  # share of a budget's tokens that are trained in its branch


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
    """(trunk, branches): the cells of one size.

    Trunk cell i (`NAME-trunk-i`) continues trunk cell i - 1 to (1 - decay) of horizon i, at a
    constant learning rate; branch i (`NAME-branch-i`) continues it to horizon i while the learning
    rate falls linearly to `optim.final` of the peak. Only the first trunk cell warms up, for
    `optim.warmup` of its own steps.

    Args:
      horizons: tokens at the end of each branch, increasing.

    Raises:
      ConfigError: the horizons leave a cell without an optimizer step.
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
    cell = partial(Pretrain, model=model, batch=batch, seed=seed)
    falling = replace(optim, schedule="linear", warmup=0.0)
    for i, (end, horizon) in enumerate(zip(ends, whole, strict=True)):
        stable = replace(optim, schedule="constant", warmup=0.0 if i else optim.warmup)
        last, here = f"{name}-trunk-{i - 1}" if i else None, f"{name}-trunk-{i}"
        trunk.append(cell(here, tokens=end, optim=stable, continues=last))
        branch = cell(f"{name}-branch-{i}", tokens=horizon, optim=falling, continues=here)
        branches.append(branch)
    return trunk, branches
