from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rlhf_jax.kinds.bases import FromRankings, Sampled
from rlhf_jax.kinds.reward.result import RewardResult
from rlhf_jax.study.cell import names_cell, option
from rlhf_jax.study.config import ConfigError, OptimConfig, check_names
from rlhf_jax.study.ranges import Count, Passes, Seed, Size, Weight

if TYPE_CHECKING:
    from rlhf_jax.study.graph import Study


@dataclass(frozen=True)
class Reward(FromRankings):
    """A reward model from rankings: the K-wise loss of InstructGPT, one prompt an element."""

    KIND = "reward"
    RESULT = RewardResult
    ROLES = ("reward", "reward_model")
    PARENTS = {"base": "language_model", "comparisons": "comparisons", "earlier": "comparisons"}
    base: str = "sft"  # whose trunk it starts from; of any size
    # A cell, or a file of records.
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
        return (self.comparisons, *self.earlier)

    @property
    def most_prompts(self) -> int | None:
        return self.prompts

    def check(self) -> None:
        check_names(self.compared, f"{self.name}.comparisons and earlier")
        if self.loss != "kwise":
            self.unused("margin", "loss = 'kwise'")

    def check_parents(self, study: Study) -> None:
        super().check_parents(study)
        if self.normalise == "demonstrations":
            self.continued(study)

    def continued(self, study: Study) -> Sampled:
        """The cell whose prompts have true continuations.

        Raises:
            ConfigError: the prompts are not openings of the corpus's sentences.
        """
        compared = study[self.comparisons] if names_cell(self.comparisons) else None
        if not isinstance(compared, Sampled) or not compared.habits or compared.task.prompts:
            raise ConfigError(
                f"{self.name}.normalise = 'demonstrations' needs true continuations of the prompts "
                f"of {self.comparisons!r}; only openings of the corpus's sentences have them. Use "
                "'samples'"
            )
        return compared
