"""Known models by name: shapes from their papers and public configurations, to plan, cost and compile.

Shapes only: our Transformer stands in for theirs, and `Preset.differs` says where it is another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_jax.config import ConfigError, ModelConfig, suggest


@dataclass(frozen=True)
class Preset:
    """A model, and what is known of it.

    `params` is the published count; `absent` are those of it that our architecture has no place for
    (biases, relative positions).
    """

    model: ModelConfig
    params: float
    seq_len: int  # of its training
    source: str
    differs: str = ""
    absent: int = 0


def _large(**shape: Any) -> ModelConfig:
    """What large models share: bfloat16 arithmetic, layers recomputed in the backward pass."""
    return ModelConfig(**{"compute": "bfloat16", "remat": "full", "activation": "swiglu", **shape})


def _llama(layers: int, width: int, heads: int, ff: int) -> ModelConfig:
    return _large(
        layers=layers, width=width, heads=heads, kv_heads=8, ff=ff, vocab=128_256, tied=False,
        rope_base=500_000.0, max_positions=8192,
    )  # fmt: skip


def _maxtext(scale: int, layers: int, width: int, heads: int, ff: int, params: float) -> Preset:
    return Preset(
        _large(
            layers=layers, width=width, heads=heads, head_width=128, ff=ff, vocab=32_000, tied=False,
            max_positions=2048,
        ),
        params,
        2048,
        f"MaxText, configs/v5e/{scale}b.sh over configs/base.yml: global_parameter_scale={scale}",
    )  # fmt: skip


PRESETS = {
    "gpt2-124m": Preset(
        ModelConfig(
            layers=12, width=768, heads=12, vocab=50_257, positions="learned", max_positions=1024,
            norm="layer", activation="gelu", compute="bfloat16",
        ),
        124.4e6,
        1024,
        "Radford et al. 2019; the released weights",
        "no biases in linear layers",
        absent=12 * 9 * 768,
    ),
    "llama-8b": Preset(
        _llama(32, 4096, 32, 14_336), 8.03e9, 8192, "Llama 3: Grattafiori et al. 2024, table 3"
    ),
    "llama-70b": Preset(
        _llama(80, 8192, 64, 28_672), 70.6e9, 8192, "Llama 3: Grattafiori et al. 2024, table 3"
    ),
    "chinchilla-70b": Preset(
        _large(layers=80, width=8192, heads=64, ff=32_768, vocab=32_000, activation="gelu"),
        70e9,
        2048,
        "Hoffmann et al. 2022, table 4",
        "rotary positions instead of relative ones, which have a D x D matrix a layer",
        absent=80 * 8192**2,
    ),
    "palm-540b": Preset(
        _large(layers=118, width=18_432, heads=48, kv_heads=1, head_width=256, ff=73_728,
               vocab=256_000),
        540.35e9,
        2048,
        "Chowdhery et al. 2022, table 1",
        "attention and feed-forward one after the other instead of in parallel",
    ),
    "maxtext-16b": _maxtext(16, 32, 4096, 64, 28_672, 16e9),
    "maxtext-32b": _maxtext(32, 32, 8192, 64, 28_672, 32e9),
    "maxtext-64b": _maxtext(64, 64, 8192, 64, 28_672, 64e9),
    "maxtext-128b": _maxtext(128, 64, 8192, 128, 57_344, 128e9),
}  # fmt: skip


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
      ConfigError: there is none; names the nearest.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}.{suggest(name, list(PRESETS))}")
    return PRESETS[name]
