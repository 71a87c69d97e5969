"""A study is a graph of cells, plus what to conclude from them.

A cell is one unit of work, described by science alone. Its run id is a hash of that description with
its parents' ids and the corpus hash in it, so equal work has one folder and is done once. Cells name
their parents; `Study` checks the graph before anything runs.
"""

from __future__ import annotations

import fnmatch
import graphlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_jax.cells import Cell, Ensemble, Pretrain, names_cell
from rlhf_jax.config import (
    ConfigError,
    CorpusConfig,
    ModelConfig,
    content_id,
    override,
    suggest,
    to_json,
)
from rlhf_jax.outside import file_hash, source_hash

ANALYSES = ("isoflop", "lr_check", "lr_law", "data_constrained", "overoptimization")
ACCOUNTS = {
    "params": ("total", "non_embedding"),
    "flops": ("exact", "6nd", "kaplan", "palm", "porian", "porian_attention"),
    "loss": ("heldout", "ends", "curve"),
}


@dataclass(frozen=True)
class Analysis:
    """What to conclude from some cells (names or globs).

    kind: `isoflop`, compute-optimal sizes by the approaches of Hoffmann 2022; `lr_check`, one size at
    several learning rates; `lr_law`, several sizes and batches at several learning rates;
    `data_constrained`, repeated text; `overoptimization`, best-of-n and PPO cells against the rewards
    that they name, seeds of one reward (names that differ in `-s3` or a last `-3` alone) together.

    Of an isoflop analysis: `params` and `flops` are what counts as N and C. `loss` says where losses at
    equal C come from: `heldout`, the cells of each planned budget; `ends`, a size's held-out losses at
    its horizons, interpolated; `curve`, its training curve (cells that continue each other joined), read
    on the way as Kaplan 2020 did.
    """

    kind: str
    cells: tuple[str, ...]
    label: str = ""
    params: str = "total"
    flops: str = "exact"
    loss: str = "heldout"

    def __post_init__(self) -> None:
        for name, known in (("kind", ANALYSES), *ACCOUNTS.items()):
            if (given := getattr(self, name)) not in known:
                raise ConfigError(f"analysis {name} = {given!r}.{suggest(given, list(known))}")


