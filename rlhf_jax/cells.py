"""Study files written before 2026-12 import kinds from here; `rlhf_jax.kinds` has them. To be
removed after 2027-12."""

from rlhf_jax.kinds import *  # noqa: F403
from rlhf_jax.study.cell import Cell as Cell
