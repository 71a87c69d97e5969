"""A study is a graph of cells, plus what to conclude from them.

A cell is one unit of work, described by science alone. Its run id is a hash of that description
with its parents' ids and the corpus hash in it, so equal work has one folder and is done once.
Cells name their parents; `Study` checks the graph before anything runs.
"""

from __future__ import annotations

import fnmatch
import functools
import graphlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, get_type_hints

from rlhf_jax.study.callables import KIND_FUNCTIONS, OF_KIND, file_hash, is_callable
from rlhf_jax.study.cell import KNOWN, Cell, check_class, names_cell
from rlhf_jax.study.config import (
    Checked,
    ConfigError,
    CorpusConfig,
    ModelConfig,
    check_names,
    content_id,
    to_json,
)
from rlhf_jax.study.digests import Digests
from rlhf_jax.study.messages import shown, suggest, warn
from rlhf_jax.study.ranges import Count, Name, Range, Title


@dataclass(frozen=True)
class Analysis(Checked):
    """What to conclude from some cells (names or globs).

    kind: `isoflop`, compute-optimal sizes by the approaches of Hoffmann 2022; `lr_check`, one size
    at several learning rates; `lr_law`, several sizes and batches at several learning rates;
    `data_constrained`, repeated text; `overoptimization`, best-of-n and PPO cells against the
    rewards that they name, seeds of one reward (names that differ in `-s3` or a last `-3` alone)
    together.

    Of an isoflop analysis: `params` and `flops` are what counts as N and C. `loss` says where
    losses at
    equal C come from: `heldout`, the cells of each planned budget; `ends`, a size's held-out losses
    at its horizons, interpolated; `curve`, its training curve (cells that continue each other
    joined), read on the way as Kaplan 2020 did. `window`: approach 2 leaves a budget's runs out of
    its parabola beyond this factor of its best size; None: every run counts.
    """

    LABEL = "analysis"
    kind: Literal["isoflop", "lr_check", "lr_law", "data_constrained", "overoptimization"]
    cells: tuple[str, ...]
    label: Annotated[str, Title()] = ""
    params: Literal["total", "non_embedding"] = "total"
    flops: Literal["exact", "6nd", "kaplan", "palm", "porian", "porian_attention"] = "exact"
    loss: Literal["heldout", "ends", "curve"] = "heldout"
    window: Annotated[float, Range(1, above=True)] | None = 4.0

    def check(self) -> None:
        check_names(self.cells, "analysis.cells")
        if self.kind != "isoflop":
            for name in ("params", "flops", "loss", "window"):
                self.unused(name, "kind = 'isoflop'")


