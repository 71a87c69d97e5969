"""Losses. Each is a function (params, batch) -> (sum, weight, metrics): the trainer divides the
global sum by the global weight, across devices and accumulation steps, and reports every metric as
a sum over the same weight unless its name says otherwise."""

from rlhf_jax.objectives.language import language_modelling
from rlhf_jax.objectives.preferences import (
    preference_loss,
    preference_optimisation,
    ranked_log_probs,
)
from rlhf_jax.objectives.rankings import (
    check_ranking_loss,
    ranked_scores,
    ranking_loss,
    reward_modelling,
)

__all__ = [
    "check_ranking_loss",
    "language_modelling",
    "preference_loss",
    "preference_optimisation",
    "ranked_log_probs",
    "ranked_scores",
    "ranking_loss",
    "reward_modelling",
]
