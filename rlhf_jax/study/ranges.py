"""The values that a field of a configuration may have, part of its type:

    batch: Count = 32
    clip: Annotated[float, Range(0, above=True)] = 1.0

`rlhf_jax.study.config` checks them in constructors, overrides, JSON and options of commands.
"""

from __future__ import annotations

import math
import struct
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`. `above`, `below`: excluding these two. `zero`: or 0.
    `advice`: what to do instead. Floats are rounded to float32 first, as the computation does."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    zero: bool = False
    advice: str = ""

    def problem(self, value: Any) -> str:
        """What was expected; empty if the value is in the range."""
        real = isinstance(value, float)
        used = _single(value) if real else value
        lost = real and (math.isinf(used) or (value and not used))
        low, high = (_single(x) if real else x for x in (self.low, self.high))
        enough = used > low if self.above else used >= low
        few = used < high if self.below else used <= high
        if not lost and ((enough and few) or (self.zero and not value)):
            return ""
        limits = "that float32 can hold" if lost else self._limits(enough)
        whole = "" if real else "whole "
        return f"a {whole}number {limits}" + (f" ({self.advice})" if self.advice else "")

    def _limits(self, enough: bool) -> str:
        """Both limits if the upper one is at most a million, otherwise the one that is exceeded."""
        low, high = (f"{x:,}" for x in (self.low, self.high))
        if self.low > -math.inf and self.high <= 1e6:
            upper = f"below {high}" if self.below else high
            return f"{'above' if self.above else 'from'} {low} to {upper}" + ", or 0" * self.zero
        if enough:
            return f"below {high}" if self.below else f"of at most {high}"
        return f"above {low}" if self.above else f"of at least {low}"


def _single(value: float) -> float:
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


class Name:
    """Texts that can be part of a folder's name on every system."""

    def problem(self, value: str) -> str:
        sound = all(ch.isalnum() or ch in "-_" for ch in value) and value[:1] not in ("", "-")
        if not sound or unicodedata.normalize("NFC", value) != value:
            allowed = "letters, digits, '-' and '_', and no '-' in front"
            return f"a name that a folder can have; use {allowed}"
        if len(value) > 100 or len(value.encode()) > 200:
            return f"a name of at most 100 characters (200 bytes); it has {len(value)}"
        return ""


class Title:
    """Printable texts on one line."""

    def problem(self, value: str) -> str:
        if len(value) <= 200 and value.isprintable():
            return ""
        return (
            f"at most 200 characters on one line, all of which can be printed; it has {len(value)}"
        )


INT32 = 2**31 - 1
Count = Annotated[int, Range(1, INT32)]
Number = Annotated[int, Range(0, 10**15)]
Tokens = Annotated[int, Range(1, 10**15)]
Size = Annotated[int, Range(1, 2**24)]  # of an axis of an array
Passes = Annotated[int, Range(1, 100_000)]  # over the data
Seed = Annotated[int, Range(0, 2**32 - 1)]  # what the generators of numpy and jax both take
Share = Annotated[float, Range(0, 1)]
Efficiency = Annotated[float, Range(0, 1, above=True)]  # of what a machine can do
Decay = Annotated[float, Range(0, 1, below=True)]
Positive = Annotated[float, Range(0, above=True)]
Weight = Annotated[float, Range(0, 1_000_000)]  # of a term of a loss or a score
Real = Annotated[float, Range(-1_000_000, 1_000_000)]
# Logits are divided by it. 0: greedy.
Temperature = Annotated[float, Range(1e-4, 10_000, zero=True)]
