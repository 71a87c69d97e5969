"""A cell: one unit of work of a study, described by science alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rlhf_jax.study.config import Checked

# Fields that came after a release stay out of run ids while they have their default: a new option
# leaves finished runs what they were.
ADDED = {"added": True}


def option(default: Any, outside: str = "") -> Any:
    """A field that came after a release. `outside`: it can name something whose content enters run
    ids, a `callable` MODULE:FUNCTION, a `file` of records, or `records`, either of them."""
    return field(default=default, metadata={**ADDED, "outside": outside})


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
