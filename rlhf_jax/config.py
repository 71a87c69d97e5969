"""Study files written before 2026-12 import configurations from here; `rlhf_jax.study` has them. To
be removed after 2027-12."""

from rlhf_jax.study.config import *  # noqa: F403
