"""XLA's optimised HLO text as data: computations, instructions, arrays and where they lie.

What the instructions cost is in `rlhf_jax.tools.aot.program`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Array:
    """One array of a type: `bf16[8,128]{1,0:T(8,128)S(1)}`. Memory space 0 is HBM, others are on
    the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """By the bits that the type's name gives (f8e4m3fn: 8); tokens have none."""
        bits = 8 if self.dtype == "pred" else int((re.findall(r"\d+", self.dtype) or [0])[0])
        return self.elements * bits / 8

    @property
    def hbm_bytes(self) -> float:
        return self.bytes if self.space == 0 else 0.0


@dataclass(frozen=True)
class Op:
    """An instruction: `%name = result code(operands), attributes`."""

    name: str
    code: str
    result: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str  # what stands between the parentheses of the operands
    attributes: str
    root: bool

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @property
    def calls(self) -> str | None:
        return self.attribute(r"\bcalls=%?([\w.\-]+)")


@dataclass
class Computation:
    name: str
    ops: dict[str, Op] = field(default_factory=dict)  # in the order in which they run

    @cached_property
    def root(self) -> Op:
        return next((op for op in self.ops.values() if op.root), list(self.ops.values())[-1])

    @cached_property
    def parameters(self) -> dict[int, Op]:
        return {int(op.text): op for op in self.ops.values() if op.code == "parameter"}

    @cached_property
    def users(self) -> dict[str, list[Op]]:
        users: dict[str, list[Op]] = {}
        for op in self.ops.values():
            for name in op.operands:
                users.setdefault(name, []).append(op)
        return users

    def shape(self, name: str) -> Array:
        return self.ops[name].result[0]


def first_group(attributes: str) -> tuple[int, ...]:
    """Devices that the first group of a collective joins, in any of the ways that HLO writes
    groups."""
    import numpy as np

    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        axes = re.findall(r"'([^']*)'=(\d+)", found[1])
        kept = set(re.findall(r"'([^']*)'", found[2]))
        ids = np.arange(math.prod(int(n) for _, n in axes)).reshape([int(n) for _, n in axes])
        return tuple(ids[tuple(slice(None) if a in kept else 0 for a, _ in axes)].ravel().tolist())
    if found := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        shape, dims = ([int(x) for x in found[i].split(",")] for i in (1, 2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        if found[3]:
            ids = ids.transpose([int(x) for x in found[3].split(",")])
        return tuple(ids.reshape(shape)[0].ravel().tolist())
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", attributes):
        return tuple(int(x) for x in found[1].split(",") if x)
    return ()


def parse(text: str) -> tuple[dict[str, Computation], Computation]:
    """(computations by name, the entry) of HLO text, as `compiled.as_text()` gives it."""
    computations: dict[str, Computation] = {}
    current, entry = Computation(""), ""
    for line in text.splitlines():
        if line.endswith("{") and (found := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            current = computations[found[2]] = Computation(found[2])
            entry = found[2] if found[1] else entry
        elif found := re.match(r"  (ROOT )?%([\w.\-]+) = ", line):
            current.ops[found[2]] = _op(found[2], line[found.end() :], bool(found[1]))
    return computations, computations[entry]


def _op(name: str, text: str, root: bool) -> Op:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    code, _, _ = text[end:].strip().partition("(")
    start = text.index("(", end)
    close = _closing(text, start)
    inner = text[start + 1 : close]
    arrays = tuple(
        Array(m[1], tuple(int(x) for x in m[2].split(",") if x), _space(m[3]))
        for m in _ARRAY.finditer(text[:end])
    )
    return Op(name, code, arrays, tuple(_OPERAND.findall(inner)), inner, text[close + 1 :], root)


def _space(layout: str | None) -> int:
    found = re.search(r"S\((\d+)\)", layout or "")
    return int(found[1]) if found else 0


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)
