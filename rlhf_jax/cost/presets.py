"""Known models by name: shapes from their papers and public configurations, to plan, cost and
compile.

Shapes only: our Transformer stands in for theirs, and `Preset.differs` says where it is another
one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_jax.study.config import Checked, ConfigError, ModelConfig, suggest
from rlhf_jax.study.ranges import Efficiency, Number, Positive, Size


@dataclass(frozen=True)
class Training(Checked):
    """The published run that made a model; None where its authors did not say.

    `hardware` names one of `cost.hardware.HARDWARE`. `chip_hours` are of the whole campaign,
    with restarts. `mfu` is the share of the peak in (0, 1] that went into model FLOPs as PaLM
    counts them. `dollars` is what others estimated, (low, high).
    """

    LABEL = "training"
    tokens: Positive
    source: str
    hardware: str | None = None
    chip_hours: Positive | None = None
    mfu: Efficiency | None = None
    dollars: tuple[Positive, ...] | None = None


@dataclass(frozen=True)
class Preset(Checked):
    """A model, and what is known of it.

    `params` is the published count; `absent` are those of it that our architecture has no place for
    (biases, relative positions).
    """

    LABEL = "preset"
    model: ModelConfig
    params: Positive
    seq_len: Size  # of its training
    source: str
    differs: str = ""
    absent: Number = 0
    training: Training | None = None


def _large(**shape: Any) -> ModelConfig:
    """What large models share: bfloat16 arithmetic, layers recomputed in the backward pass."""
    return ModelConfig(**{"compute": "bfloat16", "remat": "full", "activation": "swiglu", **shape})


def _llama(layers: int, width: int, heads: int, ff: int) -> ModelConfig:
    return _large(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=8,
        ff=ff,
        vocab=128_256,
        tied=False,
        rope_base=500_000.0,
        max_positions=8192,
    )


def _llama_1(layers: int, width: int, heads: int, ff: int) -> ModelConfig:
    return _large(
        layers=layers, width=width, heads=heads, ff=ff, vocab=32_000, tied=False, max_positions=2048
    )


def _gpt(layers: int, width: int, heads: int) -> ModelConfig:
    return _large(
        layers=layers,
        width=width,
        heads=heads,
        vocab=50_257,
        positions="learned",
        max_positions=2048,
        norm="layer",
        activation="gelu",
    )


def _maxtext(scale: int, layers: int, width: int, heads: int, ff: int, params: float) -> Preset:
    return Preset(
        _large(
            layers=layers,
            width=width,
            heads=heads,
            head_width=128,
            ff=ff,
            vocab=32_000,
            tied=False,
            max_positions=2048,
        ),
        params,
        2048,
        f"MaxText, configs/v5e/{scale}b.sh over configs/base.yml: global_parameter_scale={scale}",
    )


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
    "gpt3-175b": Preset(
        _gpt(96, 12_288, 96),
        174.6e9,
        2048,
        "Brown et al. 2020, tables 2.1 and D.1",
        "no biases in linear layers, and every layer attends densely",
        absent=96 * 9 * 12_288,
        training=Training(300e9, "Brown et al. 2020, table D.1"),
    ),
    "gopher-280b": Preset(
        _large(layers=80, width=16_384, heads=128, vocab=32_000, activation="gelu"),
        280e9,
        2048,
        "Rae et al. 2021, table 1",
        "rotary positions instead of relative ones, which have a D x D matrix a layer",
        absent=80 * 16_384**2,
        training=Training(300e9, "Rae et al. 2021, section 3"),
    ),
    "mt-nlg-530b": Preset(
        _gpt(105, 20_480, 128),
        530e9,
        2048,
        "Smith et al. 2022, section 3",
        "no biases in linear layers",
        absent=105 * 9 * 20_480,
        training=Training(
            270e9, "Smith et al. 2022; its MFU: Chowdhery et al. 2022, table 3", "a100-80gb",
            mfu=0.302,
        ),
    ),
    "llama1-7b": Preset(
        _llama_1(32, 4096, 32, 11_008), 6.738e9, 2048,
        "Touvron et al. 2023 (LLaMA), table 2; the released weights",
        training=Training(
            1e12, "Touvron et al. 2023 (LLaMA), tables 2 and 15", "a100-80gb", 82_432
        ),
    ),
    "llama1-65b": Preset(
        _llama_1(80, 8192, 64, 22_016), 65.2e9, 2048, "Touvron et al. 2023 (LLaMA), table 2",
        training=Training(
            1.4e12, "Touvron et al. 2023 (LLaMA), tables 2 and 15", "a100-80gb", 1_022_362
        ),
    ),
    "llama2-70b": Preset(
        _large(layers=80, width=8192, heads=64, kv_heads=8, ff=28_672, vocab=32_000, tied=False,
               max_positions=4096),
        68.98e9,
        4096,
        "Touvron et al. 2023 (Llama 2), table 1; the released weights",
        training=Training(
            2e12, "Touvron et al. 2023 (Llama 2), tables 1 and 2", "a100-80gb", 1_720_320
        ),
    ),
    "llama-8b": Preset(
        _llama(32, 4096, 32, 14_336), 8.03e9, 8192, "Llama 3: Grattafiori et al. 2024, table 3",
        training=Training(15e12, "Llama 3 model card, April 2024", "h100", 1.3e6),
    ),
    "llama-70b": Preset(
        _llama(80, 8192, 64, 28_672), 70.6e9, 8192, "Llama 3: Grattafiori et al. 2024, table 3",
        training=Training(15e12, "Llama 3 model card, April 2024", "h100", 6.4e6),
    ),
    "chinchilla-70b": Preset(
        _large(layers=80, width=8192, heads=64, ff=32_768, vocab=32_000, activation="gelu"),
        70e9,
        2048,
        "Hoffmann et al. 2022, table 4",
        "rotary positions instead of relative ones, which have a D x D matrix a layer",
        absent=80 * 8192**2,
        training=Training(1.4e12, "Hoffmann et al. 2022, table 1"),
    ),
    "palm-540b": Preset(
        _large(layers=118, width=18_432, heads=48, kv_heads=1, head_width=256, ff=73_728,
               vocab=256_000),
        540.35e9,
        2048,
        "Chowdhery et al. 2022, table 1",
        "attention and feed-forward one after the other instead of in parallel",
        training=Training(
            780e9,
            "Chowdhery et al. 2022, appendix B: 6144 chips for 1200 h, 3072 for 336 h; dollars: "
            "Heim 2022",
            "tpu-v4", 8_404_992, 0.462, (9e6, 23e6),
        ),
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