@dataclass(frozen=True)
class Study(Checked):
    """A directed acyclic graph of cells over one corpus. Construction checks everything that can be
    checked without data and raises ConfigError."""

    LABEL = "study"
    name: Annotated[str, Name()]
    cells: tuple[Cell, ...]
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    analyses: tuple[Analysis, ...] = ()
    title: Annotated[str, Title()] = ""
    members: Count = (
        16  # of a population at most (`rlhf_jax.study.populations`); 1: each cell alone
    )

    def check(self) -> None:
        if not self.cells:
            raise ConfigError(f"study {self.name!r} has no cells; expected at least one")
        known = {"corpus": "corpus"}  # whose fields overrides call so
        for i, cell in enumerate(self.cells):
            if expected := Name().problem(cell.name):
                raise ConfigError(
                    f"study.cells[{i}].name = {shown(cell.name)}; expected {expected}"
                )
            other = known.setdefault(cell.name.casefold(), cell.name)
            if other == "corpus":
                raise ConfigError(
                    f"study.cells[{i}] is named {cell.name!r}, as overrides call the corpus"
                )
            if len(known) < i + 2:
                raise ConfigError(
                    f"two cells are named {cell.name}"
                    + f" and {other}" * (other != cell.name)
                    + "; names are unique, and differ in more than capitals, which some file "
                    "systems do not tell apart"
                )
        kinds: dict[str, type[Cell]] = {}
        for cell in self.cells:
            check_class(cell)
            if (first := kinds.setdefault(cell.KIND, type(cell))) is not type(cell):
                raise ConfigError(
                    f"{cell.name}: class {type(cell).__name__} and {first.__module__}."
                    f"{first.__name__} both have KIND = {cell.KIND!r}; give one another name"
                )
        KNOWN.update(kinds)
        self.order()
        for cell in self.cells:
            self._check(cell)
        for analysis in self.analyses:
            self.select(analysis.cells)

    def __getitem__(self, name: str) -> Cell:
        if (cell := self._by_name.get(name)) is not None:
            return cell
        raise ConfigError(
            f"no cell {name!r} in study {self.name!r}."
            + suggest(name, [c.name for c in self.cells])
        )

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

    def origin(self, cell: Cell) -> Cell | None:
        """The cell that made a cell's model: the first of its first parents with a field `model`;
        None: it has no model."""
        while not isinstance(getattr(cell, "model", None), ModelConfig):
            if not cell.parents():
                return None
            cell = self[cell.parents()[0]]
        return cell

    def model_of(self, cell: Cell) -> ModelConfig:
        """The shape of the model that a cell trains or runs.

        Raises:
            ConfigError: it has none.
        """
        if (origin := self.origin(cell)) is None:
            raise ConfigError(
                f"{cell.name} is a {cell.KIND} cell, which has no model: neither a field `model` "
                f"nor a parent with one"
            )
        return origin.model  # type: ignore[attr-defined, no-any-return]

    def reward_models(self, name: str) -> tuple[str, ...]:
        """The cells whose models are behind a name: itself, or those of an ensemble; none of a
        callable, or of a cell without a model."""
        cells = self[name].member_cells() if names_cell(name) else ()
        return tuple(c for c in cells if self.origin(self[c]) is not None)

    def _check(self, cell: Cell) -> None:
        for fld, role in cell.PARENTS.items():
            elsewhere = type(cell).__dataclass_fields__[fld].metadata.get("outside")
            for named in cell.named(fld):
                if not names_cell(named):
                    if elsewhere and named:
                        continue
                    raise ConfigError(
                        f"{cell.name}.{fld} = {named!r}; expected the name of a cell: letters, "
                        "digits, '-' and '_'"
                    )
                if role not in self[named].roles():
                    able = sorted(k for k, c in KNOWN.items() if role in c.ROLES)
                    if not able and role not in KIND_FUNCTIONS:
                        raise ConfigError(
                            f"{cell.name}.{fld}: no kind plays the role {role!r}."
                            f"{suggest(role, sorted({r for c in KNOWN.values() for r in c.ROLES}))}"
                        )
                    raise ConfigError(
                        f"{cell.name}.{fld} = {named!r} is a {self[named].KIND} cell; "
                        f"expected one that can be a {role.replace('_', ' ')}: {', '.join(able)}"
                    )
        if self.origin(cell) is not None:
            self._check_model(cell, self.model_of(cell))
        cell.check_in(self)

    def _check_model(self, cell: Cell, model: ModelConfig) -> None:
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

    def check_corpus(self, train_tokens: int) -> None:
        """Refuses cells that the corpus is too small for."""
        for cell in self.cells:
            cell.check_corpus(train_tokens)

    @functools.cached_property
    def outside(self) -> dict[str, str]:
        """Content hash of every callable and file of records that cells name. It is computed once,
        so that a run id does not change while its cell runs.

        Raises:
            ConfigError: one that is not there, or whose content cannot be read.
        """
        return self.remembered(Digests(None))

    def remembered(self, digests: Digests) -> dict[str, str]:
        """`outside`, with the hash in `digests` of what no longer exists; a warning names that."""
        found = {}
        named = {
            (name, is_file): where for c in self.cells for where, name, is_file in named_outside(c)
        }
        for (name, is_file), where in sorted(named.items()):
            try:
                found[name], gone = digests.of(name, is_file)
            except ConfigError as e:
                raise ConfigError(f"{where}: {e}") from e
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
            if cell.from_outside():
                science |= {name: self.outside[path] for name, path in cell.functions().items()}
            data = {"corpus": corpus_hash, "heldout_tokens": self.corpus.heldout_tokens}
            ids[cell.name] = content_id({"kind": cell.KIND, **data, **science})
        return ids


def named_outside(cell: Cell) -> Iterator[tuple[str, str, bool]]:
    """`_outside` of a cell, and the functions of its kind if that is a user's."""
    yield from _outside(cell, cell.name)
    for name, path in cell.functions().items() if cell.from_outside() else ():
        yield f"{cell.name}.{name}{OF_KIND}", path, False


def _outside(obj: Any, where: str) -> Iterator[tuple[str, str, bool]]:
    """(field, name, whether it is a file rather than a callable) of what a cell names that is no
    cell."""
    if not _names_others(obj.__class__):
        return
    parents = getattr(obj, "PARENTS", {})
    for f in fields(obj):
        value, allowed, path = getattr(obj, f.name), f.metadata.get("outside"), f"{where}.{f.name}"
        if is_dataclass(value):
            yield from _outside(value, path)
        elif allowed and value != "":
            for named in obj.named(f.name) if f.name in parents else (value,):
                if not (f.name in parents and names_cell(named)):
                    if allowed == "function" and ":" not in named:
                        continue
                    called = allowed in ("callable", "function")
                    yield path, named, not (called or (allowed == "records" and is_callable(named)))


@functools.cache
def _names_others(cls: type) -> bool:
    """Whether a field, or one of a configuration in it, can name a callable or a file."""
    hints = get_type_hints(cls)
    return any(
        f.metadata.get("outside") or (is_dataclass(hints[f.name]) and _names_others(hints[f.name]))
        for f in fields(cls)
    )


def _science(obj: Any, ids: dict[str, str], outside: dict[str, str]) -> dict[str, Any]:
    """The fields of a cell as they enter its run id: ids for names of cells, content for files of
    records, and import path and content for callables."""
    found: dict[str, Any] = {}
    parents = getattr(obj, "PARENTS", {})
    files = {name for _, name, is_file in _outside(obj, "") if is_file}
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
