from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_jax.kinds.task import LANGUAGE_MODELS, REWARDS, TaskConfig
from rlhf_jax.study.cell import Cell, option
from rlhf_jax.study.config import ConfigError, OptimConfig
from rlhf_jax.study.ranges import (
    Count,
    Decay,
    Passes,
    Positive,
    Range,
    Real,
    Seed,
    Share,
    Size,
    Weight,
)


@dataclass(frozen=True)
class PPO(Cell):
    """Proximal policy optimisation against a reward, held near the policy it starts from, and what
    comes out of the same rollout: GRPO, RLOO, REINFORCE.

    Defaults follow Ziegler et al. 2019 and the N+ reproduction (2024) where they agree;
    `rlhf_jax.rl.presets` has the published settings.
    """

    KIND = "ppo"
    PARENTS = {"policy": LANGUAGE_MODELS, "reward": REWARDS}
    policy: str = "sft"
    # A cell of `REWARDS`, or an import path MODULE:FUNCTION of a callable.
    reward: str = field(default="reward", metadata={"outside": "callable"})
    task: TaskConfig = field(default_factory=TaskConfig)
    iterations: Count = 50
    batch: Size = 64  # prompts an iteration
    minibatches: Count = 1
    epochs: Passes = 4
    # Greedy samples have no log-probabilities to learn from.
    temperature: Annotated[float, Range(1e-4, 10_000)] = 1.0
    kl_coef: Weight = 0.05
    kl_target: Positive | None = None  # nats a sequence; None: a fixed coefficient
    kl_horizon: Positive = 10_000.0
    gamma: Share = 1.0
    lam: Share = 0.95
    clip: Positive = 0.2
    value_clip: Positive | None = 0.2  # None: the plain squared error
    value_coef: Weight = 0.1
    whiten_rewards: bool = False  # found harmful in 2024
    no_eos: Literal["replace", "subtract", "keep"] = "replace"  # scores of responses without EOS
    no_eos_score: Real = -1.0  # what replaces them (Ziegler, N+), or is added to them
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=3e-4, schedule="linear", final=0.0, weight_decay=0.0, eps=1e-5, b2=0.999
        )
    )
    seed: Seed = 0
    # Advantages: of a critic (gae), or of a response's score against the others of its prompt
    # (Shao 2024; Ahmadian 2024) or of the batch.
    algorithm: Literal["ppo", "grpo", "rloo", "reinforce"] = option("ppo")
    samples: Annotated[int, Range(1, 2**20)] = option(
        1
    )  # responses to each prompt; their prefill is shared
    # The critic's trunk: a copy of the reward model's or of the policy's, or the policy's own.
    critic: Literal["reward", "policy", "shared"] = option("reward")
    critic_lr: Positive | None = option(None)  # None: the policy's
    kl_in: Literal["reward", "loss"] = option("reward")  # k1 a token; k3, with k2's gradient
    score_at: Literal["last", "after"] = option("last")  # valid token, or one past it (N+, TRL)
    whiten_advantages: Literal["batch", "minibatch", "no"] = option("batch")
    bessel: bool = option(False)  # variance over n - 1 (TRL, verl) instead of n (OpenAI 2019, N+)
    ptx_coef: Weight = option(0.0)  # weight of the pretraining loss (PPO-ptx), a token
    ptx_batch: Size = option(16)  # rows of the corpus that go with each minibatch
    ema: Decay | None = option(None)  # decay an iteration; the result is then the average
    # Different batches of prompts; later iterations take the same prompts again, in another order.
    prompt_batches: Count = option(16)

    def check(self) -> None:
        if self.batch * self.samples % self.minibatches:
            raise ConfigError(
                f"{self.name}.minibatches = {self.minibatches} does not divide batch x samples = "
                f"{self.batch} x {self.samples}"
            )
        if self.kl_target is None:
            self.unused("kl_horizon", "a kl_target")
        elif self.kl_coef == 0:
            raise ConfigError(
                f"{self.name}.kl_target = {self.kl_target} would do nothing: the controller "
                f"multiplies kl_coef, which is 0. Give kl_coef a value above 0"
            )
        if self.algorithm != "ppo":
            for name in ("critic_lr", "gamma", "lam", "value_clip", "value_coef"):
                self.unused(name, "algorithm = 'ppo', which has a critic")
            self.unused("whiten_advantages", "algorithm = 'ppo'")
        if not self.whiten_rewards and (self.algorithm != "ppo" or self.whiten_advantages == "no"):
            self.unused("bessel", "whitening of advantages or rewards")
        if self.algorithm in ("grpo", "rloo") and self.samples < 2:
            raise ConfigError(
                f"{self.name}.samples = {self.samples}; {self.algorithm} compares at least 2 "
                f"responses to a prompt"
            )
        if self.algorithm == "reinforce" and self.batch * self.samples < 2:
            raise ConfigError(
                f"{self.name}: batch x samples = 1; reinforce compares at least 2 responses"
            )
        if self.critic_lr is not None and self.critic == "shared":
            raise ConfigError(
                f"{self.name}.critic_lr = {self.critic_lr}, but critic = 'shared' is on the "
                f"policy's trunk and learns with it; leave critic_lr out or give the critic a "
                "trunk of its own"
            )
