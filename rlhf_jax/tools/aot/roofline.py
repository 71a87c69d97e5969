"""Step time of a compiled program on a chip that is not here: a roofline over its schedule.

The rules, in full. Instructions run one after the other in the compiled order; each takes the
longer of its matmul FLOPs at `MATMUL` of the chip's peak and its HBM bytes at full bandwidth.
Collectives share the links one after the other, each moving (g - 1) / g of its bytes (twice that
for an all-reduce) over the links of the torus dimensions that its group of g spans, at their full
bandwidth. A collective that was split into start and done runs beside what stands between them; any
other stops the chip. Copies between HBM and the chip's memory that are split in the same way do
likewise. A loop's body counts as often as it turns.

Not seen: copies to and from the host's memory, arithmetic outside matmuls, latencies, matmul shapes
that fit the matrix unit badly, links shared by unlike collectives, the input pipeline, the host,
other slices.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.cost.hardware import Hardware
from rlhf_jax.tools.aot.hlo import Computation, Op
from rlhf_jax.tools.aot.program import COLLECTIVES, Collective, Program

# Share of the data sheet's FLOP/s that matmuls reach: the one constant, fitted by
# `experiments/aot_calibration.py` on the published step times of four models on a v5e-256.
MATMUL = 0.90
HOST = 5  # memory space


@dataclass(frozen=True)
class Machine:
    """Devices, and where they are: `coords[i]` of the i-th device of the mesh."""

    chip: Hardware
    dims: tuple[int, ...]  # of the torus
    coords: Sequence[tuple[int, ...]]

    @property
    def share(self) -> float:
        """Of a chip that is one device: half where two cores are two devices."""
        return math.prod(self.dims) / len(self.coords)

    def links(self, group: Sequence[int]) -> float:
        """Links of a chip that a collective over `group` uses: two for each torus dimension that
        the group spans and that is a ring, one for a line."""
        spanned = 0.0
        for d, length in enumerate(self.dims):
            places = {self.coords[i][d] for i in group}
            if len(places) > 1:
                wraps = len(places) == length and length % self.chip.ring == 0
                spanned += 2 if wraps else 1
        return spanned or 1.0

    def wire_seconds(self, c: Collective) -> float:
        """How long a collective keeps the links busy."""
        group = c.group or tuple(range(len(self.coords)))
        g = len(group)
        if g < 2:
            return 0.0
        if c.kind == "collective-permute":
            return c.bytes / self.chip.link_bandwidth
        passes = 2 if c.kind == "all-reduce" else 1
        return passes * c.bytes * (g - 1) / g / (self.links(group) * self.chip.link_bandwidth)


@dataclass
class Estimate:
    """Seconds of one step on every device."""

    seconds: float = 0.0
    compute: float = 0.0  # instructions that their FLOPs bound
    hbm: float = 0.0  # instructions that their bytes bound
    exposed: float = 0.0  # waiting for collectives
    copies: float = 0.0  # waiting for copies
    interconnect: float = 0.0  # links busy, hidden or not

    def add(self, other: Estimate, times: float) -> None:
        for name in ("seconds", "compute", "hbm", "exposed", "copies", "interconnect"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))


@dataclass(frozen=True)
class Event:
    """What an instruction does to the clocks."""

    kind: str  # work, loop, start, done, sync, copy, copied
    key: str = ""
    flops: float = 0.0
    bytes: float = 0.0
    wire: float = 0.0  # seconds on the links
    body: str = ""
    times: float = 1.0


class Roofline:
    """The schedule of a program on a machine, ready to be timed with any constants."""

    def __init__(self, program: Program, machine: Machine) -> None:
        self.program, self.machine = program, machine
        self.schedules: dict[str, list[Event]] = {}
        self._schedule(program.entry)

    def estimate(self, matmul: float = MATMUL) -> Estimate:
        return self._time(self.program.entry.name, matmul, {})

    def _schedule(self, computation: Computation) -> None:
        if computation.name in self.schedules:
            return
        events: list[Event] = []
        self.schedules[computation.name] = events
        for op in computation.ops.values():
            events += self._events(op, computation)

    def _events(self, op: Op, inside: Computation) -> list[Event]:
        p = self.program
        if op.code == "while":
            body = p.computations[op.attribute(r"body=%?([\w.\-]+)") or ""]
            self._schedule(body)
            return [Event("loop", body=body.name, times=p.trips(op, inside) or 1)]
        if op.code == "conditional":
            body = p.branch(op)
            self._schedule(body)
            return [Event("loop", body=body.name)]
        if op.code.startswith(("copy-", "slice-", "dynamic-slice-", "dynamic-update-slice-")):
            if not op.code.endswith("-start"):
                return [Event("copied", op.operands[0])]
            arrays = [a for a in op.result if a.dims]
            if any(a.space == HOST for a in arrays):
                return []
            return [Event("copy", op.name, bytes=min(a.bytes for a in arrays))]
        marker, sent = p.marker(op), p.collectives(op, inside)
        wire = sum(self.machine.wire_seconds(c) for c in sent)
        split = op.code.removesuffix("-start").removesuffix("-done") in COLLECTIVES
        if marker == "start" or (split and op.code.endswith("-start")):
            return [Event("start", sent[0].channel if marker else op.name, wire=wire)]
        if marker == "done":
            return [Event("done", sent[0].channel)]
        if split and op.code.endswith("-done"):
            return [Event("done", op.operands[0])]
        work = Event("work", flops=p.flops(op, inside), bytes=p.hbm_bytes(op, inside))
        if marker == "during" or not sent:
            return [work] if work.flops or work.bytes else []
        return [work, Event("sync", wire=wire)] if work.flops else [Event("sync", wire=wire)]

    def _time(self, name: str, matmul: float, known: dict[str, Estimate]) -> Estimate:
        if name in known:
            return known[name]
        chip, share = self.machine.chip, self.machine.share
        peak, bandwidth = chip.flops * share * matmul, chip.bandwidth * share
        e = Estimate()
        now = links = copies = 0.0  # clocks: the core, the links, the copy engine
        ends: dict[str, float] = {}
        for event in self.schedules[name]:
            if event.kind == "work":
                by_flops, by_bytes = event.flops / peak, event.bytes / bandwidth
                now += max(by_flops, by_bytes)
                e.compute += by_flops if by_flops >= by_bytes else 0.0
                e.hbm += by_bytes if by_bytes > by_flops else 0.0
            elif event.kind == "loop":
                inner = self._time(event.body, matmul, known)
                e.add(inner, event.times)
                now += inner.seconds * event.times
            elif event.kind == "copy":
                copies = ends[event.key] = max(copies, now) + event.bytes / bandwidth
            elif event.kind == "copied":
                e.copies += max(0.0, ends.get(event.key, 0.0) - now)
                now = max(now, ends.get(event.key, 0.0))
            elif event.kind == "done":
                e.exposed += max(0.0, ends.get(event.key, 0.0) - now)
                now = max(now, ends.get(event.key, 0.0))
            else:  # start, sync
                e.interconnect += event.wire
                links = max(links, now) + event.wire
                if event.kind == "start":
                    ends[event.key] = links
                else:
                    e.exposed += links - now
                    now = links
        e.seconds = now
        known[name] = e
        return e


def collectives(program: Program, machine: Machine) -> list[dict[str, Any]]:
    """What one device sends in a step, by kind and group size: how often, of how many bytes, and
    how much of it beside computation."""
    rows: dict[tuple[str, int], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for op, inside, times in program.walk():
        marker = program.marker(op)
        if marker in ("during", "done") or op.code.endswith("-done"):
            continue
        for c in program.collectives(op, inside):
            row = rows[c.kind, len(c.group) or len(machine.coords)]
            row["count"] += times
            row["bytes"] += times * c.bytes
            row["wire_seconds"] += times * machine.wire_seconds(c)
            if marker == "start" or op.code.endswith("-start"):
                row["overlapped_bytes"] += times * c.bytes
    return [
        {"kind": kind, "devices": size, "overlapped_bytes": 0.0, **row}
        for (kind, size), row in sorted(rows.items(), key=lambda x: -x[1]["bytes"])
        if size > 1
    ]
