"""The kinds of cell: units of work, described by science alone.

A cell names its parents by their names in the study; `rlhf_jax.study` checks the graph.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from rlhf_jax.config import Checked, ConfigError, ModelConfig, OptimConfig, check_names
from rlhf_jax.ranges import (
    Count,
    Decay,
    Passes,
    Positive,
    Range,
    Real,
    Seed,
    Share,
    Size,
    Temperature,
    Tokens,
    Weight,
)

# Fields that came after a release stay out of run ids while they have their default: a new option
# leaves finished runs what they were.
ADDED = {"added": True}


def option(default: Any, outside: str = "") -> Any:
    """A field that came after a release. `outside`: it can name something whose content enters run
    ids, a `callable` MODULE:FUNCTION, a `file` of records, or `records`, either of them."""
    return field(default=default, metadata={**ADDED, "outside": outside})


@dataclass(frozen=True)
class TaskConfig(Checked):
    """What SFT, comparisons, PPO and evaluation share: prompts, lengths, and who judges. The
    default task is to continue the opening of a real sentence, judged by its sentiment."""

    LABEL = "task"
    prompt_len: Size = 16  # tokens; shorter prompts are padded on the left
    response_len: Size = 24  # tokens at most, EOS included
    # MODULE:FUNCTION, (split, n, seed) -> texts of prompts; empty: openings of the corpus's
    # sentences.
    prompts: str = option("", "callable")
    # MODULE:FUNCTION, (prompts, responses) -> scores: the utility that annotators rank by.
    gold: str = option("rlhf_jax.data.annotators:sentiment", "callable")
    template: Literal["plain", "chat"] = option("plain")  # `rlhf_jax.data.chat`

    def check(self) -> None:
        if not self.gold:
            raise ConfigError(
                "task.gold = ''; expected MODULE:FUNCTION, (prompts, responses) -> scores"
            )
        if self.template != "plain" and not self.prompts:
            raise ConfigError(
                f"task.template = {self.template!r} needs task.prompts; openings of sentences are "
                "plain"
            )


def names_cell(value: Any) -> bool:
    """Whether the value of a parent's field is the name of a cell, rather than an import path or a
    file."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w-]+", value))


@dataclass(frozen=True)
class Cell(Checked):
    """Base of all cells. `PARENTS` maps the fields that name other cells to the kinds allowed."""

    name: str  # that of a folder; a study checks it
    KIND: ClassVar[str] = "cell"
    PARENTS: ClassVar[dict[str, tuple[str, ...]]] = {}

    def _called(self) -> str:
        return self.name if isinstance(self.name, str) and 0 < len(self.name) <= 100 else self.KIND

    def parents(self) -> tuple[str, ...]:
        """Names of the cells that it starts from; the first one's model is its own."""
        named = (n for f in self.PARENTS for n in self.named(f))
        return tuple(dict.fromkeys(n for n in named if names_cell(n)))

    def named(self, parent_field: str) -> tuple[str, ...]:
        """What a field of `PARENTS` holds, one or several names."""
        value = getattr(self, parent_field)
        return value if isinstance(value, tuple) else () if value is None else (value,)


LANGUAGE_MODELS = ("pretrain", "sft", "ppo", "dpo")
REWARDS = ("reward", "ensemble", "sft")  # sft: on critiques with verdicts, which it then gives


@dataclass(frozen=True)
class Pretrain(Cell):
    """Next-token prediction on the corpus. `continues` extends another pretraining cell from its
    last checkpoint (optimizer moments and data position included) to more `tokens`, under a new
    schedule."""

    KIND = "pretrain"
    PARENTS = {"continues": ("pretrain",)}
    model: ModelConfig = field(default_factory=ModelConfig)
    tokens: Tokens = 1_000_000  # tokens processed in all, those of the cell it continues included
    batch: Size = 32  # sequences a step
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: Seed = 0
    continues: str | None = None
    # Only so many of the corpus's, the same ones for every seed.
    unique_tokens: Tokens | None = option(None)
    repeat: bool = False  # more tokens than there are unique ones, on purpose


