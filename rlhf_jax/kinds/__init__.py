"""Kinds of cell, each in a folder of its own, which is all that a new one needs.

    from rlhf_jax.kinds import PPO, SFT, TaskConfig

Roles that cells play for others, and what a job's module has for them:

| role             | other cells                                | function of the job's module            |
|------------------|--------------------------------------------|-----------------------------------------|
| `language_model` | start from it, sample it                   | none: its checkpoint is read            |
| `pretraining`    | go on from its optimizer's state           | none                                    |
| `reward`         | are taught or judged by its scores         | `reward(context, cell)` -> rl.scores.Reward |
| `reward_model`   | combine its scores with others             | `reward`, as above                      |
| `records`        | learn from its records, supervised         | `records(context, cell)` -> path, records |
| `verdicts`       | judge by what they learn from its records  | none: beside `records`                  |
| `comparisons`    | learn from its rankings                    | `comparisons(context, cell, learner)` -> arrays by split |
"""

import importlib
import pkgutil
from typing import Any

from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.cell import KNOWN, Cell

for _folder in pkgutil.iter_modules(__path__):
    if _folder.ispkg:
        importlib.import_module(f"{__name__}.{_folder.name}.cell")

# Those of this package; `rlhf_jax.study.cell.KNOWN` has those of study files as well.
KINDS: dict[str, type[Cell]] = {k: c for k, c in KNOWN.items() if not c.from_outside()}
globals().update({cls.__name__: cls for cls in KINDS.values()})
__all__ = [
    "KINDS",
    "TaskConfig",
    *(cls.__name__ for cls in KINDS.values()),
]


def __getattr__(name: str) -> Any:
    """For type checkers, which do not see the classes above."""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
