"""The kinds of cell: units of work, described by science alone.

A cell names its parents by their names in the study; `rlhf_jax.study` checks the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rlhf_jax.config import ConfigError, ModelConfig, OptimConfig


@dataclass(frozen=True)
class TaskConfig:
    """Continue the opening of a real sentence: what SFT, comparisons, PPO and evaluation share."""

    prompt_len: int = 16  # tokens, exactly
    response_len: int = 24  # tokens at most, EOS included

    def __post_init__(self) -> None:
        if self.prompt_len < 1 or self.response_len < 1:
            raise ConfigError(f"task lengths must be at least 1, got {self}")


# Fields that came after a release stay out of run ids while they have their default: a new option leaves
# finished runs what they were.
ADDED = {"added": True}


@dataclass(frozen=True)
class Cell:
    """Base of all cells. `PARENTS` maps the fields that name another cell to the kinds allowed."""

    name: str
    KIND: ClassVar[str] = "cell"
    PARENTS: ClassVar[dict[str, tuple[str, ...]]] = {}

    def parents(self) -> tuple[str, ...]:
        named = (getattr(self, f) for f in self.PARENTS)
        return tuple(n for n in named if n is not None and ":" not in n)


LANGUAGE_MODELS = ("pretrain", "sft", "ppo")


@dataclass(frozen=True)
class Pretrain(Cell):
    """Next-token prediction on the corpus. `continues` extends another pretraining cell from its last
    checkpoint (optimizer moments and data position included) to more `tokens`, under a new schedule."""

    KIND = "pretrain"
    PARENTS = {"continues": ("pretrain",)}
    model: ModelConfig = field(default_factory=ModelConfig)
    tokens: int = 1_000_000  # tokens processed in all, those of the cell it continues included
    batch: int = 32  # sequences a step
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    continues: str | None = None
    # Only so many of the corpus's, the same ones for every seed.
    unique_tokens: int | None = field(default=None, metadata=ADDED)
    repeat: bool = False  # more tokens than there are unique ones, on purpose


@dataclass(frozen=True)
class SFT(Cell):
    """Supervised fine-tuning on demonstrations; the loss is on completions only."""

    KIND = "sft"
    PARENTS = {"base": LANGUAGE_MODELS}
    base: str = "base"
    task: TaskConfig = field(default_factory=TaskConfig)
    examples: int = 4096
    min_gold: float = 0.0  # demonstrations that the labeller scores at least this
    epochs: int = 1
    batch: int = 16
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.0))
    seed: int = 0


@dataclass(frozen=True)
class Compare(Cell):
    """K completions of each prompt from a policy, ranked by simulated annotators."""

    KIND = "compare"
    PARENTS = {"policy": LANGUAGE_MODELS}
    policy: str = "sft"
    task: TaskConfig = field(default_factory=TaskConfig)
    prompts: int = 512
    heldout_prompts: int = 64
    k: int = 6  # completions a prompt (2 to 9)
    temperature: float = 1.0
    annotators: int = 3
    noise: float = 0.2  # of one annotator, in units of the gold score
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.k <= 9:
            raise ConfigError(f"{self.name}.k is {self.k}; rankings hold 2 to 9 completions")


@dataclass(frozen=True)
class Reward(Cell):
    """A reward model from rankings: the K-wise loss of InstructGPT, one prompt an element."""

    KIND = "reward"
    PARENTS = {"base": LANGUAGE_MODELS, "comparisons": ("compare",)}
    base: str = "sft"
    comparisons: str = "compare"
    epochs: int = 1
    batch: int = 16  # prompts
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.0))
    seed: int = 0


@dataclass(frozen=True)
class PPO(Cell):
    """Proximal policy optimisation against a reward model, held near the policy it starts from.

    Defaults follow Ziegler et al. 2019 and the N+ reproduction (2024) where they agree.
    """

    KIND = "ppo"
    PARENTS = {"policy": LANGUAGE_MODELS, "reward": ("reward",)}
    policy: str = "sft"
    reward: str = "reward"  # a reward cell, or an import path MODULE:FUNCTION of a callable
    task: TaskConfig = field(default_factory=TaskConfig)
    iterations: int = 50
    batch: int = 64  # prompts an iteration
    minibatches: int = 1
    epochs: int = 4
    temperature: float = 1.0
    kl_coef: float = 0.05
    kl_target: float | None = None  # nats a sequence; None: a fixed coefficient
    kl_horizon: float = 10_000.0
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    whiten_rewards: bool = False  # found harmful in 2024
    no_eos: Literal["replace", "subtract", "keep"] = "replace"  # scores of responses without EOS
    no_eos_score: float = -1.0  # what replaces them (Ziegler, N+), or is added to them
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=3e-4, schedule="linear", final=0.0, weight_decay=0.0, eps=1e-5, b2=0.999
        )
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch % self.minibatches:
            raise ConfigError(
                f"{self.name}.minibatches = {self.minibatches} does not divide batch = {self.batch}"
            )


@dataclass(frozen=True)
class Evaluate(Cell):
    """Two policies side by side on held-out prompts: gold reward, KL, diversity, perplexity."""

    KIND = "evaluate"
    PARENTS = {"before": LANGUAGE_MODELS, "after": LANGUAGE_MODELS, "reward": ("reward",)}
    before: str = "sft"
    after: str = "ppo"
    reward: str = "reward"
    task: TaskConfig = field(default_factory=TaskConfig)
    prompts: int = 256
    temperature: float = 1.0
    seed: int = 0


KINDS: dict[str, type[Cell]] = {c.KIND: c for c in (Pretrain, SFT, Compare, Reward, PPO, Evaluate)}