@dataclass(frozen=True)
class SFT(Cell):
    """Supervised fine-tuning on demonstrations; the loss is on completions only."""

    KIND = "sft"
    PARENTS = {"base": LANGUAGE_MODELS, "records": ("best_of_n", "compare", "feedback")}
    base: str = "base"
    task: TaskConfig = field(default_factory=TaskConfig)
    examples: Count = 4096
    min_gold: Real = 0.0  # continuations that the labeller scores at least this; of records, all
    epochs: Passes = 1
    batch: Size = 16
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.0))
    seed: Seed = 0
    # Demonstrations, corrections or critiques: a file of records, MODULE:FUNCTION (split, n, seed)
    # -> records, or a cell that wrote them. None: true continuations that the labeller approves of.
    records: str | None = option(None, "records")

    def check(self) -> None:
        if self.records is None and self.task.prompts:
            raise ConfigError(
                f"{self.name}.task.prompts = {self.task.prompts!r}, but only openings of the "
                f"corpus's sentences have true continuations to learn from; give records (a file, "
                "MODULE:FUNCTION or a cell)"
            )


@dataclass(frozen=True)
class Compare(Cell):
    """K completions of each prompt from a policy, ranked by simulated annotators."""

    KIND = "compare"
    PARENTS = {"policy": LANGUAGE_MODELS}
    policy: str = "sft"
    task: TaskConfig = field(default_factory=TaskConfig)
    prompts: Count = 512
    heldout_prompts: Count = 64
    k: Annotated[int, Range(2, 9)] = 6  # completions a prompt (2 to 9)
    temperature: Temperature = 1.0
    annotators: Annotated[int, Range(1, 10_000)] = 3
    noise: Weight = 0.2  # of one annotator, in units of the gold score
    seed: Seed = 0
    disagreement: Weight = option(0.0)  # standard deviation of an annotator's taste for a response
    length_bias: Real = option(0.0)  # gold score that annotators see in one more token


@dataclass(frozen=True)
class Feedback(Cell):
    """Records of a policy's own samples that a simulated labeller has edited, or criticised. A
    compare cell of the same policy, task, k, temperature and seed ranks the same samples."""

    KIND = "feedback"
    PARENTS = {"policy": LANGUAGE_MODELS}
    policy: str = "sft"
    task: TaskConfig = field(default_factory=TaskConfig)
    gives: Literal["corrections", "critiques"] = "corrections"
    prompts: Count = 512
    heldout_prompts: Count = 64
    k: Count = 1  # completions a prompt
    temperature: Temperature = 1.0
    min_gold: Real = 0.0  # what the labeller scores at least this is good, and is not edited
    seed: Seed = 0

    def check(self) -> None:
        labellers = "rlhf_jax.data.annotators"
        if not self.task.gold.startswith(labellers + ":"):
            raise ConfigError(
                f"{self.name}.task.gold = {self.task.gold!r}; the simulated labeller edits and "
                f"criticises by sentiment, for a gold score of {labellers} alone. Use one, or name "
                f"a file of people's records where it is learned from"
            )


@dataclass(frozen=True)
class Reward(Cell):
    """A reward model from rankings: the K-wise loss of InstructGPT, one prompt an element."""

    KIND = "reward"
    PARENTS = {
        "base": LANGUAGE_MODELS,
        "comparisons": ("compare", "feedback"),
        "earlier": ("compare", "feedback"),
    }
    base: str = "sft"  # whose trunk it starts from; of any size
    # A compare or feedback cell, or a file of records.
    comparisons: str = field(default="compare", metadata={"outside": "file"})
    epochs: Passes = 1
    batch: Size = 16  # prompts
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.0))
    seed: Seed = 0
    earlier: tuple[str, ...] = option((), "file")  # of earlier rounds, learned from as well
    prompts: Count | None = option(None)  # only so many training prompts, the first; None: all
    # All pairs of a ranking (with K = 2 Bradley-Terry), the ranking as a whole, or its best alone.
    loss: Literal["kwise", "plackett_luce", "best_of_n"] = option("kwise")
    margin: Weight = option(0.0)  # kwise: score asked of a pair for each rank between them
    centre: Weight = option(0.0)  # of the squared sum of a pair's scores, which pulls them to 0
    # Afterwards the score has mean 0 and variance 1 on the compared samples (Ziegler 2019), or is 0
    # on average on true continuations (Stiennon 2020, InstructGPT).
    normalise: Literal["samples", "demonstrations"] = option("samples")

    @property
    def compared(self) -> tuple[str, ...]:
        """The cells and files whose comparisons it learns from."""
        return (self.comparisons, *self.earlier)

    def check(self) -> None:
        check_names(self.compared, f"{self.name}.comparisons and earlier")
        if self.loss != "kwise":
            self.unused("margin", "loss = 'kwise'")


