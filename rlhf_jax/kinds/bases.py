"""Bases of several kinds: cells whose samples people judge, cells that learn from rankings, and
cells that are taught or judged by a reward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.cell import Cell, names_cell
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.ranges import Count, Seed, Temperature

if TYPE_CHECKING:
    from rlhf_jax.cost.formulas import Formulas
    from rlhf_jax.kinds.needs import Need
    from rlhf_jax.study.cell import Cost
    from rlhf_jax.study.graph import Study

RECORDS = 1000  # prompts that a file of comparisons is taken to hold


def check_batch(cell: Cell, batch: int, most: dict[str, int | None]) -> None:
    """Refuses a batch of more examples than there are. most: who gives them -> how many at most;
    None: unknown."""
    for who, count in most.items():
        if count is not None and count < batch:
            raise ConfigError(
                f"{cell.name}.batch = {batch}, but {who} {count} examples at most; lower batch or "
                f"raise their number"
            )


def records_of(study: Study, names: tuple[str, ...], role: str) -> dict[str, int | None]:
    """What cells give to learn from at most, as `check_batch` takes it."""
    counts = [study[n].most_records(role) for n in names]
    known = None if None in counts else sum(c for c in counts if c is not None)
    return {f"{', '.join(map(repr, names))} gives": known} if names else {}


@dataclass(frozen=True)
class Sampled(Cell):
    """A policy's responses, which people judge: `k` to each prompt."""

    PARENTS = {"policy": "language_model"}
    policy: str = "sft"
    task: TaskConfig = field(default_factory=TaskConfig)
    prompts: Count = 512
    heldout_prompts: Count = 64
    k: Count = 1  # responses to a prompt
    temperature: Temperature = 1.0
    seed: Seed = 0

    @property
    def habits(self) -> tuple[float, float, float] | None:
        """Noise, disagreement and length bias of the simulated annotators who rank the responses;
        None: nobody ranks them."""
        return None

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        from rlhf_jax.cost.formulas import Formulas

        c = Formulas(study, self, accumulate)
        sequences = (self.prompts + self.heldout_prompts) * self.k
        return c.sampled(sequences, c.forward * sequences, c.forward * sequences, 256, 1)

    def splits(self) -> Iterator[str]:
        if not self.task.prompts:
            yield "validation"

    def needs(self, study: Study) -> Iterator[Need]:
        from rlhf_jax.kinds.needs import prompts

        for split, n in (("train", self.prompts), ("validation", self.heldout_prompts)):
            yield prompts(study, self.task, split, n, self.seed, recorded=True)


class FromRankings(Cell):
    """Learns from the rankings of cells that play `comparisons`, or of files of records."""

    if TYPE_CHECKING:
        comparisons: str
        batch: int
        epochs: int
        seed: int

    @property
    def compared(self) -> tuple[str, ...]:
        """The cells and files whose comparisons it learns from."""
        return (self.comparisons,)

    @property
    def most_prompts(self) -> int | None:
        """Training prompts that it takes, the first; None: all."""
        return None

    def row_length(self, study: Study) -> int:
        if names_cell(self.comparisons):
            return study[self.comparisons].row_length(study)
        return study.corpus.seq_len

    def sizes(self, study: Study) -> tuple[int, int, int]:
        """(training prompts, held-out prompts, completions a prompt); of a file, which is not read
        here, a guess."""
        named = [study[n] for n in self.compared if names_cell(n)]
        cells = [c for c in named if isinstance(c, Sampled)]
        train = sum(c.prompts for c in cells) or RECORDS
        if self.most_prompts is not None:
            train = min(train, self.most_prompts)
        heldout = cells[0].heldout_prompts if cells else RECORDS // 8
        return train, heldout, max((c.k for c in cells), default=2)

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        from rlhf_jax.cost.formulas import Formulas

        c = Formulas(study, self, accumulate)
        train, heldout_rows, k = self.sizes(study)
        sequences = train * k * self.epochs
        flops = 3.0 * c.forward * sequences + c.forward * heldout_rows * k
        return c.trained(sequences, flops + self.more_flops(c, train * k), self.batch * k)

    def more_flops(self, c: Formulas, completions: int) -> float:
        """Beside the passes over training and held-out completions."""
        return 0.0

    def batches(self, study: Study) -> Iterator[tuple[str, int, bool]]:
        yield f"{self.name}.batch", self.batch, True

    def scored(self, study: Study) -> Iterator[tuple[str, int, str]]:
        for name in self.compared:
            if names_cell(name) and _habits(study[name]):
                length = study[name].row_length(study)
                yield self.parents()[0], length, f"the comparisons of {name!r}"

    def check_parents(self, study: Study) -> None:
        names = self.compared if all(map(names_cell, self.compared)) else ()
        takes = {} if self.most_prompts is None else {f"{self.name} takes": self.most_prompts}
        check_batch(self, self.batch, {**records_of(study, names, "comparisons"), **takes})
        sources = [study[n] if names_cell(n) else None for n in self.compared]
        if all(s and _habits(s) and getattr(s, "temperature", 1) == 0 for s in sources):
            raise ConfigError(
                f"{self.name}.comparisons = {self.comparisons!r} compares completions at "
                f"temperature 0: those of a prompt are one text and tie, so nothing can be "
                f"learned; set {self.comparisons}.temperature above 0"
            )

    def needs(self, study: Study) -> Iterator[Need]:
        from rlhf_jax.kinds.needs import Need
        from rlhf_jax.kinds.rankings import check_comparisons, template_of

        files = [study.outside[n] for n in self.compared if not names_cell(n)]
        if files:
            template, most = template_of(study, self), study.model_of(self).max_positions
            alone = len(files) == len(self.compared)
            key = ["comparisons", files, alone, template, most, self.batch, self.most_prompts]
            yield Need(key, lambda ctx: check_comparisons(ctx, self))


def _habits(cell: Cell) -> tuple[float, float, float] | None:
    return cell.habits if isinstance(cell, Sampled) else None


class ByReward(Cell):
    """Has responses scored by a cell that plays `reward`, or by a callable."""

    if TYPE_CHECKING:
        reward: str
        task: TaskConfig
        seed: int

    def scored(self, study: Study) -> Iterator[tuple[str, int, str]]:
        for owner in study.reward_models(self.reward):
            yield owner, self.row_length(study), f"prompts and responses of {self.name}.task"
