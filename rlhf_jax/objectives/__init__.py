"""Losses. Each is a function (params, batch) -> (sum, weight, metrics): the trainer divides the global
sum by the global weight, across devices and accumulation steps, and reports every metric as a sum over
the same weight unless its name says otherwise."""

from rlhf_jax.objectives.language import language_modelling, target_log_probs, token_log_probs
from rlhf_jax.objectives.rankings import kwise, ranked_scores

__all__ = ["kwise", "language_modelling", "ranked_scores", "target_log_probs", "token_log_probs"]