@dataclass(frozen=True)
class Ensemble(Cell):
    """Several reward models as one: their normalised scores combined (Coste et al. 2023)."""

    KIND = "ensemble"
    PARENTS = {"members": ("reward",)}
    members: tuple[str, ...] = ()
    combine: Literal["mean", "worst", "mean_minus_variance"] = "mean"
    variance_coef: Weight = 1.0

    def check(self) -> None:
        check_names(self.members, f"{self.name}.members", least=2)
        if self.combine != "mean_minus_variance":
            self.unused("variance_coef", "combine = 'mean_minus_variance'")


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


@dataclass(frozen=True)
class DPO(Cell):
    """Direct preference optimisation from rankings (Rafailov et al. 2023), or IPO (Azar et al.
    2023): the implicit reward beta log(pi / pi_0) takes the place of a reward model's score."""

    KIND = "dpo"
    PARENTS = {"policy": LANGUAGE_MODELS, "comparisons": ("compare", "feedback")}
    policy: str = "sft"  # where it starts, and the reference
    # A compare or feedback cell, or a file of records.
    comparisons: str = field(default="compare", metadata={"outside": "file"})
    loss: Literal["dpo", "ipo"] = "dpo"
    beta: Positive = 0.1
    epochs: Passes = 1
    batch: Size = 16  # prompts
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4, weight_decay=0.0))
    seed: Seed = 0

    @property
    def compared(self) -> tuple[str, ...]:
        """As of `Reward`."""
        return (self.comparisons,)


@dataclass(frozen=True)
class BestOfN(Cell):
    """The best of n samples by a reward, for n up to `n`; its best responses are records that an
    SFT cell can learn from (rejection sampling)."""

    KIND = "best_of_n"
    PARENTS = {"policy": LANGUAGE_MODELS, "reward": REWARDS}
    policy: str = "sft"
    # A cell of `REWARDS`, or an import path MODULE:FUNCTION of a callable.
    reward: str = field(default="reward", metadata={"outside": "callable"})
    task: TaskConfig = field(default_factory=TaskConfig)
    split: Literal["train", "validation", "test"] = "test"  # whose prompts
    prompts: Count = 256
    n: Annotated[int, Range(1, 2**20)] = 64  # samples a prompt
    temperature: Temperature = 1.0
    seed: Seed = 0


@dataclass(frozen=True)
class Evaluate(Cell):
    """Two policies side by side on held-out prompts: gold reward, KL, diversity, calibration,
    tax."""

    KIND = "evaluate"
    PARENTS = {"before": LANGUAGE_MODELS, "after": LANGUAGE_MODELS, "reward": REWARDS}
    before: str = "sft"
    after: str = "ppo"
    # A cell of `REWARDS`, or an import path MODULE:FUNCTION of a callable.
    reward: str = field(default="reward", metadata={"outside": "callable"})
    task: TaskConfig = field(default_factory=TaskConfig)
    prompts: Count = 256
    temperature: Temperature = 1.0
    seed: Seed = 0
    # MODULE:FUNCTION, (prompts, responses) -> which of a known distribution's modes each is in.
    modes: str = option("", "callable")


@dataclass(frozen=True)
class Prompting(Cell):
    """A model's answers to tasks put to it in words, with and without worked examples in front
    (Brown et al. 2020): exact match of greedy completions, and multiple choice."""

    KIND = "prompting"
    PARENTS = {"policy": LANGUAGE_MODELS}
    policy: str = "sft"  # the language model, of any kind
    # MODULE:FUNCTION, (split, n, seed) -> n `rlhf_jax.evals.prompting.Item` of each type and group.
    tasks: str = field(default="", metadata={"outside": "callable"})
    # Worked examples, which are of the training split.
    shots: tuple[Annotated[int, Range(0, 1000)], ...] = (0, 1, 4)
    items: Count = 64  # of each type and group, of the test split
    answer_len: Annotated[int, Range(2, 2**24)] = 8  # tokens of an answer at most, its end included
    template: Literal["plain", "chat"] = "plain"  # Q and A lines, or turns of a conversation
    seed: Seed = 0

    def check(self) -> None:
        if ":" not in self.tasks:
            raise ConfigError(
                f"{self.name}.tasks = {self.tasks!r}; expected MODULE:FUNCTION, which gives the "
                "items"
            )
        if not self.shots or len(set(self.shots)) < len(self.shots):
            raise ConfigError(
                f"{self.name}.shots = {self.shots}; expected different numbers of examples from 0"
            )


KINDS: dict[str, type[Cell]] = {
    c.KIND: c
    for c in (
        Pretrain,
        SFT,
        Compare,
        Feedback,
        Reward,
        Ensemble,
        PPO,
        DPO,
        BestOfN,
        Evaluate,
        Prompting,
    )
}
