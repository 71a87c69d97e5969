"""The one table of chips: peak, memory, bandwidths and price, with where each figure is from.

TPUs: Google Cloud's TPU documentation, pages v4, v5e, v5p and v6e (system architecture tables).
Interconnect figures there are for all links of a chip and, on the newer pages, for both directions:
`link_bandwidth` is one link, one direction. Memory is what libtpu 0.0.50 says is available to a
program when it refuses one (of 32, 16, 95 and 32 GB on the data sheets). GPUs: NVIDIA's data sheets
for dense arithmetic. Prices are lists that anyone could rent at, and they age: `--price` replaces
them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.messages import suggest

GB, NAN = 2**30, math.nan
TPU = "Google Cloud TPU documentation, system architecture"
SHEET = "NVIDIA %s data sheet, SXM"
GOOGLE = "Google Cloud TPU price list, US regions, 2025: 3-year commitment (55% off) and on demand"
CLOUDS = "assumed: lowest and highest on-demand list of specialist GPU clouds, early 2026"


@dataclass(frozen=True)
class Hardware:
    """Per chip; a device is a share of it where a chip's cores are devices of their own (TPU v4).

    Attributes:
      name: as `--hardware` has it. kind: how jax's `device_kind` begins.
      flops: bfloat16, a second. memory: bytes. bandwidth: of the memory, bytes a second.
      low, high: dollars an hour, what `price_source` says they are; NaN where no list is known.
      link_bandwidth: bytes a second, of one link in one direction. ring: a torus dimension wraps
      around if its length is a multiple of this; 0 where there is no torus.
    """

    name: str
    kind: str
    flops: float
    memory: float
    bandwidth: float
    low: float
    high: float
    peak_source: str
    price_source: str
    link_bandwidth: float = 0.0
    ring: int = 0


# Links of TPUs: 2400 Gbit/s over 6, 1600 over 4, 4800 over 6, 2 x 400 GB/s over 4.
CHIPS = (
    Hardware("tpu-v4", "TPU v4", 275e12, 30.5 * GB, 1228e9, 1.449, 3.22, TPU, GOOGLE, 50e9, 4),
    Hardware("tpu-v5e", "TPU v5 lite", 197e12, 15.75 * GB, 819e9, 0.54, 1.2, TPU, GOOGLE, 50e9, 16),
    Hardware("tpu-v5p", "TPU v5", 459e12, 95.73 * GB, 2765e9, 1.89, 4.20, TPU, GOOGLE, 100e9, 4),
    Hardware("tpu-v6e", "TPU v6 lite", 918e12, 32 * GB, 1638e9, 1.22, 2.70, TPU, GOOGLE, 100e9, 16),
    Hardware("a100-80gb", "NVIDIA A100", 312e12, 80e9, 2039e9, 1.49, 2.49, SHEET % "A100", CLOUDS),
    Hardware("h100", "NVIDIA H100", 989e12, 80e9, 3350e9, 2.49, 3.99, SHEET % "H100", CLOUDS),
    Hardware("h200", "NVIDIA H200", 989e12, 141e9, 4800e9, 3.50, 4.50, SHEET % "H200", CLOUDS),
    Hardware("b200", "NVIDIA B200", 2250e12, 180e9, 8000e9, NAN, NAN, SHEET % "B200", "unknown"),
)  # fmt: skip
HARDWARE = {chip.name: chip for chip in CHIPS if chip.high > 0}  # those with a price


def peak_of(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of the chip that jax calls `device_kind`; None for an unknown one."""
    return next((chip.flops for chip in CHIPS if device_kind.startswith(chip.kind)), None)


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


def chip_of(topology: str) -> Hardware:
    """The chip of a TPU topology such as v5e:16x16.

    Raises:
      ConfigError: the text has another form, or no figures are known for the chip.
    """
    if not re.fullmatch(r"v\d+[a-z]*:\d+(x\d+){1,2}", topology):
        raise ConfigError(
            f"topology {topology!r}: expected GENERATION:CHIPSxCHIPS[xCHIPS], for instance "
            f"v5e:16x16 or v5p:8x8x8"
        )
    name = topology.partition(":")[0]
    if f"tpu-{name}" not in HARDWARE:
        known = [key.removeprefix("tpu-") for key in HARDWARE if key.startswith("tpu-")]
        raise ConfigError(
            f"topology {topology!r}: no figures for TPU {name!r}; known: {', '.join(known)}"
        )
    return HARDWARE[f"tpu-{name}"]


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
