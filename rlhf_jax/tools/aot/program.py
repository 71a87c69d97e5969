"""What a compiled program computes, moves and sends, instruction by instruction, and how often.

The compiler's own totals count the body of a loop once; here a body counts as often as its loop
turns. Only what a training step needs is understood: dots, convolutions (which TPUs make of dots),
fusions, loops, collectives, asynchronous pairs, and splash attention's kernels.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_jax.tools.aot.hlo import Computation, Op, first_group, parse

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Matmuls of each splash attention kernel: scores and values; then with the scores once more.
SPLASH_MATMULS = {"fwd": 2, "dq": 3, "dkv": 4}
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
}


@dataclass(frozen=True)
class Collective:
    """One collective as often as it runs. `bytes`: of the whole array that is gathered, reduced or
    exchanged, on one device."""

    kind: str
    bytes: float
    group: tuple[int, ...]  # devices of the first group
    channel: str


class Program:
    """The program of one device, from HLO text."""

    def __init__(self, text: str) -> None:
        self.computations, self.entry = parse(text)

    def calls(self, op: Op) -> Computation | None:
        return self.computations.get(op.calls or "")

    # --- FLOPs ---------------------------------------------------------------------------------

    def flops(self, op: Op, inside: Computation) -> float:
        """Multiplications and additions of the matmuls in an instruction; other arithmetic is not
        counted. Loops are the caller's business."""
        if op.code == "dot":
            return _dot_flops(op, inside)
        if op.code == "convolution":
            return _convolution_flops(op, inside)
        if op.code == "custom-call" and "splash" in op.name:
            return _splash_flops(op, inside)
        if op.code in ("fusion", "call", "async-start") and (called := self.calls(op)):
            return sum(self.flops(x, called) for x in called.ops.values())
        return 0.0

    def total_flops(self) -> float:
        return sum(times * self.flops(op, c) for op, c, times in self.walk())

    # --- memory --------------------------------------------------------------------------------

    def hbm_bytes(self, op: Op, inside: Computation) -> float:
        """Bytes that an instruction reads from and writes to HBM. Of an operand that is only sliced
        the slices count, of a result that is updated in place the update."""
        if op.code in FREE:
            return 0.0
        operands = [inside.ops[n] for n in op.operands if n in inside.ops]
        if op.code == "dynamic-slice":
            return 2 * op.result[0].hbm_bytes
        if op.code == "dynamic-update-slice":
            return 2 * operands[1].result[0].bytes if op.result[0].space == 0 else 0.0
        reads = [sum(a.hbm_bytes for a in x.result) for x in operands]
        writes = [a.hbm_bytes for a in op.result]
        called = self.calls(op)
        if op.code == "fusion" and called:
            for i, parameter in called.parameters.items():
                if i < len(reads):
                    reads[i] = min(reads[i], _read(called, parameter))
            root = called.root
            outs = [called.ops[n] for n in root.operands] if root.code == "tuple" else [root]
            for i, out in enumerate(outs):
                source = _through(called, out)
                if source.code == "dynamic-update-slice" and i < len(writes) and writes[i]:
                    writes[i] = called.shape(source.operands[1]).bytes
                elif source.code == "parameter" and i < len(writes):
                    writes[i] = 0.0  # handed on, not written
        return sum(reads) + sum(writes)

    # --- loops and schedules -------------------------------------------------------------------

    def trips(self, op: Op, inside: Computation) -> int | None:
        """How often a while loop turns: counter from, to and step as the scan wrote them; None if
        they cannot be read."""
        if known := op.attribute(r'known_trip_count[^0-9]*"?(\d+)'):
            return int(known)
        condition = self.computations[op.attribute(r"condition=%?([\w.\-]+)") or ""]
        body = self.computations[op.attribute(r"body=%?([\w.\-]+)") or ""]
        compare, at = condition.root, condition
        while compare.code in ("fusion", "call") and (called := self.calls(compare)):
            compare, at = called.root, called
        limits = [
            c for x in compare.operands if (c := self._constant(x, at, condition)) is not None
        ]
        indices = [
            i
            for x in condition.ops.values()
            if x.code == "get-tuple-element"
            and x.result[0].dtype in ("s32", "u32", "s64")
            and (i := x.attribute(r"index=(\d+)"))
        ]
        if compare.code != "compare" or "direction=LT" not in compare.attributes:
            return None
        if len(limits) != 1 or len(set(indices)) != 1:
            return None
        start = self._tuple_constant(op, inside, int(indices[0])) or 0
        return math.ceil((limits[0] - start) / self._increment(body, int(indices[0])))

    def _constant(self, name: str, at: Computation, outer: Computation) -> int | None:
        op = at.ops.get(name)
        if op is None:
            return None
        if op.code == "constant" and op.text.lstrip("-").isdigit():
            return int(op.text)
        if op.code == "parameter" and at is not outer:  # of a fused comparison
            for caller in outer.ops.values():
                if caller.calls == at.name:
                    return self._constant(caller.operands[int(op.text)], outer, outer)
        if op.code in ("copy", "bitcast", "convert") and op.operands:
            return self._constant(op.operands[0], at, outer)
        return None

    def _tuple_constant(self, op: Op, inside: Computation, index: int) -> int | None:
        start = inside.ops.get(op.operands[0])
        if start is None or start.code != "tuple":
            return None
        return self._constant(start.operands[index], inside, inside)

    def _increment(self, body: Computation, index: int) -> int:
        """Step of the counter; 1 if it cannot be read."""
        name = body.root.operands[index] if body.root.code == "tuple" else ""
        op = body.ops.get(name)
        if op is not None and op.code == "add":
            steps = [c for x in op.operands if (c := self._constant(x, body, body))]
            return steps[0] if steps else 1
        return 1

    def walk(
        self, computation: Computation | None = None, times: float = 1.0
    ) -> Iterator[tuple[Op, Computation, float]]:
        """(instruction, its computation, how often it runs), loops unrolled in the count. A loop
        whose trips cannot be read counts once."""
        computation = computation or self.entry
        for op in computation.ops.values():
            if op.code == "while":
                body = self.computations[op.attribute(r"body=%?([\w.\-]+)") or ""]
                yield from self.walk(body, times * (self.trips(op, computation) or 1))
            elif op.code == "conditional":
                yield from self.walk(self.branch(op), times)
            else:
                yield op, computation, times

    def branch(self, op: Op) -> Computation:
        """The branch of a conditional with the most FLOPs."""
        names = re.findall(
            r"%([\w.\-]+)", op.attribute(r"branch_computations=\{([^}]*)\}") or ""
        ) or [x for k in ("true", "false") if (x := op.attribute(rf"{k}_computation=%?([\w.\-]+)"))]
        found = [self.computations[n] for n in names]
        return max(found, key=lambda c: sum(self.flops(x, y) * n for x, y, n in self.walk(c)))

    def unread_loops(self) -> list[str]:
        """Loops whose trips could not be read: totals are too low by their other turns."""
        return [
            op.name
            for c in self.computations.values()
            for op in c.ops.values()
            if op.code == "while" and self.trips(op, c) is None
        ]

    # --- collectives ---------------------------------------------------------------------------

    def collectives(self, op: Op, inside: Computation) -> list[Collective]:
        """What an instruction sends: itself, or what a fusion has inside. An all-reduce of which a
        fusion keeps a slice is a reduce-scatter."""
        kind = op.code.removesuffix("-start")
        if kind in COLLECTIVES:
            return [_collective(op, kind, inside)]
        called = self.calls(op)
        if op.code not in ("fusion", "call", "async-start") or called is None:
            return []
        found = [c for x in called.ops.values() for c in self.collectives(x, called)]
        sliced = any(x.code == "dynamic-slice" for x in called.ops.values())
        if sliced and "reduce-scatter" in called.name + op.name:
            found = [
                Collective("reduce-scatter", c.bytes, c.group, c.channel)
                if c.kind == "all-reduce"
                else c
                for c in found
            ]
        return found

    def marker(self, op: Op) -> str:
        """`start` or `done` for the ends of a collective that runs beside a fusion, `during` for
        the fusion, else nothing."""
        called = self.calls(op)
        if op.code != "fusion" or called is None:
            return ""
        targets = {x.attribute(r'custom_call_target="(\w+)"') for x in called.ops.values()}
        if "AsyncCollectiveStart" in targets:
            return "start"
        if "AsyncCollectiveDone" in targets:
            return "done"
        return "during" if "async_collective_fusion" in called.name else ""


