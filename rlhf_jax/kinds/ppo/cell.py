from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from rlhf_jax.kinds.bases import ByReward
from rlhf_jax.kinds.ppo.result import PPOResult
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.callables import is_callable
from rlhf_jax.study.cell import Cost, option
from rlhf_jax.study.config import ConfigError, OptimConfig
from rlhf_jax.study.messages import suggest
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

if TYPE_CHECKING:
    from rlhf_jax.kinds.needs import Need
    from rlhf_jax.study.graph import Study


class Algorithm(NamedTuple):
    """How advantages are estimated.

    Attributes:
        function: MODULE:FUNCTION, (rollout, cell) -> advantages, as `rlhf_jax.rl.advantages` says.
        critic: whether it uses the values of a critic.
        compares: the responses that it compares with each other, of which it takes at least 2.
    """

    function: str
    critic: bool = False
    compares: Literal["", "prompt", "batch"] = ""


ALGORITHMS = {
    "ppo": Algorithm("rlhf_jax.rl.advantages:generalised", critic=True),
    "grpo": Algorithm("rlhf_jax.rl.advantages:standardised", compares="prompt"),
    "rloo": Algorithm("rlhf_jax.rl.advantages:leave_one_out", compares="prompt"),
    "reinforce": Algorithm("rlhf_jax.rl.advantages:leave_one_out_of_batch", compares="batch"),
}
# MODULE:FUNCTION, (ratio_BR, advantages_BR, cell) -> losses_BR.
POLICY_LOSSES = {"clip": "rlhf_jax.rl.ppo:clipped"}


@dataclass(frozen=True)
class PolicyGradient(ByReward):
    """What all policy gradients share: a rollout, a KL penalty, minibatches, an optimizer."""

    PARENTS = {"policy": "language_model", "reward": "reward"}
    policy: str = "sft"
    # A cell, or an import path MODULE:FUNCTION of a callable.
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
    whiten_rewards: bool = False  # found harmful in 2024
    no_eos: Literal["replace", "subtract", "keep"] = "replace"  # scores of responses without EOS
    no_eos_score: Real = -1.0  # what replaces them (Ziegler, N+), or is added to them
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=3e-4, schedule="linear", final=0.0, weight_decay=0.0, eps=1e-5, b2=0.999
        )
    )
    seed: Seed = 0
    # Responses to each prompt; their prefill is shared.
    samples: Annotated[int, Range(1, 2**20)] = option(1)
    kl_in: Literal["reward", "loss"] = option("reward")  # k1 a token; k3, with k2's gradient
    score_at: Literal["last", "after"] = option("last")  # valid token, or one past it (N+, TRL)
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

    @property
    def prompts(self) -> int:
        """Different prompts that it takes."""
        return self.batch * min(self.iterations, self.prompt_batches)

    def batches(self, study: Study) -> Iterator[tuple[str, int, bool]]:
        yield f"{self.name}.batch", self.batch, False
        rows = self.batch * self.samples // self.minibatches
        yield f"{self.name}: batch x samples / minibatches", rows, True
        if self.ptx_coef:
            yield f"{self.name}.ptx_batch", self.ptx_batch, True

    def needs(self, study: Study) -> Iterator[Need]:
        from rlhf_jax.kinds.needs import judged

        return judged(study, self, "train", self.prompts)


@dataclass(frozen=True)
class WithCritic(PolicyGradient):
    """What a critic adds: a value of every state, and advantages by generalised estimation."""

    gamma: Share = 1.0
    lam: Share = 0.95
    value_clip: Positive | None = 0.2  # None: the plain squared error
    value_coef: Weight = 0.1
    # The critic's trunk: a copy of the reward model's or of the policy's, or the policy's own.
    critic: Literal["reward", "policy", "shared"] = option("reward")
    critic_lr: Positive | None = option(None)  # None: the policy's
    whiten_advantages: Literal["batch", "minibatch", "no"] = option("batch")

    @property
    def has_critic(self) -> bool:
        return True

    def check(self) -> None:
        super().check()
        if not self.has_critic:
            for name in ("critic_lr", "gamma", "lam", "value_clip", "value_coef"):
                self.unused(name, "algorithm = 'ppo', which has a critic")
            self.unused("whiten_advantages", "algorithm = 'ppo'")
        if not self.whiten_rewards and (not self.has_critic or self.whiten_advantages == "no"):
            self.unused("bessel", "whitening of advantages or rewards")
        if self.critic_lr is not None and self.critic == "shared":
            raise ConfigError(
                f"{self.name}.critic_lr = {self.critic_lr}, but critic = 'shared' is on the "
                f"policy's trunk and learns with it; leave critic_lr out or give the critic a "
                "trunk of its own"
            )


