"""What a model's parameters are, without jax: `plan` counts with it.

Every parameter is described once. Initialisation, sharding, weight decay, parameter counts and
FLOPs follow from the description.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_jax.model.architecture import architecture
from rlhf_jax.study.config import ModelConfig

Counted = Literal[
    "embedding", "positions", "unembedding", "attention", "feed_forward", "norms", "head"
]
Tree = dict[str, Any]  # of `Parameter`, nested
HEAD = "scalar"  # the scalar head's entry in a tree of parameters


@dataclass(frozen=True)
class Parameter:
    """One array of a model, float32.

    Attributes:
        axes: the logical axis of each dimension, as in `rlhf_jax.model.sharding.AXES`; None is
            never split over devices.
        counts_as: the row of `rlhf_jax.cost.flops.param_counts` that it is counted in.
        std, mean: the initial values are mean + std N(0, 1).
        decays: whether weight decay applies to it.
        multiplies: whether it multiplies activations: 2 FLOPs a token and element.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    counts_as: Counted
    std: float = 0.0
    mean: float = 0.0
    decays: bool = False
    multiplies: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def leaves(tree: Tree) -> Iterator[Parameter]:
    """The parameters of a tree in jax's order: by name."""
    for _, value in sorted(tree.items()):
        if isinstance(value, Parameter):
            yield value
        else:
            yield from leaves(value)


def describe(cfg: ModelConfig, scalar_head: bool = False) -> Tree:
    """The parameters of a model, and of its scalar head if it has one: a reward model, a critic."""
    tree = architecture(cfg).describe(cfg) if cfg.architecture else transformer(cfg)
    return {**tree, HEAD: scalar_parameters(cfg)} if scalar_head else tree


def attended(cfg: ModelConfig) -> int:
    """Multiply-adds of one token with each key that it attends to, over all layers, of the scores
    (the values take as many)."""
    if cfg.architecture:
        return architecture(cfg).attended(cfg)
    return cfg.layers * cfg.heads * cfg.C


def scalar_parameters(cfg: ModelConfig) -> Tree:
    """A weight for each feature and a bias. The weights are N(0, 1/(D+1)) (Stiennon et al. 2020) or
    0, see `rlhf_jax.model.network.with_scalar_head`."""
    return {
        "w": Parameter((cfg.width,), (None,), "head", std=(cfg.width + 1) ** -0.5),
        "b": Parameter((), (), "head"),
    }


def transformer(cfg: ModelConfig) -> Tree:
    """Of `rlhf_jax.model.transformer`; the layers' are stacked along a leading L.

    Matrices are N(0, 1/fan_in); those that write to the residual stream are divided by sqrt(2 L)
    (GPT-2); embeddings are N(0, 1/D); gains are 1, biases 0. Linear layers have no biases.
    """
    L, D, H, K, C, F, V = cfg.layers, cfg.width, cfg.heads, cfg.K, cfg.C, cfg.F, cfg.vocab
    matrix = functools.partial(Parameter, std=D**-0.5, decays=True, multiplies=True)
    gain = functools.partial(Parameter, counts_as="norms", mean=1.0)
    bias = functools.partial(Parameter, counts_as="norms")
    keys = matrix((L, D, K, C), (None, "embed", "heads", None), "attention")
    w_in = matrix((L, D, F), (None, "embed", "ff"), "feed_forward")
    layer = {
        "wq": dataclasses.replace(keys, shape=(L, D, H, C)),
        "wk": keys,
        "wv": keys,
        "wo": matrix(
            (L, H, C, D), (None, "heads", None, "embed"), "attention", std=(H * C * 2 * L) ** -0.5
        ),
        "w_in": w_in,
        "w_out": matrix((L, F, D), (None, "ff", "embed"), "feed_forward", std=(F * 2 * L) ** -0.5),
        "norm1": gain((L, D), (None, None)),
        "norm2": gain((L, D), (None, None)),
    }
    if cfg.activation == "swiglu":
        layer["w_gate"] = w_in
    if cfg.qk_norm:
        layer["q_norm"] = layer["k_norm"] = gain((L, C), (None, None))
    # The embedding multiplies activations where it is the unembedding too.
    embed = Parameter((V, D), ("vocab", "embed"), "embedding", D**-0.5, multiplies=cfg.tied)
    tree = {"embed": embed, "layers": layer, "final_norm": gain((D,), (None,))}
    if cfg.norm == "layer":
        layer["bias1"] = layer["bias2"] = bias((L, D), (None, None))
        tree["final_bias"] = bias((D,), (None,))
    if cfg.positions == "learned":
        shape = (cfg.max_positions, D)
        tree["positions"] = Parameter(shape, (None, "embed"), "positions", D**-0.5)
    if not cfg.tied:
        tree["unembed"] = matrix((D, V), ("embed", "vocab"), "unembedding", decays=False)
    return tree
