"""A study is a graph of cells, plus what to conclude from them.

A cell is one unit of work, described by science alone. Its run id is a hash of that description with
its parents' ids and the corpus hash in it, so equal work has one folder and is done once. Cells name
their parents; `Study` checks the graph before anything runs.
"""

from __future__ import annotations

import fnmatch
import functools
import graphlib
import importlib.util
import math
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf_jax.cells import Cell, Ensemble, Pretrain, names_cell
from rlhf_jax.config import (
    Checked,
    ConfigError,
    CorpusConfig,
    ModelConfig,
    content_id,
    override,
    suggest,
    to_json,
)
from rlhf_jax.outside import file_hash, is_callable

if TYPE_CHECKING:
    from rlhf_jax.data.recipes import Digests


@dataclass(frozen=True)
class Analysis(Checked):
    """What to conclude from some cells (names or globs).

    kind: `isoflop`, compute-optimal sizes by the approaches of Hoffmann 2022; `lr_check`, one size at
    several learning rates; `lr_law`, several sizes and batches at several learning rates;
    `data_constrained`, repeated text; `overoptimization`, best-of-n and PPO cells against the rewards
    that they name, seeds of one reward (names that differ in `-s3` or a last `-3` alone) together.

    Of an isoflop analysis: `params` and `flops` are what counts as N and C. `loss` says where losses at
    equal C come from: `heldout`, the cells of each planned budget; `ends`, a size's held-out losses at
    its horizons, interpolated; `curve`, its training curve (cells that continue each other joined), read
    on the way as Kaplan 2020 did. `window`: approach 2 leaves a budget's runs out of its parabola beyond
    this factor of its best size; None: every run counts.
    """

    LABEL = "analysis"
    kind: Literal["isoflop", "lr_check", "lr_law", "data_constrained", "overoptimization"]
    cells: tuple[str, ...]
    label: str = ""
    params: Literal["total", "non_embedding"] = "total"
    flops: Literal["exact", "6nd", "kaplan", "palm", "porian", "porian_attention"] = "exact"
    loss: Literal["heldout", "ends", "curve"] = "heldout"
    window: float | None = 4.0

    def check(self) -> None:
        if self.window is not None and not 1 < self.window < math.inf:
            raise ConfigError(f"window is {self.window}; it must be a factor above 1, or None")


