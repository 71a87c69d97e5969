"""A cell: one unit of work of a study, described by science alone; and the interface of its kind.

A kind is a subclass of `Cell` with a `KIND` of its own. The defaults of the methods are for a kind
that starts from one model and that no other cell starts from.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from rlhf_jax.study.callables import KIND_FUNCTIONS, importable, load_callable
from rlhf_jax.study.config import Checked, ConfigError
from rlhf_jax.study.messages import shown, suggest
from rlhf_jax.study.ranges import Name

if TYPE_CHECKING:
    from rlhf_jax.kinds.needs import Need
    from rlhf_jax.study.graph import Study

# Fields that came after a release stay out of run ids while they have their default: a new option
# leaves finished runs what they were.
ADDED = {"added": True}

# Kinds by name: those of `rlhf_jax.kinds`, and those of study files as the study that was made last
# has them.
KNOWN: dict[str, type[Cell]] = {}


def option(default: Any, outside: str = "") -> Any:
    """A field that came after a release.

    Args:
        outside: what the field can name whose content enters run ids: a `callable` MODULE:FUNCTION;
            a `function`, which is a callable or a name without a colon; a `file` of records; or
            `records`, a callable or a file.
    """
    return field(default=default, metadata={**ADDED, "outside": outside})


def names_cell(value: Any) -> bool:
    """Whether the value of a parent's field is the name of a cell, rather than an import path or a
    file."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w-]+", value))


@dataclass(frozen=True)
class Cost:
    """An estimate for one cell.

    Attributes:
        flops: model FLOPs. decode_flops: the part spent sampling, one token a step.
        memory: bytes, beside the process itself. disk: bytes kept.
        tokens: None: `sequences` of the cell's `row_length` each.
        estimated: False: the kind has no estimate, and counts as nothing.
    """

    sequences: int = 0
    flops: float = 0.0
    decode_flops: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    tokens: int | None = None
    estimated: bool = True


