"""Losses on rankings of K completions, as functions of their scores, and the reward model's
objective.

Ranks_NK are lower for better completions, equal for ties, and negative where a prompt has fewer
than K completions. No loss compares tied completions with each other, and a prompt whose
completions are all tied has no weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.model import Axes
from rlhf_jax.model.scoring import Sequences, row_scores
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.messages import suggest

Batch = dict[str, jax.Array]
NEVER = -1e30  # a masked logit; finite, so that gradients are


def beats(ranks_NK: jax.Array) -> jax.Array:
    """Untied pairs, NKK float: 1 where the first completion is better than the second."""
    present_NK = ranks_NK >= 0
    return (
        (ranks_NK[:, :, None] < ranks_NK[:, None, :])
        & present_NK[:, :, None]
        & present_NK[:, None, :]
    ).astype(jnp.float32)


def over_pairs(values_NKK: jax.Array, wins_NKK: jax.Array) -> jax.Array:
    """The mean of each prompt over its untied pairs, N; 0 where there are none."""
    share_N = 1.0 / jnp.maximum(jnp.sum(wins_NKK, axis=(1, 2)), 1.0)
    return jnp.sum(wins_NKK * values_NKK, axis=(1, 2)) * share_N


def differences(scores_NK: jax.Array) -> jax.Array:
    """Scores of the first minus the second completion, NKK."""
    return scores_NK[:, :, None] - scores_NK[:, None, :]


def kwise_loss(scores_NK: jax.Array, ranks_NK: jax.Array, margin: float = 0.0) -> jax.Array:
    """-log sigmoid(r_w - r_l), the mean over a prompt's untied pairs, N (Ouyang et al. 2022, eq.
    1); with K = 2 the likelihood of Bradley & Terry 1952. A `margin` is the difference that is
    wanted for each rank between the two: -log sigmoid(r_w - r_l - margin (rank_l - rank_w))
    (Touvron et al. 2023)."""
    gap_NKK = differences(scores_NK)
    if margin:
        gap_NKK -= margin * (ranks_NK[:, None, :] - ranks_NK[:, :, None])
    return over_pairs(-jax.nn.log_sigmoid(gap_NKK), beats(ranks_NK))


def plackett_luce_loss(scores_NK: jax.Array, ranks_NK: jax.Array) -> jax.Array:
    """The negative log-likelihood of a prompt's ranking, N: -sum_k (r_(k) - logsumexp_{j >= k}
    r_(j)) (Plackett 1975; Luce 1959).

    Each completion is chosen from itself and those that are strictly worse. Without ties that is
    the formula; tied completions are exchangeable and never compete with each other (where each is
    chosen from the others of its tie too, as Breslow 1974 has it, a tie pulls their scores
    together).
    """
    itself_KK = jnp.eye(ranks_NK.shape[1], dtype=bool)
    among_NKK = (beats(ranks_NK) > 0) | itself_KK
    rivals_NKK = jnp.where(among_NKK, scores_NK[:, None, :], NEVER)
    loss_NK = jax.nn.logsumexp(rivals_NKK, axis=-1) - scores_NK
    return jnp.sum(jnp.where(ranks_NK >= 0, loss_NK, 0.0), axis=-1)


def best_of_n_loss(scores_NK: jax.Array, ranks_NK: jax.Array) -> jax.Array:
    """Cross-entropy of the softmax over a prompt's scores with the choice of the best one, N (the
    loss of best-of-n comparisons in Ziegler et al. 2019); several best ones share the target."""
    present_NK = ranks_NK >= 0
    best_NK = best(ranks_NK)
    log_p_NK = jax.nn.log_softmax(jnp.where(present_NK, scores_NK, NEVER), axis=-1)
    chosen_N = jnp.sum(jnp.where(present_NK, best_NK * log_p_NK, 0.0), axis=-1)
    return -chosen_N * (jnp.sum(beats(ranks_NK), axis=(1, 2)) > 0)


def best(ranks_NK: jax.Array) -> jax.Array:
    """Weights of the best-ranked completions of each prompt, NK, that sum to 1."""
    return _ends(ranks_NK, jnp.min(jnp.where(ranks_NK >= 0, ranks_NK, 2**30), axis=-1))


def worst(ranks_NK: jax.Array) -> jax.Array:
    """Weights of the worst-ranked completions, likewise."""
    return _ends(ranks_NK, jnp.max(ranks_NK, axis=-1))


def _ends(ranks_NK: jax.Array, rank_N: jax.Array) -> jax.Array:
    here_NK = ((ranks_NK == rank_N[:, None]) & (ranks_NK >= 0)).astype(jnp.float32)
    return here_NK / jnp.maximum(jnp.sum(here_NK, axis=-1, keepdims=True), 1.0)


def off_centre(scores_NK: jax.Array, ranks_NK: jax.Array) -> jax.Array:
    """(2 x the mean of a prompt's scores)^2, N. With K = 2 that is (r_w + r_l)^2 (Eisenstein et al.
    2023); for every K its gradient shifts all scores of a prompt alike and leaves their differences
    alone."""
    present_NK = (ranks_NK >= 0).astype(jnp.float32)
    count_N = jnp.maximum(jnp.sum(present_NK, axis=-1), 1.0)
    return jnp.square(2.0 * jnp.sum(scores_NK * present_NK, axis=-1) / count_N)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "kwise": kwise_loss,
    "plackett_luce": plackett_luce_loss,
    "best_of_n": best_of_n_loss,
}


def check_ranking_loss(loss: str, margin: float = 0.0) -> None:
    """Refuses losses and margins that `ranking_loss` does not compute."""
    if loss not in LOSSES:
        raise ConfigError(f"loss = {loss!r}.{suggest(loss, list(LOSSES))}")
    if margin and loss != "kwise":
        raise ConfigError(
            f"margin = {margin} with loss = {loss!r}; a margin is between two completions, so it "
            f"needs loss = 'kwise'"
        )


def ranking_loss(
    scores_NK: jax.Array,
    ranks_NK: jax.Array,
    loss: str = "kwise",
    margin: float = 0.0,
    centre: float = 0.0,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(sum, weight, metrics) over prompts; each prompt with an untied pair weighs 1. `centre` is
    the weight of `off_centre` (0.01 in the source). Metric: accuracy, the share of a prompt's
    untied pairs that the scores rank right, equal scores half, summed over prompts."""
    check_ranking_loss(loss, margin)
    options = {"margin": margin} if margin else {}
    loss_N = LOSSES[loss](scores_NK, ranks_NK, **options)
    wins_NKK = beats(ranks_NK)
    learns_N = (jnp.sum(wins_NKK, axis=(1, 2)) > 0).astype(jnp.float32)
    if centre:
        loss_N += centre * learns_N * off_centre(scores_NK, ranks_NK)
    gap_NKK = differences(scores_NK)
    right_N = over_pairs((gap_NKK > 0) + 0.5 * (gap_NKK == 0), wins_NKK)
    return jnp.sum(loss_N), jnp.sum(learns_N), {"accuracy": jnp.sum(right_N)}


