"""Published settings of reward models and PPO, as fields of cells.

    PPO("ppo", policy="sft", reward="reward", **ppo_preset("nplus2024", iterations=200))

What a publication does not say keeps the cell's default. The numbers are for models of 0.1 to 6
billion parameters: batches and learning rates scale, the rest is a choice.

    openai2019       Ziegler et al. 2019, books (sentiment); details after Huang et al. 2023
    stiennon2020     Stiennon et al. 2020, 1.3B summaries
    instructgpt2022  Ouyang et al. 2022, 1.3B, PPO-ptx
    nplus2024        Huang et al. 2024, "The N+ implementation details of RLHF with PPO"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from rlhf_jax.kinds.ppo.cell import PPO
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.config import ConfigError, OptimConfig
from rlhf_jax.study.messages import suggest

T = TypeVar("T")


def _adam(lr: float, schedule: str, **more: Any) -> OptimConfig:
    settings = {"warmup": 0.0, "final": 0.0, "weight_decay": 0.0, "b2": 0.999, "eps": 1e-5, **more}
    return OptimConfig(lr=lr, schedule=schedule, **settings)  # type: ignore[arg-type]


# Where a later publication follows Ziegler et al.
_ZIEGLER: dict[str, Any] = {
    "batch": 512,
    "minibatches": 1,
    "epochs": 4,
    "temperature": 0.7,
    "gamma": 1.0,
    "lam": 0.95,
    "clip": 0.2,
}
_PPO: dict[str, dict[str, Any]] = {
    "openai2019": {
        **_ZIEGLER,
        "kl_coef": 0.15,
        "kl_target": 6.0,
        "kl_horizon": 10_000.0,
        "value_clip": 0.2,
        "value_coef": 0.1,
        "whiten_rewards": True,
        "critic": "shared",
        "no_eos": "replace",
        "score_at": "last",
        "optim": _adam(1e-5, "linear", adam="tensorflow"),
        "task": TaskConfig(prompt_len=64, response_len=24),
    },
    "stiennon2020": {
        **_ZIEGLER,
        "kl_coef": 0.05,
        "critic": "reward",
        "optim": _adam(1.5e-5, "linear"),
    },
    "instructgpt2022": {
        "batch": 512,
        "minibatches": 8,
        "epochs": 1,
        "temperature": 1.0,
        "kl_coef": 0.02,
        "gamma": 1.0,
        "clip": 0.2,
        "critic": "reward",
        "critic_lr": 9e-6,
        "ptx_coef": 27.8,
        "ema": 0.992,
        "optim": _adam(9.65e-6, "constant"),
    },
    "nplus2024": {
        **_ZIEGLER,
        "kl_coef": 0.05,
        "value_clip": 0.2,
        "value_coef": 0.1,
        "whiten_rewards": False,
        "critic": "reward",
        "no_eos": "replace",
        "no_eos_score": -1.0,
        "score_at": "after",
        "optim": _adam(3e-6, "linear"),
        "task": TaskConfig(prompt_len=512, response_len=53),
    },
}
# (batch, loss, normalise, optim); each passes once over its comparisons.
_REWARD = {
    "openai2019": (32, "best_of_n", "samples", _adam(5e-5, "linear")),
    "stiennon2020": (64, "kwise", "demonstrations", _adam(1.5e-5, "cosine")),
    "instructgpt2022": (64, "kwise", "demonstrations", _adam(9e-6, "cosine", final=0.1)),
    "nplus2024": (64, "kwise", "demonstrations", _adam(3e-6, "cosine")),
}

WARMUP_ITERATIONS = {"instructgpt2022": 10}
NAMES = tuple(_PPO)


def ppo_preset(name: str, **changes: Any) -> dict[str, Any]:
    """Fields of a `PPO` cell, with `changes` on top."""
    fields = {**_known(_PPO, name), **changes}
    warmup = WARMUP_ITERATIONS.get(name)
    if warmup and "optim" not in changes:  # a share of the iterations
        given = {k: fields[k] for k in ("iterations",) if k in fields}
        share = min(1.0, warmup / PPO("preset", **given).iterations)
        fields["optim"] = OptimConfig(**{**vars(fields["optim"]), "warmup": share})
    return fields


def reward_preset(name: str, **changes: Any) -> dict[str, Any]:
    """Fields of a `Reward` cell, with `changes` on top."""
    batch, loss, normalise, optim = _known(_REWARD, name)
    fields = {"batch": batch, "epochs": 1, "loss": loss, "normalise": normalise, "optim": optim}
    return {**fields, **changes}


def _known(presets: Mapping[str, T], name: str) -> T:
    if name not in presets:
        raise ConfigError(f"no preset {name!r}.{suggest(name, list(presets))}")
    return presets[name]