@dataclass(frozen=True)
class Cell(Checked):
    """Base of all cells.

    Attributes:
        KIND: name of the kind, in files and messages.
        ROLES: what other cells can use it as; a field of `PARENTS` asks for a role. The roles of
            this package are in `rlhf_jax.kinds`. A role that needs code is a function of the same
            name in the module of the job: `reward(context, cell)`.
        PARENTS: field that names other cells -> the role that they must play.
        RESULT: frozen dataclass that the job returns; each field that is not None becomes
            `results/FIELD.json`.
        JOB: `run(context, cell)`, as MODULE:FUNCTION. SECTION: how the report shows cells of the
            kind. A module that begins with a dot is beside the class's own (the same package); no
            module is the class's own. In a module without a package (a study file, or one beside
            it) the defaults are functions `run` and `section` of that module.
        HELDOUT: the job measures a loss on the corpus's held-out set.

    A field `model: ModelConfig` says that the cell makes a model; others have their first parent's.
    A field `task: TaskConfig` says what the cell samples.
    """

    name: str  # that of a folder; a study checks it
    KIND: ClassVar[str] = "cell"
    ROLES: ClassVar[tuple[str, ...]] = ()
    PARENTS: ClassVar[dict[str, str]] = {}
    RESULT: ClassVar[type | None] = None
    JOB: ClassVar[str] = ".job:run"
    SECTION: ClassVar[str] = ".section:section"
    HELDOUT: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "KIND" not in vars(cls):
            return  # a base of several kinds
        other = KNOWN.get(cls.KIND) if isinstance(cls.KIND, str) else None
        if other and not other.from_outside() and other.__module__ != cls.__module__:
            raise ConfigError(
                f"KIND = {cls.KIND!r} of class {cls.__name__} is that of {other.__module__}."
                f"{other.__name__}; give the kind another name"
            )
        KNOWN[cls.KIND] = cls

    def _called(self) -> str:
        return self.name if isinstance(self.name, str) and 0 < len(self.name) <= 100 else self.KIND

    def roles(self) -> tuple[str, ...]:
        """`ROLES`, or those that the cell has as its fields are."""
        return self.ROLES

    # --- where the kind's functions are -------------------------------------------------------

    @classmethod
    def job_path(cls, function: str = "") -> str:
        """MODULE:FUNCTION of the job, or of another function of the job's module."""
        module, _, name = _beside(cls, cls.JOB).partition(":")
        return f"{module}:{function or name}"

    @classmethod
    def job_function(cls, name: str = "") -> Callable[..., Any]:
        """The job, or another function of its module.

        Raises:
            ConfigError: there is none, or its module cannot be imported.
        """
        path = cls.job_path(name)
        if name and importable(path) is None and importable(cls.job_path()) is not None:
            raise ConfigError(
                f"a {cls.KIND} cell plays the role {name!r}, but there is no function {path}; "
                "write it, or take the role out of ROLES"
            )
        return load_callable(path)

    def functions(self) -> dict[str, str]:
        """MODULE:FUNCTION of the job and of what plays the cell's roles beside it, by name."""
        paths = {role: self.job_path(role) for role in self.roles()}
        beside = {r: p for r, p in paths.items() if r in KIND_FUNCTIONS or importable(p)}
        return {"job": self.job_path(), **beside}

    @classmethod
    def report_section(cls) -> Callable[..., Any] | None:
        """The function that shows cells of the kind in a report; None: there is none."""
        path = _beside(cls, cls.SECTION)
        module, _, name = path.partition(":")
        if cls.SECTION == Cell.SECTION:
            there = sys.modules.get(module)
            if not (hasattr(there, name) if there else importlib.util.find_spec(module)):
                return None
        return load_callable(path)

    @classmethod
    def from_outside(cls) -> bool:
        """Whether the kind is a user's. Its job's content then enters run ids."""
        return not cls.__module__.startswith("rlhf_jax.")

    # --- the graph ----------------------------------------------------------------------------

    def parents(self) -> tuple[str, ...]:
        """Names of the cells that it starts from; the first one's model is its own."""
        named = (n for f in self.PARENTS for n in self.named(f))
        return tuple(dict.fromkeys(n for n in named if names_cell(n)))

    def named(self, parent_field: str) -> tuple[str, ...]:
        """What a field of `PARENTS` holds, one or several names."""
        value = getattr(self, parent_field)
        return value if isinstance(value, tuple) else () if value is None else (value,)

    def member_cells(self) -> tuple[str, ...]:
        """Cells whose models compute this one's output: itself, or the members of an ensemble."""
        return (self.name,)

    # --- resources ----------------------------------------------------------------------------

    def row_length(self, study: Study) -> int:
        """Tokens in one sequence."""
        task = getattr(self, "task", None)
        return task.prompt_len + task.response_len if task else study.corpus.seq_len

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        """accumulate: micro-batches of a step. `rlhf_jax.cost.formulas` has what formulas share."""
        return Cost(estimated=False)

    def batches(self, study: Study) -> Iterable[tuple[str, int, bool]]:
        """(field, rows, whether micro-batches divide them) of batches that the mesh divides."""
        return ()

    def together(self, study: Study) -> Any:
        """Cells of equal values may train as one program, by `run_together(contexts)` in the job's
        module; None: it runs alone."""
        return None

    # --- requirements, checked before anything runs: each raises ConfigError --------------------

    def check_in(self, study: Study) -> None:
        """Refuses settings that are wrong whatever the data, when a study is constructed."""

    def check_parents(self, study: Study) -> None:
        """Refuses settings that need more than its parents provide."""

    def check_as(self, role: str, study: Study, child: Cell) -> None:
        """Refuses to play a role for a cell that names it."""

    def check_corpus(self, train_tokens: int) -> None:
        """Refuses a corpus that is too small, once its size is known."""

    def scored(self, study: Study) -> Iterable[tuple[str, int, str]]:
        """(cell whose model scores them, longest sequence, what they are) of sequences that other
        cells' models score."""
        return ()

    def splits(self) -> Iterable[str]:
        """Splits of the corpus that it takes prompts from, beside the training split."""
        return ()

    def needs(self, study: Study) -> Iterator[Need]:
        """What the data must have (`rlhf_jax.kinds.needs`), beside the held-out set."""
        return iter(())

    def needs_as(self, role: str, study: Study, child: Cell) -> Iterator[Need]:
        """What the data must have for it to play a role for a cell that names it."""
        return iter(())

    def most_records(self, role: str) -> int | None:
        """How many records it gives to learn from at most, in a role; None: unknown."""
        return None

    def remarks(self, study: Study) -> Iterable[str]:
        """Warnings about settings that are allowed, but hardly intended."""
        return ()


def check_class(cell: Cell) -> None:
    """Refuses cells of a class that is not finished."""
    cls = type(cell)
    what = f"{cell.name}: class {cls.__name__}"
    if cls.KIND == Cell.KIND:
        raise ConfigError(f"{what} has no KIND; give it a name")
    if expected := Name().problem(cls.KIND) if isinstance(cls.KIND, str) else "a name":
        raise ConfigError(f"{what} has KIND = {shown(cls.KIND)}; expected {expected}")
    if "__annotations__" in vars(cls) and "__dataclass_fields__" not in vars(cls):
        raise ConfigError(f"{what} is not a dataclass; write @dataclass(frozen=True) above it")
    names = [f.name for f in fields(cls)]
    if taken := [name for name in names if callable(getattr(Cell, name, None))]:
        raise ConfigError(
            f"{what} has a field {taken[0]!r}, as a method of Cell is called; give it another name"
        )
    if not isinstance(cls.ROLES, tuple):
        raise ConfigError(f"{what} has ROLES = {shown(cls.ROLES)}; expected a tuple of names")
    if not isinstance(cls.PARENTS, dict):
        raise ConfigError(f"{what} has PARENTS = {shown(cls.PARENTS)}; expected field -> role")
    for name in cls.PARENTS:
        if name not in names:
            raise ConfigError(f"{what} has PARENTS of {name!r}, no field.{suggest(name, names)}")


def _beside(cls: type, path: str) -> str:
    """A class attribute JOB or SECTION as an absolute MODULE:FUNCTION."""
    module, _, name = path.partition(":")
    package = cls.__module__.rpartition(".")[0]
    if module.startswith("."):
        module = package + module if package else ""
    return f"{module or cls.__module__}:{name}"
