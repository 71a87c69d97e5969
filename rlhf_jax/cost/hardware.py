"""Accelerators that a run can be priced on: peak bfloat16 FLOP/s and dollars a chip-hour.

Peaks of TPUs are those of `aot.chips`; of GPUs, NVIDIA's data sheets for dense arithmetic. Prices
are lists that anyone could rent at, and they age: `--price` replaces them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_jax.study.config import ConfigError, suggest
from rlhf_jax.tools.aot.chips import CHIPS

GOOGLE = "Google Cloud TPU price list, US regions, 2025: 3-year commitment (55% off) and on demand"
SPECIALISTS = "assumed: lowest and highest on-demand list of specialist GPU clouds, early 2026"


@dataclass(frozen=True)
class Hardware:
    """Per chip. `low` and `high`: dollars an hour, what `price_source` says they are."""

    name: str
    flops: float  # bfloat16, a second
    low: float
    high: float
    peak_source: str
    price_source: str


def _tpu(generation: str, low: float, high: float) -> Hardware:
    return Hardware(
        f"tpu-{generation}",
        CHIPS[generation].flops,
        low,
        high,
        "Google Cloud TPU documentation, system architecture",
        GOOGLE,
    )


HARDWARE = {
    h.name: h
    for h in (
        _tpu("v4", 1.449, 3.22),
        _tpu("v5e", 0.54, 1.20),
        _tpu("v5p", 1.89, 4.20),
        _tpu("v6e", 1.22, 2.70),
        Hardware("a100-80gb", 312e12, 1.49, 2.49, "NVIDIA A100 data sheet, SXM", SPECIALISTS),
        Hardware("h100", 989e12, 2.49, 3.99, "NVIDIA H100 data sheet, SXM", SPECIALISTS),
        Hardware("h200", 989e12, 3.50, 4.50, "NVIDIA H200 data sheet, SXM", SPECIALISTS),
    )
}


def find_hardware(name: str) -> Hardware:
    """The hardware of this name.

    Raises:
      ConfigError: no peak and price are known for it; names the nearest.
    """
    if name not in HARDWARE:
        raise ConfigError(
            f"no peak and price are known for hardware {name!r}.{suggest(name, list(HARDWARE))}"
        )
    return HARDWARE[name]


def chip_hours(flops: float, hardware: Hardware, mfu: float) -> float:
    """Chip-hours of `flops` model FLOPs at the share `mfu` of the peak.

    Raises:
      ConfigError: flops is negative or not finite, or mfu is outside (0, 1].
    """
    if not 0 <= flops < math.inf:
        raise ConfigError(f"flops is {flops}; it must be a finite number, at least 0")
    if not 0 < mfu <= 1:
        raise ConfigError(
            f"MFU is {mfu}; it is the share of the peak that model FLOPs reach, above 0 and at "
            f"most 1 (0.4 is usual for a large model)"
        )
    return flops / (hardware.flops * mfu * 3600.0)


def run_cost(flops: float, hardware: str, mfu: float) -> tuple[float, float]:
    """(chip-hours, dollars at the upper list price) of `flops` model FLOPs.

    Raises:
      ConfigError: as `find_hardware` and `chip_hours`.
    """
    chip = find_hardware(hardware)
    hours = chip_hours(flops, chip, mfu)
    return hours, hours * chip.high
