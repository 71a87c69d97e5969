"""Parameters and training FLOPs of a model, under the named conventions of the literature.

Published compute numbers differ by what they count (embeddings, the last layer, attention, its
causal half). Every cell records all conventions; `exact` is the one that this codebase plans and
fits with. Everything is a Python float: 6 N D leaves int64 above 9.2e18.
"""

from __future__ import annotations

import functools
from typing import get_args

from rlhf_jax.model.parameters import Counted, describe, leaves
from rlhf_jax.model.parameters import attended as attention_products
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.messages import suggest

CONVENTIONS = {
    "exact": "3 x [2 x parameters of every matmul, unembedding included, + 4 L H C (s+1)/2]",
    "6nd": "6 x all parameters (Hoffmann 2022, section 3)",
    "kaplan": "6 x parameters without embeddings, positions and unembedding (Kaplan 2020)",
    "palm": "6 x all parameters + 12 L H C s, attention not halved (PaLM 2022, appendix B)",
    "porian": "6 x parameters of every matmul, unembedding included (Porian 2024)",
    "porian_attention": "porian + 6 L H C s, attention halved for causality (Porian 2024)",
}


def param_counts(cfg: ModelConfig) -> dict[str, int]:
    """Parameters of a model by what they count as, from `rlhf_jax.model.parameters`.

    Returns:
      embedding: V D. positions: the learned table, 0 with rope. unembedding: V D, 0 when tied.
      attention, feed_forward, norms: sums over layers (norms with the final one).
      total: every parameter, once. non_embedding: total without embedding, positions and
      unembedding. matmul: parameters that multiply activations, with the unembedding counted
      even when it is the embedding transposed.
    """
    return dict(_counted(cfg))


@functools.lru_cache(maxsize=4096)
def _counted(cfg: ModelConfig) -> dict[str, int]:
    found = list(leaves(describe(cfg)))
    count = {
        kind: sum(p.size for p in found if p.counts_as == kind)
        for kind in get_args(Counted)
        if kind != "head"
    }
    total = sum(p.size for p in found)
    outside = count["embedding"] + count["positions"] + count["unembedding"]
    return {
        "total": total,
        **count,
        "non_embedding": total - outside,
        "matmul": sum(p.size for p in found if p.multiplies),
    }


def flops_per_token(cfg: ModelConfig, seq_len: int, convention: str = "exact") -> float:
    """Training FLOPs (forward + backward = 3 x forward) of one token in a row of `seq_len` tokens.

    `exact` enumerates the matmuls: 2 FLOPs a parameter, and per layer 2 H C FLOPs for each of the
    keys attended to, twice (scores, values); a causal row attends to (s+1)/2 keys on average. The
    embedding lookup costs nothing; rematerialisation is not model FLOPs and is left out.

    Raises:
      ConfigError: unknown convention, or seq_len < 1.
    """
    if seq_len < 1:
        raise ConfigError(f"seq_len is {seq_len}; it must be at least 1")
    count = {name: float(n) for name, n in param_counts(cfg).items()}
    attended = float(attention_products(cfg))  # L H C: multiply by the keys that a token sees
    s = float(seq_len)
    match convention:
        case "exact":
            return 3.0 * (2.0 * count["matmul"] + 4.0 * attended * (s + 1.0) / 2.0)
        case "6nd":
            return 6.0 * count["total"]
        case "kaplan":
            return 6.0 * count["non_embedding"]
        case "palm":
            return 6.0 * count["total"] + 12.0 * attended * s
        case "porian":
            return 6.0 * count["matmul"]
        case "porian_attention":
            return 6.0 * count["matmul"] + 6.0 * attended * s
    raise ConfigError(
        f"FLOP convention {convention!r} does not exist.{suggest(convention, list(CONVENTIONS))}"
    )


def train_flops(cfg: ModelConfig, seq_len: int, tokens: float, convention: str = "exact") -> float:
    """Training FLOPs of `tokens` tokens in rows of `seq_len`."""
    return flops_per_token(cfg, seq_len, convention) * float(tokens)


def all_conventions(cfg: ModelConfig, seq_len: int, tokens: float) -> dict[str, float]:
    """Training FLOPs under every convention, for a cell's record."""
    return {name: train_flops(cfg, seq_len, tokens, name) for name in CONVENTIONS}


def six_nd(params: float, tokens: float) -> float:
    """C = 6 N D in floating point, when all that is known of a run is its size and tokens."""
    return 6.0 * float(params) * float(tokens)
