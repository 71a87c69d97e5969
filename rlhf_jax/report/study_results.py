"""A study folder as tables: what each cell is, what it found, and which fits follow.

Cells that are missing, running or failed are listed with their state; nothing here needs them all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from rlhf_jax.evals.results import HeldOut
from rlhf_jax.kinds.pretrain.result import PretrainHeldOut
from rlhf_jax.laws.curves import Curve, smooth
from rlhf_jax.laws.isoflop import WIDE
from rlhf_jax.laws.points import Points, from_rows
from rlhf_jax.study.cell import KNOWN
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import Damaged, read_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.results import LEFT_OUT, read


def result_class(kind: str) -> type | None:
    """What the jobs of a kind return; None where that is not known here."""
    return KNOWN[kind].RESULT if kind in KNOWN else None


@dataclass(frozen=True)
class CellResult:
    """One cell of a study and whatever its folder holds so far. What a finished cell wrote is
    checked when it is read; it raises Damaged, which names the file."""

    name: str
    run_id: str
    kind: str
    parents: tuple[str, ...]
    folder: CellFolder

    @property
    def done(self) -> bool:
        return self.record is not None

    @cached_property
    def record(self) -> dict[str, Any] | None:
        """done.json, or kept.json of results that are kept."""
        return self.snapshot.record()

    @cached_property
    def snapshot(self) -> CellFolder:
        """The folder as it was when first read."""
        return self.folder.snapshot()

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._json("config.json")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Of the process that finished the cell, or ran it last."""
        sessions = self._json("provenance.json").get("sessions") or [{}]
        return sessions[-1]

    @cached_property
    def seconds(self) -> float | None:
        return (self.record or {}).get("seconds")

    @cached_property
    def result(self) -> Any:
        """The typed results of a finished cell, or None. Raises Damaged where they are not what a
        cell of its kind writes."""
        return read(result_class(self.kind), self.snapshot) if self.done else None

    @cached_property
    def left_out(self) -> dict[str, str]:
        """File -> rows of it that the cell did not use, and why."""
        return (self.snapshot.result(LEFT_OUT) or {}) if self.done else {}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Logged rows by step; of a step logged twice (a resumed run) the last."""
        try:
            rows = self.snapshot.metrics()
        except Damaged:
            if self.done:
                raise
            return []  # the run that finishes the cell says so
        by_step: dict[float, dict[str, Any]] = {
            step: row
            for i, row in enumerate(rows)
            if isinstance(row, dict) and is_number(step := row.get("step", row.get("iteration", i)))
        }
        return [{**by_step[step], "step": step} for step in sorted(by_step)]

    @cached_property
    def state(self) -> str:
        """`done`, or what the folder says otherwise, in words."""
        if not self.folder.path.is_dir():
            return "not started"
        state = self.snapshot.state()
        if state["state"] == "failed":
            return f"failed: {state.get('error') or state.get('reason') or 'see its folder'}"
        return str(state["state"])

    @property
    def heldout(self) -> HeldOut | None:
        """Its loss on the held-out set, where its kind measures one."""
        return getattr(self.result, "heldout", None)

    @property
    def pretrained(self) -> PretrainHeldOut | None:
        """The same with what it cost, of a pretraining cell whose loss is finite."""
        held = self.heldout
        known = isinstance(held, PretrainHeldOut) and is_number(held.loss)
        return held if known else None  # type: ignore[return-value]

    def column(self, *names: str) -> list[tuple[Any, ...]]:
        """The metrics rows in which all of `names` are finite numbers, as tuples."""
        rows = [tuple(row.get(name) for name in names) for row in self.metrics]
        return [row for row in rows if all(is_number(v) for v in row)]

    def _json(self, name: str) -> Any:
        """A file of the folder. An unfinished cell's may be unreadable: its next run writes it
        anew."""
        try:
            return self.snapshot.json(name) or {}
        except Damaged:
            if self.done:
                raise
            return {}


ACCOUNTS = ("params", "flops", "loss", "window")  # of `rlhf_jax.study.Analysis`


@dataclass(frozen=True)
class Analysed:
    """An analysis (`rlhf_jax.study.Analysis`) of cells that have run.

    name: a file stem, unique in the study. alone: the study has no other analysis of its kind.
    """

    name: str
    label: str
    cells: list[CellResult]
    alone: bool = True
    params: str = "total"
    flops: str = "exact"
    loss: str = "heldout"
    window: float | None = WIDE

    @property
    def distinction(self) -> str:
        """What tells it from the other analyses of its kind; empty where there is none."""
        return "" if self.alone else self.label

    def titled(self, text: str) -> str:
        return f"{text} ({self.distinction})" if self.distinction else text

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(name, state) of the cells without a held-out loss."""
        return [(cell.name, cell.state) for cell in self.cells if cell.heldout is None]


