from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlhf_jax.kinds.bases import check_batch, records_of
from rlhf_jax.kinds.sft.result import SFTResult
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.cell import Cell, names_cell, option
from rlhf_jax.study.config import ConfigError, OptimConfig, to_json
from rlhf_jax.study.ranges import Count, Passes, Real, Seed, Size

if TYPE_CHECKING:
    from rlhf_jax.kinds.needs import Need
    from rlhf_jax.study.cell import Cost
    from rlhf_jax.study.graph import Study


@dataclass(frozen=True)
class SFT(Cell):
    """Supervised fine-tuning on demonstrations; the loss is on completions only."""

    KIND = "sft"
    RESULT = SFTResult
    ROLES = ("language_model", "reward")  # reward: once it has learned to give verdicts
    PARENTS = {"base": "language_model", "records": "records"}
    HELDOUT = True
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
    # MODULE:FUNCTION, a loss as `rlhf_jax.objectives.named` says; empty: negative log-likelihood.
    objective: str = option("", "callable")

    def check(self) -> None:
        if self.records is None and self.task.prompts:
            raise ConfigError(
                f"{self.name}.task.prompts = {self.task.prompts!r}, but only openings of the "
                f"corpus's sentences have true continuations to learn from; give records (a file, "
                "MODULE:FUNCTION or a cell)"
            )

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        from rlhf_jax.cost.formulas import Formulas

        c = Formulas(study, self, accumulate)
        sequences = self.examples * self.epochs
        return c.trained(sequences, 3.0 * c.forward * sequences, self.batch)

    def batches(self, study: Study) -> Iterator[tuple[str, int, bool]]:
        yield f"{self.name}.batch", self.batch, True

    def check_parents(self, study: Study) -> None:
        names = (self.records,) if self.records and names_cell(self.records) else ()
        gives = records_of(study, names, "records")
        check_batch(self, self.batch, {**gives, f"{self.name} takes": self.examples})

    def check_as(self, role: str, study: Study, child: Cell) -> None:
        """As a reward it needs verdicts; those of files are looked for by `needs_as`."""
        if role != "reward" or (self.records and not names_cell(self.records)):
            return
        given = study[self.records] if self.records else None
        if given is None or "verdicts" not in given.roles():
            raise ConfigError(
                f"{child.name}.reward = {self.name!r} learns from "
                f"{self.records or 'true continuations'}, which hold no verdicts; let it learn "
                "from critiques with verdicts, or name a reward cell"
            )

    def needs(self, study: Study) -> Iterator[Need]:
        from rlhf_jax.kinds.needs import Need
        from rlhf_jax.kinds.sft.job import packed_rows, taught

        if self.records is not None and names_cell(self.records):
            return  # `check_parents` knows how many those can be
        named = [study.outside.get(name) for name in (self.records, self.task.gold) if name]
        task = to_json(self.task)
        key = ["sft", named, task, self.examples, self.min_gold, self.batch, self.seed]
        yield Need(key, lambda ctx: packed_rows(ctx, self, taught(ctx, self)[2]))

    def needs_as(self, role: str, study: Study, child: Cell) -> Iterator[Need]:
        """As a reward: verdicts to learn from, and positions for the verdict prompts of what the
        child samples."""
        from rlhf_jax.kinds.needs import Need
        from rlhf_jax.kinds.sft.job import check_judge

        if role != "reward":
            return
        records, template = self.records, self.task.template
        longest, most = child.row_length(study), study.model_of(self).max_positions
        key = [records and study.outside.get(records), self.examples, self.seed, template]
        yield Need(
            ["verdicts", key, longest, most], lambda ctx: check_judge(ctx, self, child, longest)
        )
