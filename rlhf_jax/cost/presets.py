"""Known models by name: shapes from their papers and public configurations, to plan, cost and
compile.

Only shapes are the published ones: the architecture is this package's Transformer, and
`Preset.differs` names the differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_jax.study.config import Checked, ConfigError, ModelConfig
from rlhf_jax.study.messages import suggest
from rlhf_jax.study.ranges import Efficiency, Number, Positive, Size


@dataclass(frozen=True)
class Training(Checked):
    """The published training run of a model; None where its authors published no number.

    `hardware` is a name of `cost.hardware.HARDWARE`. `chip_hours` count the whole campaign with
    restarts. `mfu` is in (0, 1], of model FLOPs as PaLM counts them. `dollars` are published
    estimates by others, (low, high).
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
    """A published model.

    `params` is the published count; `absent` is how many of those the Transformer here does not
    have (biases, relative positions).
    """

    LABEL = "preset"
    model: ModelConfig
    params: Positive
    seq_len: Size  # of its training
    source: str
    differs: str = ""
    absent: Number = 0
    training: Training | None = None


def _large(
    layers: int, width: int, heads: int, ff: int | None, vocab: int, **others: Any
) -> ModelConfig:
    """What large models share: bfloat16 arithmetic, layers recomputed in the backward pass."""
    shared = {"compute": "bfloat16", "remat": "full", "activation": "swiglu"}
    return ModelConfig(layers, width, heads, vocab, ff=ff, **{**shared, **others})


GPT: dict[str, Any] = {"positions": "learned", "norm": "layer", "activation": "gelu"}
LLAMA: dict[str, Any] = {"tied": False, "max_positions": 2048}
LLAMA_3: dict[str, Any] = {
    "tied": False,
    "max_positions": 8192,
    "kv_heads": 8,
    "rope_base": 500_000.0,
}


def _maxtext(scale: int, layers: int, width: int, heads: int, ff: int) -> Preset:
    model = _large(layers, width, heads, ff, 32_000, head_width=128, **LLAMA)
    file = f"configs/v5e/{scale}b.sh over configs/base.yml"
    return Preset(model, scale * 1e9, 2048, f"MaxText, {file}: global_parameter_scale={scale}")


PRESETS = {
    "gpt2-124m": Preset(
        ModelConfig(12, 768, 12, 50_257, compute="bfloat16", max_positions=1024, **GPT),
        124.4e6, 1024, "Radford et al. 2019; the released weights",
        "no biases in linear layers",
        absent=12 * 9 * 768,
    ),
    "gpt3-175b": Preset(
        _large(96, 12_288, 96, None, 50_257, max_positions=2048, **GPT), 174.6e9, 2048,
        "Brown et al. 2020, tables 2.1 and D.1",
        "no biases in linear layers, and every layer attends densely",
        absent=96 * 9 * 12_288,
        training=Training(300e9, "Brown et al. 2020, table D.1"),
    ),
    "gopher-280b": Preset(
        _large(80, 16_384, 128, None, 32_000, activation="gelu"), 280e9, 2048,
        "Rae et al. 2021, table 1",
        "rotary positions instead of relative ones, which have a D x D matrix a layer",
        absent=80 * 16_384**2,
        training=Training(300e9, "Rae et al. 2021, section 3"),
    ),
    "mt-nlg-530b": Preset(
        _large(105, 20_480, 128, None, 50_257, max_positions=2048, **GPT), 530e9, 2048,
        "Smith et al. 2022, section 3",
        "no biases in linear layers",
        absent=105 * 9 * 20_480,
        training=Training(
            270e9, "Smith et al. 2022; its MFU: Chowdhery et al. 2022, table 3", "a100-80gb",
            mfu=0.302,
        ),
    ),
    "llama1-7b": Preset(
        _large(32, 4096, 32, 11_008, 32_000, **LLAMA), 6.738e9, 2048,
        "Touvron et al. 2023 (LLaMA), table 2; the released weights",
        training=Training(
            1e12, "Touvron et al. 2023 (LLaMA), tables 2 and 15", "a100-80gb", 82_432
        ),
    ),
    "llama1-65b": Preset(
        _large(80, 8192, 64, 22_016, 32_000, **LLAMA), 65.2e9, 2048,
        "Touvron et al. 2023 (LLaMA), table 2",
        training=Training(
            1.4e12, "Touvron et al. 2023 (LLaMA), tables 2 and 15", "a100-80gb", 1_022_362
        ),
    ),
    "llama2-70b": Preset(
        _large(80, 8192, 64, 28_672, 32_000, kv_heads=8, tied=False, max_positions=4096),
        68.98e9, 4096,
        "Touvron et al. 2023 (Llama 2), table 1; the released weights",
        training=Training(
            2e12, "Touvron et al. 2023 (Llama 2), tables 1 and 2", "a100-80gb", 1_720_320
        ),
    ),
    "llama-8b": Preset(
        _large(32, 4096, 32, 14_336, 128_256, **LLAMA_3), 8.03e9, 8192,
        "Llama 3: Grattafiori et al. 2024, table 3",
        training=Training(15e12, "Llama 3 model card, April 2024", "h100", 1.3e6),
    ),
    "llama-70b": Preset(
        _large(80, 8192, 64, 28_672, 128_256, **LLAMA_3), 70.6e9, 8192,
        "Llama 3: Grattafiori et al. 2024, table 3",
        training=Training(15e12, "Llama 3 model card, April 2024", "h100", 6.4e6),
    ),
    "chinchilla-70b": Preset(
        _large(80, 8192, 64, 32_768, 32_000, activation="gelu"), 70e9, 2048,
        "Hoffmann et al. 2022, table 4",
        "rotary positions instead of relative ones, which have a D x D matrix a layer",
        absent=80 * 8192**2,
        training=Training(1.4e12, "Hoffmann et al. 2022, table 1"),
    ),
    "palm-540b": Preset(
        _large(118, 18_432, 48, 73_728, 256_000, kv_heads=1, head_width=256), 540.35e9, 2048,
        "Chowdhery et al. 2022, table 1",
        "attention and feed-forward one after the other instead of in parallel",
        training=Training(
            780e9,
            "Chowdhery et al. 2022, appendix B: 6144 chips for 1200 h, 3072 for 336 h; dollars: "
            "Heim 2022",
            "tpu-v4", 8_404_992, 0.462, (9e6, 23e6),
        ),
    ),
    "maxtext-16b": _maxtext(16, 32, 4096, 64, 28_672),
    "maxtext-32b": _maxtext(32, 32, 8192, 64, 28_672),
    "maxtext-64b": _maxtext(64, 64, 8192, 64, 28_672),
    "maxtext-128b": _maxtext(128, 64, 8192, 128, 57_344),
}  # fmt: skip


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
      ConfigError: there is none; names the nearest.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}.{suggest(name, list(PRESETS))}")
    return PRESETS[name]