@dataclass(frozen=True)
class Study:
    """A directed acyclic graph of cells over one corpus. Construction checks everything that can be
    checked without data and raises ConfigError."""

    name: str
    cells: tuple[Cell, ...]
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    analyses: tuple[Analysis, ...] = ()
    title: str = ""
    members: int = 16  # at most, of a population (`rlhf_jax.populations`); 1: every cell on its own

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ConfigError(f"members is {self.members}; a population has at least 1")
        names = [c.name for c in self.cells]
        for name in [self.name, *names]:
            if not name or not all(ch.isalnum() or ch in "-_" for ch in name):
                raise ConfigError(f"name {name!r}: use letters, digits, '-' and '_'")
        if twice := {n for n in names if names.count(n) > 1}:
            raise ConfigError(f"two cells are named {', '.join(sorted(twice))}; names are unique")
        self.order()
        for cell in self.cells:
            self._check(cell)
        for analysis in self.analyses:
            self.select(analysis.cells)

    def __getitem__(self, name: str) -> Cell:
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise ConfigError(f"no cell {name!r} in study {self.name!r}."
                          + suggest(name, [c.name for c in self.cells]))  # fmt: skip

    def order(self) -> list[Cell]:
        """Cells, parents first. Cycles and unknown parents are ConfigErrors."""
        graph = {c.name: c.parents() for c in self.cells}
        for child, parents in graph.items():
            for parent in parents:
                if parent not in graph:
                    raise ConfigError(
                        f"cell {child!r} starts from {parent!r}, which is not in the study."
                        + suggest(parent, [n for n in graph if n != child])
                    )
        try:
            names = list(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError as e:
            raise ConfigError(
                f"cells depend on each other in a circle: {' -> '.join(e.args[1])}"
            ) from None
        return [self[n] for n in names]

    def select(self, patterns: Sequence[str]) -> list[Cell]:
        """Cells whose name matches one of the globs; a pattern that matches nothing is an error."""
        for p in patterns:
            if not any(fnmatch.fnmatch(c.name, p) for c in self.cells):
                raise ConfigError(
                    f"no cell matches {p!r}.{suggest(p, [c.name for c in self.cells])}"
                )
        return [c for c in self.cells if any(fnmatch.fnmatch(c.name, p) for p in patterns)]

    def model_of(self, cell: Cell) -> ModelConfig:
        """The shape of the model that a cell trains or runs."""
        while not isinstance(cell, Pretrain):
            cell = self[cell.parents()[0]]
        return cell.model

    def reward_models(self, name: str) -> tuple[str, ...]:
        """The reward cells behind a name: itself, or an ensemble's members; none of a callable."""
        if not names_cell(name):
            return ()
        cell = self[name]
        return cell.members if isinstance(cell, Ensemble) else (name,)

    def _check(self, cell: Cell) -> None:
        for fld, kinds in cell.PARENTS.items():
            for named in filter(names_cell, cell.named(fld)):
                if self[named].KIND not in kinds:
                    raise ConfigError(
                        f"{cell.name}.{fld} = {named!r} is a {self[named].KIND} cell; "
                        f"expected one of: {', '.join(kinds)}"
                    )
        model = self.model_of(cell)
        if model.vocab != self.corpus.vocab:
            raise ConfigError(
                f"{cell.name}: model.vocab = {model.vocab}, but the tokenizer has corpus.vocab = "
                f"{self.corpus.vocab}; they must be equal"
            )
        task = getattr(cell, "task", None)
        longest = task.prompt_len + task.response_len if task else self.corpus.seq_len
        if longest > model.max_positions:
            raise ConfigError(
                f"{cell.name}: sequences of {longest} tokens, but model.max_positions = "
                f"{model.max_positions}; shorten them or raise it"
            )
        if isinstance(cell, Pretrain):
            step = cell.batch * self.corpus.seq_len
            if cell.unique_tokens is not None and cell.unique_tokens < self.corpus.seq_len:
                raise ConfigError(
                    f"{cell.name}: unique_tokens = {cell.unique_tokens} is less than one row "
                    f"({self.corpus.seq_len})"
                )
            if cell.tokens < step:
                raise ConfigError(
                    f"{cell.name}: tokens = {cell.tokens} is less than one batch ({step})"
                )
            if cell.continues:
                parent = self[cell.continues]
                assert isinstance(parent, Pretrain)
                if cell.model != parent.model or cell.batch != parent.batch:
                    raise ConfigError(
                        f"{cell.name} continues {parent.name!r}: model and batch must agree"
                    )
                if cell.tokens < parent.tokens + step:
                    raise ConfigError(
                        f"{cell.name} continues {parent.name!r}, which has seen {parent.tokens} tokens "
                        f"already; tokens = {cell.tokens} counts those too and must be larger"
                    )

    def check_corpus(self, train_tokens: int) -> None:
        """Refuse cells that would see text twice without having asked for it (`repeat`), or that ask
        for more unique tokens than there are."""
        for cell in self.cells:
            if not isinstance(cell, Pretrain):
                continue
            if (cell.unique_tokens or 0) > train_tokens:
                raise ConfigError(
                    f"{cell.name}: unique_tokens = {cell.unique_tokens:,}, but the corpus has "
                    f"{train_tokens:,} training tokens; add sources or lower it"
                )
            unique = cell.unique_tokens or train_tokens
            if not cell.repeat and cell.tokens > unique:
                raise ConfigError(
                    f"{cell.name}: tokens = {cell.tokens:,}, but there are {unique:,} unique "
                    "training tokens; add sources, lower tokens, or set repeat=true"
                )

    def run_ids(self, corpus_hash: str) -> dict[str, str]:
        """Cell name -> run id."""
        ids: dict[str, str] = {}
        for cell in self.order():
            science = _science(cell, ids)
            data = {"corpus": corpus_hash, "heldout_tokens": self.corpus.heldout_tokens}
            ids[cell.name] = content_id({"kind": cell.KIND, **data, **science})
        return ids


def _science(obj: Any, ids: dict[str, str]) -> dict[str, Any]:
    """The fields of a cell as they enter its run id: ids for names of cells, and the content of what
    lies outside (callables, files of records) beside what names it."""
    found: dict[str, Any] = {}
    parents = getattr(obj, "PARENTS", {})
    for f in fields(obj):
        value = getattr(obj, f.name)
        if f.name == "name" or (f.metadata.get("added") and value == f.default):
            continue
        if f.name in parents:
            named = [ids.get(n, n) for n in obj.named(f.name)]
            found[f.name] = named if isinstance(value, tuple) else named[0] if named else None
        else:
            found[f.name] = _science(value, ids) if is_dataclass(value) else to_json(value)
        if isinstance(value, str) and (f.name in parents or f.metadata.get("outside")):
            if ":" in value:
                found[f.name + "_source"] = source_hash(value)
            elif value and not names_cell(value):
                found[f.name + "_source"] = file_hash(value)
    return found


def load_study(path: str | Path, tiny: bool = False, overrides: Sequence[str] = ()) -> Study:
    """The study that a Python file describes with its function `study(tiny: bool) -> Study`. The file
    can import its neighbours, as a script can.

    Overrides are `CELL.field=value` (a glob of cell names may stand for CELL) or `corpus.field=value`.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(Path("experiments").glob("*.py"))
        raise ConfigError(f"no study file {path}." + suggest(str(path), [str(p) for p in near]))
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, "study", None)):
        raise ConfigError(f"{path} has no function study(tiny: bool) -> Study")
    study: Study = module.study(tiny=tiny)
    for text in overrides:
        study = _override_study(study, text)
    for cell in study.cells:
        _science(
            cell, {}
        )  # callables and files that are not there are refused before anything is done
    return study


def _override_study(study: Study, text: str) -> Study:
    head, dot, rest = text.partition(".")
    if not dot or "=" in head:
        raise ConfigError(f"override {text!r}: expected CELL.field=value or corpus.field=value")
    if head == "corpus":
        return replace(study, corpus=override(study.corpus, [rest], "corpus"))
    chosen = {c.name for c in study.select([head])}
    cells = tuple(override(c, [rest], c.name) if c.name in chosen else c for c in study.cells)
    return replace(study, cells=cells)
