"""The task: what cells that sample have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlhf_jax.study.cell import Cell, option
from rlhf_jax.study.config import Checked, ConfigError
from rlhf_jax.study.ranges import Size

if TYPE_CHECKING:
    from rlhf_jax.study.graph import Study


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


def task_of(study: Study, cell: Cell) -> TaskConfig | None:
    """The task that a cell's model, or what it started from, learned; None: text alone."""
    while not hasattr(cell, "task"):
        if not cell.parents():
            return None
        cell = study[cell.parents()[0]]
    task: TaskConfig = cell.task
    return task
