"""How well scores rank completions: accuracy by margin, rank and length, calibration, baselines."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_jax.data.annotators import rank_by_annotators
from rlhf_jax.evals.calibration import reliability, right_half
from rlhf_jax.evals.intervals import clustered_interval

NOISE = 0.55  # labels are noise if two annotators agree less often


def ranking_report(
    scores_NK: np.ndarray, rows: dict[str, np.ndarray], ceilings: dict[str, float] | None = None
) -> dict[str, Any]:
    """A report on scores of K completions of N prompts.

    Accuracy is over untied pairs, with a 95% interval that treats prompts, not pairs, as
    independent; also by gold margin, by difference in rank, and by length. Calibration is of
    sigmoid(margin) as the probability of a preference. Baselines: the gold score (no model can do
    much better than the labels allow), length alone, and the scores of another prompt.

    Args:
        scores_NK: scores whose differences are log-odds of a preference.
        rows: NK arrays `ranks` (lower is better, negative: absent), `length` in tokens, and `gold`
            where completions have one. At least two completions of a prompt differ in rank.
        ceilings: more baselines.
    """
    ranks, length = rows["ranks"], rows["length"].astype(float)
    pairs = untied_pairs(ranks)
    margin, longer = _margins(scores_NK, pairs), _margins(length, pairs)
    others = _margins(np.roll(np.where(ranks >= 0, scores_NK, np.nan), 1, axis=0), pairs)
    baselines = {
        **(ceilings or {}),
        "longer wins": _accuracy(longer),
        "scores of other prompts": _accuracy(others[np.isfinite(others)]),
    }
    by_margin = {}
    if "gold" in rows:
        gold_margin = _margins(rows["gold"], pairs)
        baselines = {"gold score (label ceiling)": _accuracy(gold_margin), **baselines}
        by_margin = {"accuracy_by_margin": _by_size(np.abs(gold_margin), margin)}
    directions = (("longer", longer > 0), ("same", longer == 0), ("shorter", longer < 0))
    return {
        "accuracy": _accuracy(margin),
        "accuracy_interval": clustered_interval(right_half(margin), pairs[0], len(ranks)),
        "n_pairs": len(margin),
        "n_prompts": len(np.unique(pairs[0])),
        "baselines": baselines,
        **by_margin,
        "accuracy_by_rank_difference": [
            {"ranks": int(d), **_part(margin, apart == d)}
            for apart in [-_margins(ranks, pairs)]
            for d in np.unique(apart)
        ],
        "accuracy_by_length": [
            {"winner": name, **_part(margin, hit)} for name, hit in directions if hit.any()
        ],
        "accuracy_by_length_difference": _by_size(longer, margin),
        "calibration": calibration(margin),
    }


def untied_pairs(ranks_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(prompt, better, worse) of every untied pair."""
    better = (ranks_NK[:, :, None] < ranks_NK[:, None, :]) & (ranks_NK[:, :, None] >= 0)
    prompt, winner, loser = np.nonzero(better)
    return prompt, winner, loser


def uninformative(ranks_NK: np.ndarray) -> int:
    """Prompts without an untied pair, from which no loss learns."""
    return len(ranks_NK) - len(np.unique(untied_pairs(ranks_NK)[0]))


def label_notes(train_NK: np.ndarray, heldout_NK: np.ndarray, agreement: float | None) -> list[str]:
    """Warnings about ranks as labels.

    Args:
        agreement: how often two annotators order a pair alike, if that is known.
    """
    notes = []
    for split, ranks in (("training", train_NK), ("held-out", heldout_NK)):
        if silent := uninformative(ranks):
            notes.append(
                f"{silent} of {len(ranks)} {split} comparisons have no two completions of "
                f"different rank; nothing is learned from them, nor measured on them"
            )
    if agreement is not None and agreement < NOISE:
        notes.append(
            f"two annotators order a pair alike {agreement:.0%} of the time, where chance gives "
            f"50%: the labels are noise, or nearly so"
        )
    return notes


def annotators_agree(
    rows: dict[str, np.ndarray], noise: float, disagreement: float, length_bias: float
) -> float:
    """How often two simulated annotators (`rank_by_annotators`) order an untied pair alike. Between
    people it was 73 to 77% in Stiennon et al. 2020."""
    bias, pairs = length_bias * rows["length"], untied_pairs(rows["ranks"])
    orders = [
        rank_by_annotators(rows["gold"], noise, 1, seed, disagreement, bias) for seed in (0, 1)
    ]
    first, second = (np.sign(_margins(order, pairs)) for order in orders)
    return float(np.mean(first == second))


def _margins(values_NK: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    prompt, winner, loser = pairs
    return values_NK[prompt, winner] - values_NK[prompt, loser]


def _accuracy(margin: np.ndarray) -> float:
    return float(np.mean(right_half(margin))) if len(margin) else float("nan")


def _part(margin: np.ndarray, hit: np.ndarray) -> dict[str, Any]:
    return {"n": int(hit.sum()), "accuracy": _accuracy(margin[hit])}


def _by_size(size: np.ndarray, margin: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy of pairs in quarters by size, as even as ties of it allow."""
    cuts = np.unique(np.quantile(size, [0, 0.25, 0.5, 0.75, 1]))
    quarter = np.searchsorted(cuts[1:-1], size, side="right")
    found = []
    for i in np.unique(quarter):
        hit = quarter == i
        ends = {"from": float(size[hit].min()), "to": float(size[hit].max())}
        found.append({**ends, **_part(margin, hit)})
    return found


def calibration(margin: np.ndarray, bins: int = 8) -> dict[str, Any]:
    """Reliability of sigmoid(|margin|) as the probability that the higher score is the winner,
    equal scores being right half the time, in bins of equal counts."""
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    found = reliability(confidence, right_half(margin), bins, equal_counts=True)
    return {key: found[key] for key in ("expected_calibration_error", "bins")}