@dataclass(frozen=True)
class StudyResults:
    """A study's description and cells. folder: `RUNS/studies/NAME`."""

    folder: Path
    spec: dict[str, Any]
    cells: tuple[CellResult, ...]

    def of(self, kind: str, done: bool = True) -> list[CellResult]:
        return [cell for cell in self.cells if cell.kind == kind and (cell.done or not done)]

    def having(self, result: type) -> list[CellResult]:
        """The cells that have results of a class."""
        return [cell for cell in self.cells if isinstance(cell.result, result)]

    def cell(self, name: str) -> CellResult | None:
        """The cell of a name, or None."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, CellResult]:
        return {c.name: c for c in self.cells}

    def analyses(self, *kinds: str) -> list[Analysed]:
        """The analyses of some kinds (all: every kind), with the study's cells."""
        found: list[Analysed] = []
        specs = self.spec.get("analyses", [])
        counts = Counter(spec["kind"] for spec in specs)
        for spec in specs:
            kind, label = spec["kind"], spec.get("label") or ""
            if kinds and kind not in kinds:
                continue
            stem = "".join(c if c.isalnum() else "-" for c in label)
            name = f"{kind}-{stem}" if stem else kind
            if any(name == other.name for other in found):
                name = f"{name}-{len(found) + 1}"
            wanted = set(spec.get("cells", []))
            cells = [cell for cell in self.cells if cell.name in wanted]
            accounts = {key: spec[key] for key in ACCOUNTS if key in spec}
            found.append(Analysed(name, label, cells, counts[kind] == 1, **accounts))
        return found

    @cached_property
    def analysed(self) -> set[str]:
        """Names of the cells that belong to some analysis."""
        return {c.name for analysis in self.analyses() for c in analysis.cells}

    def check(self) -> None:
        """Reads what every finished cell wrote.

        Raises:
          Damaged: a file is not what its cell wrote.
        """
        for cell in self.cells:
            if cell.done:
                _ = cell.config, cell.provenance, cell.result, cell.left_out
                cell.snapshot.read("metrics.jsonl")

    @property
    def missing(self) -> list[CellResult]:
        return [cell for cell in self.cells if not cell.done]


def read_study(study_folder: str | Path, runs_root: str | Path) -> StudyResults:
    """The results of a study so far.

    Raises:
      ConfigError: the folder has no readable study.json.
    """
    folder, root = Path(study_folder), Path(runs_root)
    spec = read_json(folder / "study.json")
    if not isinstance(spec, dict) or "cells" not in spec:
        raise ConfigError(
            f"{folder} has no study.json with cells; run the study first, or give the folder "
            "RUNS/studies/NAME"
        )
    cells = tuple(
        CellResult(
            cell["name"],
            cell["run_id"],
            cell["kind"],
            tuple(cell.get("parents", ())),
            CellFolder(
                root / (cell.get("folder") or f"cells/{cell['name']}-{cell['run_id']}"),
                cell["name"],
            ),
        )
        for cell in spec["cells"]
    )
    return StudyResults(folder, spec, cells)


def sweep_table(
    cells: Sequence[CellResult], params: str = "total", flops: str = "exact"
) -> list[dict[str, Any]]:
    """One row a finished pretraining cell that has a finite held-out loss: label, run_id, params,
    tokens, flops, loss, stderr, bits_per_byte, lr, batch_tokens, unique_tokens, seed.

    params: which count of the cell's parameters is N (`total`, `non_embedding`). flops: which
    convention is C.
    """
    rows = []
    for cell in cells:
        held, config = cell.pretrained, cell.config
        if held is None:
            continue
        rows.append(
            {
                "label": cell.name,
                "run_id": cell.run_id,
                "params": held.param_counts.get(params),
                "tokens": held.train_tokens,
                "flops": held.flops.get(flops),
                "loss": held.loss,
                "stderr": held.stderr,
                "bits_per_byte": held.bits_per_byte,
                "bits_per_byte_stderr": held.bits_per_byte_stderr,
                "lr": config.get("optim", {}).get("lr"),
                "batch_tokens": held.batch_tokens,
                "unique_tokens": config.get("unique_tokens"),
                "seed": config.get("seed"),
            }
        )
    return rows


def unique_rows(cells: Sequence[CellResult]) -> list[dict[str, Any]]:
    """The sweep's rows; where no subset was asked for, every token seen was unique."""
    return [
        row | {"unique_tokens": row["unique_tokens"] or row["tokens"]} for row in sweep_table(cells)
    ]


def training_curves(
    cells: Sequence[CellResult], params: str = "total", flops: str = "exact"
) -> list[Curve]:
    """The smoothed training loss of each finished run; cells that continue each other are one
    run."""
    by_name = {cell.name: cell for cell in cells}
    continued = {name for cell in cells for name in cell.parents}
    curves = []
    for last in cells:
        if last.name in continued or not last.done:
            continue
        chain = [last]
        while chain[0].parents and chain[0].parents[0] in by_name:
            chain.insert(0, by_name[chain[0].parents[0]])
        logged = [
            row for cell in chain for row in cell.column("flops", "tokens", "loss") if row[0] > 0
        ]
        (row,) = sweep_table([last], params, flops)
        if len(logged) < 20 or not row["params"] or not row["flops"]:
            continue
        c, d, loss = np.array(logged, float).T
        share = row["flops"] / row["tokens"] / (c[-1] / d[-1])  # of the exact FLOPs
        at, smoothed = smooth(c * share, loss)
        tokens = at / share * (d[-1] / c[-1])
        curves.append(Curve(last.name, row["params"], at, tokens, smoothed))
    return curves


def sweep_points(rows: Sequence[dict[str, Any]]) -> Points:
    """The rows as a table to fit. Standard errors are of the held-out sample, which all runs
    share."""
    return from_rows([{k: v for k, v in row.items() if v is not None} for row in rows])


def is_number(value: Any) -> TypeGuard[float]:
    """A finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