def _read(called: Computation, parameter: Op) -> float:
    """Bytes that a fusion reads of a parameter: of one that is only sliced, gathered from or
    updated in place, only those parts."""
    total, seen = 0.0, [parameter]
    while seen:
        op = seen.pop()
        for user in called.users.get(op.name, []):
            first = user.operands[0] == op.name
            if user.code == "bitcast":
                seen.append(user)
            elif user.code in ("dynamic-slice", "slice", "gather") and first:
                total += user.result[0].bytes
            elif not ((user.code == "dynamic-update-slice" and first) or user.code == "tuple"):
                return math.inf
    return total


def _through(called: Computation, op: Op) -> Op:
    while op.code in ("bitcast", "copy") and op.operands and op.operands[0] in called.ops:
        op = called.ops[op.operands[0]]
    return op


def _dot_flops(op: Op, inside: Computation) -> float:
    contracted = op.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    lhs = inside.shape(op.operands[0]).dims
    return 2.0 * op.result[0].elements * math.prod(lhs[int(i)] for i in contracted.split(",") if i)


def _convolution_flops(op: Op, inside: Computation) -> float:
    """2 x batch x features in and out x the (position, tap) pairs that fall on the input: padding,
    with which TPU programs write batched dots, multiplies nothing."""
    labels = op.attribute(r"dim_labels=([\w?]+_[\w?]+->[\w?]+)") or ""
    left, right, out = re.split(r"_|->", labels)
    lhs, rhs = (inside.shape(n).dims for n in op.operands[:2])
    window = op.attribute(r"window=\{([^}]*)\}") or ""

    def of(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=([\w\-]+(?:_[\w\-]+)*)", window)
        return found[1].split("x") if found else [default] * (len(left) - 2)

    pairs = 1.0
    for i, (pad, stride, base, dilation) in enumerate(
        zip(
            of("pad", "0_0"),
            of("stride", "1"),
            of("lhs_dilate", "1"),
            of("rhs_dilate", "1"),
            strict=True,
        )
    ):
        size = (lhs[left.index(str(i))] - 1) * int(base) + 1
        taps, places = rhs[right.index(str(i))], op.result[0].dims[out.index(str(i))]
        low = int(pad.split("_")[0])
        pairs *= sum(
            1
            for o, k in itertools.product(range(places), range(taps))
            if 0 <= (x := o * int(stride) + k * int(dilation) - low) < size and x % int(base) == 0
        )
    batch, features = op.result[0].dims[out.index("b")], op.result[0].dims[out.index("f")]
    groups = int(op.attribute(r"batch_group_count=(\d+)") or 1)
    return 2.0 * batch * features * rhs[right.index("i")] * pairs / groups


def _splash_flops(op: Op, inside: Computation) -> float:
    """Of the blocks that the causal mask leaves: n (n+1) / 2 of n x n."""
    kind = next((k for k in ("dkv", "dq", "fwd") if f"_{k}" in op.name), "fwd")
    shapes = [a for n in op.operands if n in inside.ops for a in inside.ops[n].result]
    # Queries, (B, H, T, C): the first operand that is not integers; a batch of 1 is left out.
    *lead, T, C = next(
        a.dims for a in shapes if len(a.dims) >= 3 and a.dtype in ("bf16", "f16", "f32")
    )
    blocks = next((a.dims[-1] for a in shapes if len(a.dims) == 3 and a.dtype in ("s8", "s16")), T)
    pairs = math.prod(lead) * T * T * (blocks + 1) / (2 * blocks)
    return 2.0 * C * pairs * SPLASH_MATMULS[kind]


def _collective(op: Op, kind: str, inside: Computation) -> Collective:
    operands = sum(a.bytes for n in op.operands if n in inside.ops for a in inside.ops[n].result)
    result = sum(a.bytes for a in op.result)
    if op.code.endswith("-start") and kind != "all-reduce":
        result -= operands  # a start's result holds its operands as well
    return Collective(
        kind,
        max(operands, result),
        first_group(op.attributes),
        op.attribute(r"channel_id=(\d+)") or op.name,
    )