@dataclass(frozen=True)
class PPO(WithCritic):
    """Proximal policy optimisation against a reward, held near the policy it starts from, and what
    comes out of the same rollout: GRPO, RLOO, REINFORCE, or advantages and a loss of one's own.

    Defaults follow Ziegler et al. 2019 and the N+ reproduction (2024) where they agree;
    `rlhf_jax.rl.presets` has the published settings.
    """

    KIND = "ppo"
    RESULT = PPOResult
    ROLES = ("language_model",)
    clip: Positive = 0.2
    # Advantages: of a critic (ppo), or of a response's score against the others of its prompt
    # (grpo, Shao 2024; rloo, Ahmadian 2024) or of the batch (reinforce); or MODULE:FUNCTION,
    # (rollout, cell) -> advantages, without a critic.
    algorithm: str = option("ppo", "function")
    # The clipped surrogate; or MODULE:FUNCTION, (ratio_BR, advantages_BR, cell) -> losses_BR.
    policy_loss: str = option("clip", "function")

    @property
    def has_critic(self) -> bool:
        return self.algorithm in ALGORITHMS and ALGORITHMS[self.algorithm].critic

    def check(self) -> None:
        for name, known in (("algorithm", ALGORITHMS), ("policy_loss", POLICY_LOSSES)):
            if (value := getattr(self, name)) not in known and not is_callable(value):
                raise ConfigError(
                    f"{self.name}.{name} = {value!r}.{suggest(value, list(known))} Or name a "
                    f"function of your own, MODULE:FUNCTION"
                )
        super().check()
        compares = ALGORITHMS[self.algorithm].compares if self.algorithm in ALGORITHMS else ""
        if compares == "prompt" and self.samples < 2:
            raise ConfigError(
                f"{self.name}.samples = {self.samples}; {self.algorithm} compares at least 2 "
                f"responses to a prompt"
            )
        if compares == "batch" and self.batch * self.samples < 2:
            raise ConfigError(
                f"{self.name}: batch x samples = 1; {self.algorithm} compares at least 2 responses"
            )

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        from rlhf_jax.cost.flops import param_counts, train_flops
        from rlhf_jax.cost.formulas import CHECKPOINT_BYTES, Formulas
        from rlhf_jax.cost.memory import BASELINE_BYTES
        from rlhf_jax.kinds.ppo.memory import rlhf_bytes

        c = Formulas(study, self, accumulate)
        sequences = self.iterations * self.batch * self.samples
        rewards = c.rewards(self.reward)
        critic = (rewards or [c.model])[0] if self.critic == "reward" else c.model
        own = self.has_critic and self.critic != "shared"
        trained = [c.model, critic] if own else [c.model]
        learned = sum(map(c.passes, trained))
        decode = c.forward * sequences
        # Of the reference, the trained models and the rewards.
        scored = c.forward + learned + sum(map(c.passes, rewards))
        flops = decode + sequences * (scored + self.epochs * 3 * learned)
        if self.ptx_coef:
            rows = self.iterations * self.epochs * self.minibatches * self.ptx_batch
            T = study.corpus.seq_len
            flops += train_flops(c.model, T, rows * T)
        parts = rlhf_bytes(self, c.model, trained[-1], rewards, accumulate)
        memory = sum(parts.values()) - BASELINE_BYTES
        params = sum(param_counts(m)["total"] for m in trained)
        return Cost(sequences, flops, decode, memory, CHECKPOINT_BYTES * params)
