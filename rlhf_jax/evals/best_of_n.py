"""Best-of-n sampling: expected scores, and the KL from the sampled policy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rlhf_jax.evals.intervals import paired_interval
from rlhf_jax.study.config import ConfigError


def kl_bound(n: int) -> float:
    """ln n - (n - 1) / n nats: the KL of the best of n from the policy, where no two samples are
    equal; an upper bound where some are (Beirami et al. 2024)."""
    return math.log(n) - (n - 1) / n


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def chance_of_best(total: int, n: int) -> np.ndarray:
    """(total,): the probability that the i-th smallest of `total` samples is the largest of n of
    them drawn without replacement, C(i - 1, n - 1) / C(total, n)."""
    if not 1 <= n <= total:
        raise ConfigError(f"the best of {n} of {total} samples; n is 1 to the number of samples")
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    i = np.arange(n, total + 1)
    log_chance = log_factorial[i - 1] - log_factorial[n - 1] - log_factorial[i - n]
    log_chance -= log_factorial[total] - log_factorial[n] - log_factorial[total - n]
    return np.concatenate([np.zeros(n - 1), np.exp(log_chance)])


def expected_best(proxy_PN: np.ndarray, values_PN: np.ndarray, n: int) -> np.ndarray:
    """(P,): the mean of `values` of the best of n by `proxy` over all subsets of n of the N samples
    of a prompt, the unbiased estimate of Nakano et al. 2021 (WebGPT, appendix I). Samples of equal
    proxy are chosen equally often."""
    chance_N = chance_of_best(proxy_PN.shape[1], n)
    found = np.empty(len(proxy_PN))
    for p, (proxy_N, values_N) in enumerate(zip(proxy_PN, values_PN, strict=True)):
        _, tie_N, count = np.unique(proxy_N, return_inverse=True, return_counts=True)
        mean_of_tie = np.bincount(tie_N, values_N) / count
        found[p] = chance_N @ np.repeat(mean_of_tie, count)
    return found


def best_of_n_curve(
    proxy_PN: np.ndarray, gold_PN: np.ndarray, seed: int = 0
) -> list[dict[str, Any]]:
    """A row for n = 1, 2, 4, ..., N: {n, kl, proxy, gold, gold_gain and their *_interval}; gains
    are over n = 1, and intervals are 95% bootstrap intervals over prompts, paired for the gain."""
    rows = []
    alone = expected_best(proxy_PN, gold_PN, 1)
    for n in powers_of_two(proxy_PN.shape[1]):
        row: dict[str, Any] = {"n": n, "kl": kl_bound(n)}
        gold = expected_best(proxy_PN, gold_PN, n)
        of = {
            "proxy": expected_best(proxy_PN, proxy_PN, n),
            "gold": gold,
            "gold_gain": gold - alone,
        }
        for name, values in of.items():
            row[name], row[f"{name}_interval"] = paired_interval(values, 2000, seed)
        rows.append(row)
    return rows


def gold_by_prompt(proxy_PN: np.ndarray, gold_PN: np.ndarray) -> list[list[float]]:
    """Expected gold score of the best of n = 1, 2, 4, ..., N for each prompt, to five digits."""
    counts = powers_of_two(proxy_PN.shape[1])
    return [np.round(expected_best(proxy_PN, gold_PN, n), 5).tolist() for n in counts]
