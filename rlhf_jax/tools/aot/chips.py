"""TPU chips: what their vendor says they can do.

Figures: Google Cloud's TPU documentation, pages v4, v5e, v5p and v6e (system architecture tables).
Interconnect figures there are for all links of a chip and, on the newer pages, for both directions:
`link_bandwidth` is one link, one direction. Memory is what libtpu 0.0.50 says is available to a
program when it refuses one (of 32, 16, 95 and 32 GB on the data sheets).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlhf_jax.study.config import ConfigError


@dataclass(frozen=True)
class Chip:
    """Per chip; a device is a share of it where a chip's cores are devices of their own (v4)."""

    name: str
    flops: float  # bfloat16, a second
    hbm_bytes: float
    hbm_bandwidth: float  # bytes a second
    link_bandwidth: float  # bytes a second
    ring: int  # a torus dimension wraps around if its length is a multiple of this


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 30.5 * 2**30, 1228e9, 50e9, 4),  # 2400 Gbit/s over 6 links
    "v5e": Chip("TPU v5e", 197e12, 15.75 * 2**30, 819e9, 50e9, 16),  # 1600 Gbit/s over 4 links
    "v5p": Chip("TPU v5p", 459e12, 95.73 * 2**30, 2765e9, 100e9, 4),  # 4800 Gbit/s over 6 links
    "v6e": Chip("TPU v6e", 918e12, 32 * 2**30, 1638e9, 100e9, 16),  # 2 x 400 GB/s over 4 links
}


def chip(topology: str) -> Chip:
    """The chip of a topology such as v5e:16x16.

    Raises:
      ConfigError: the text has another form, or no figures are known for the chip.
    """
    if not re.fullmatch(r"v\d+[a-z]*:\d+(x\d+){1,2}", topology):
        raise ConfigError(
            f"topology {topology!r}: expected GENERATION:CHIPSxCHIPS[xCHIPS], for instance "
            f"v5e:16x16 or v5p:8x8x8"
        )
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise ConfigError(
            f"topology {topology!r}: no figures for TPU {name!r}; known: {', '.join(CHIPS)}"
        )
    return CHIPS[name]