@dataclass(frozen=True)
class Study(Checked):
    """A directed acyclic graph of cells over one corpus. Construction checks everything that can be
    checked without data and raises ConfigError."""

    LABEL = "study"
    name: str
    cells: tuple[Cell, ...]
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    analyses: tuple[Analysis, ...] = ()
    title: str = ""
    members: int = 16  # at most, of a population (`rlhf_jax.populations`); 1: every cell on its own

    def check(self) -> None:
        if self.members < 1:
            raise ConfigError(f"members is {self.members}; a population has at least 1")
        names = [c.name for c in self.cells]
        for name in [self.name, *names]:
            if not name or not all(ch.isalnum() or ch in "-_" for ch in name):
                raise ConfigError(f"name {name!r}: use letters, digits, '-' and '_'")
        if twice := {n for n, count in Counter(names).items() if count > 1}:
            raise ConfigError(f"two cells are named {', '.join(sorted(twice))}; names are unique")
        self.order()
        for cell in self.cells:
            self._check(cell)
        for analysis in self.analyses:
            self.select(analysis.cells)

    def __getitem__(self, name: str) -> Cell:
        if (cell := self._by_name.get(name)) is not None:
            return cell
        raise ConfigError(f"no cell {name!r} in study {self.name!r}."
                          + suggest(name, [c.name for c in self.cells]))  # fmt: skip

    @functools.cached_property
    def _by_name(self) -> dict[str, Cell]:
        return {cell.name: cell for cell in self.cells}

    def order(self) -> list[Cell]:
        """Cells, parents first. Cycles and unknown parents are ConfigErrors."""
        return list(self._order)

    @functools.cached_property
    def _order(self) -> list[Cell]:
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
        chosen: set[str] = set()
        for p in patterns:
            matches = {p} & self._by_name.keys() or set(fnmatch.filter(self._by_name, p))
            if not matches:
                raise ConfigError(
                    f"no cell matches {p!r}.{suggest(p, [c.name for c in self.cells])}"
                )
            chosen |= matches
        return [c for c in self.cells if c.name in chosen]

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
            elsewhere = type(cell).__dataclass_fields__[fld].metadata.get("outside")
            for named in cell.named(fld):
                if not names_cell(named):
                    if elsewhere:
                        continue
                    raise ConfigError(
                        f"{cell.name}.{fld} = {named!r}; expected the name of a cell: letters, "
                        "digits, '-' and '_'"
                    )
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
            self._check_tokens(cell)

    def _check_tokens(self, cell: Pretrain) -> None:
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
            for name in ("seed", "unique_tokens"):
                own, before = getattr(cell, name), getattr(parent, name)
                if own != before and not cell.repeat:
                    raise ConfigError(
                        f"{cell.name}.{name} = {own}, but it continues {parent.name!r}, which has "
                        f"{before}: another order, in which text comes twice. Set {name} = "
                        f"{before}, or repeat = True to allow that"
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

    @functools.cached_property
    def outside(self) -> dict[str, str]:
        """Content hash of every callable and file of records that cells name, as it was when first
        asked for, so that a run id does not change while its cell runs.

        Raises:
            ConfigError: one that is not there, or whose content cannot be read.
        """
        from rlhf_jax.data.recipes import Digests  # numpy: not for every command

        return self.remembered(Digests(None))

    def remembered(self, digests: Digests) -> dict[str, str]:
        """`outside`, where what is gone is as `digests` remember it; what that is goes to standard
        error."""
        from rlhf_jax.data.integrity import warn

        found = {}
        for name, is_file in sorted({named for cell in self.cells for named in _outside(cell)}):
            found[name], gone = digests.of(name, is_file)
            if gone:
                warn(f"no longer there: {name}; cells that have used it stay what they are")
        digests.save()
        return found

    def unchanged(self, path: str) -> str:
        """The path of a file of records, which must be what it was when run ids were made.

        Raises:
            ConfigError: it is not.
        """
        if file_hash(path) != self.outside[path]:
            raise ConfigError(f"{path} has changed since this run began; run the study again")
        return path

    def run_ids(self, corpus_hash: str) -> dict[str, str]:
        """Cell name -> run id."""
        if corpus_hash not in self._run_ids:
            self._run_ids[corpus_hash] = self._make_run_ids(corpus_hash)
        return dict(self._run_ids[corpus_hash])

    @functools.cached_property
    def _run_ids(self) -> dict[str, dict[str, str]]:
        return {}

    def _make_run_ids(self, corpus_hash: str) -> dict[str, str]:
        ids: dict[str, str] = {}
        for cell in self.order():
            science = _science(cell, ids, self.outside)
            data = {"corpus": corpus_hash, "heldout_tokens": self.corpus.heldout_tokens}
            ids[cell.name] = content_id({"kind": cell.KIND, **data, **science})
        return ids


def _outside(obj: Any) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a file rather than a callable) of what a cell names that is no cell."""
    parents = getattr(obj, "PARENTS", {})
    for f in fields(obj):
        value, allowed = getattr(obj, f.name), f.metadata.get("outside")
        if is_dataclass(value):
            yield from _outside(value)
        elif allowed and value != "":
            for named in obj.named(f.name) if f.name in parents else (value,):
                if not (f.name in parents and names_cell(named)):
                    yield (
                        named,
                        allowed == "file" or (allowed == "records" and not is_callable(named)),
                    )


def _science(obj: Any, ids: dict[str, str], outside: dict[str, str]) -> dict[str, Any]:
    """The fields of a cell as they enter its run id: ids for names of cells, content for files of
    records, and import path and content for callables."""
    found: dict[str, Any] = {}
    parents = getattr(obj, "PARENTS", {})
    files = {name for name, is_file in _outside(obj) if is_file}
    for f in fields(obj):
        value = getattr(obj, f.name)
        if f.name == "name" or (f.metadata.get("added") and value == f.default):
            continue
        if f.name in parents:
            named = [outside[n] if n in files else ids.get(n, n) for n in obj.named(f.name)]
            found[f.name] = named if isinstance(value, tuple) else named[0] if named else None
        else:
            found[f.name] = _science(value, ids, outside) if is_dataclass(value) else to_json(value)
        if f.metadata.get("outside") and value in outside and value not in files:
            found[f.name + "_source"] = outside[value]
    return found


def load_study(
    path: str | Path,
    tiny: bool = False,
    overrides: Sequence[str] = (),
    runs: str | Path | None = None,
) -> Study:
    """The study that a Python file describes with its function `study(tiny: bool) -> Study`. The file
    can import its neighbours, as a script can.

    Overrides are `CELL.field=value` (a glob of cell names may stand for CELL) or `corpus.field=value`.
    `runs`: the root of run folders, which remembers the content of files of records that are gone.
    """
    from rlhf_jax.data.recipes import Digests

    path = Path(path)
    if not path.is_file():
        near = sorted(Path("experiments").glob("*.py"))
        raise ConfigError(f"no study file {path}." + suggest(str(path), [str(p) for p in near]))
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; a study's name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "study", None)):
            raise ConfigError("it has no function study(tiny: bool) -> Study")
        study = module.study(tiny=tiny)
    except Exception as e:
        raise ConfigError(f"{path}{_line_of(e, path)}: {_said(e)}") from e
    if not isinstance(study, Study):
        raise ConfigError(f"{path}: study() returns {type(study).__name__}; expected a Study")
    for text in overrides:
        study = _override_study(study, text)
    # What is not there is refused before anything is done.
    vars(study)["outside"] = study.remembered(Digests(Path(runs) / "data" if runs else None))
    return study


def _line_of(error: Exception, path: Path) -> str:
    """The line of a study file at which it failed."""
    places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    lines = [n for name, n in places if Path(name).resolve() == path.resolve()]
    return f", line {lines[-1]}" if lines else ""


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"


def _override_study(study: Study, text: str) -> Study:
    head, dot, rest = text.partition(".")
    if not dot or "=" in head:
        raise ConfigError(f"override {text!r}: expected CELL.field=value or corpus.field=value")
    if head == "corpus":
        return replace(study, corpus=override(study.corpus, [rest], "corpus"))
    chosen = {c.name for c in study.select([head])}
    cells = tuple(override(c, [rest], c.name) if c.name in chosen else c for c in study.cells)
    return replace(study, cells=cells)