def flattened(batch: Batch, axes: Axes) -> Sequences:
    """Rows (N K, T) of a batch of NKT: K of a prompt, whatever the number of its pairs."""
    T = batch["tokens"].shape[-1]
    return Sequences(
        *(
            batch[k].reshape(-1, T, out_sharding=axes.spec("batch", None))
            for k in ("tokens", "segments", "positions")
        )
    )


def ranked_scores(params: Any, batch: Batch, cfg: ModelConfig, axes: Axes) -> jax.Array:
    """Scores_NK of the K completions of N prompts, each read at its last real token. `batch` holds
    NKT arrays tokens, segments, positions, and `last` NK."""
    last_B = batch["last"].reshape(-1, out_sharding=axes.spec("batch"))
    scores_B = row_scores(params, cfg, flattened(batch, axes), last_B, axes)
    return scores_B.reshape(batch["last"].shape, out_sharding=axes.spec("batch", None))


def reward_modelling(
    params: Any,
    batch: Batch,
    cfg: ModelConfig,
    axes: Axes,
    loss: str = "kwise",
    margin: float = 0.0,
    centre: float = 0.0,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """`ranking_loss` of a reward model's scores. One prompt is one element: K forward passes serve
    all its pairs. `batch` is that of `ranked_scores`, with `ranks` NK."""
    scores_NK = ranked_scores(params, batch, cfg, axes)
    return ranking_loss(scores_NK, batch["ranks"], loss, margin, centre)
