"""Kinds of cell, each in a folder of its own, which is all that a new one needs.

    from rlhf_jax.kinds import PPO, SFT, TaskConfig

Roles that cells play for others; where others need more than its checkpoint, the module of the job
has a function of that name:

    language_model   others start from it, or sample it
    pretraining      others go on from its optimizer's state
    reward           its scores teach or judge; reward(context, cell) -> rlhf_jax.rl.scores.Reward
    reward_model     its scores can be combined with others'; a reward as well
    records          supervised learning takes them; records(context, cell) -> (path, records)
    verdicts         its records hold verdicts; verdicts(context, cell) -> held-out critiques
    comparisons      others learn from its rankings; comparisons(context, cell, learner) -> arrays,
                     by split
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
