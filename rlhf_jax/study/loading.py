"""Study files: Python that describes a study, read with overrides and checked."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

from rlhf_jax.study.callables import (
    ARGUMENTS,
    KIND_FUNCTIONS,
    check_call,
    importable,
    is_callable,
    line_of,
    passed,
    raised,
    said,
)
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import ConfigError, assignment, override
from rlhf_jax.study.digests import Digests
from rlhf_jax.study.graph import Study, named_outside
from rlhf_jax.study.messages import shown, suggest


def load_study(
    path: str | Path,
    tiny: bool = False,
    overrides: Sequence[str] = (),
    runs: str | Path | None = None,
) -> Study:
    """The study that a Python file describes with its function `study(tiny: bool) -> Study`. The
    file can import its neighbours, as a script can.

    Overrides are `CELL.field=value` (a glob of cell names may stand for CELL) or
    `corpus.field=value`. `runs`: the root of run folders, which remembers the content of files of
    records that are gone.
    """
    path = Path(path)
    if not os.path.isfile(path):
        near = sorted(Path("experiments").glob("*.py"))
        folder = ", which is a folder" if os.path.isdir(path) else ""
        known = suggest(str(path), [str(p) for p in near]) if near else ""
        raise ConfigError(f"no study file {path}{folder}.{known}")
    study = _overridden(_described(path, tiny), overrides)
    # What is not there, or cannot be called, is refused before anything is done.
    _check_callables(study)
    vars(study)["outside"] = study.remembered(Digests(Path(runs) / "data" if runs else None))
    return study


def _described(path: Path, tiny: bool) -> Study:
    """The study of a file. What the file prints goes to standard error: standard output is a
    command's own."""
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; a study's name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
            function = getattr(module, "study", None)
            if function is None:
                raise ConfigError("it has no function study(tiny: bool) -> Study; write one")
            check_call(function, "study", (), ("tiny",))
            study = function(tiny=tiny)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # of the user's file, whatever it is; sys.exit too
        elsewhere = "" if isinstance(e, ConfigError) else raised(e, path)
        raise ConfigError(f"{path}{passed(e, path)}: {said(e)}{elsewhere}") from e
    if not isinstance(study, Study):
        forgot = " (is `return` missing?)" if study is None else ""
        raise ConfigError(
            f"{path}{line_of(function)}: study() returns {type(study).__name__}{forgot}; expected "
            f"a Study of rlhf_jax.study"
        )
    return study


def _check_callables(study: Study) -> None:
    """Refuses callables that cannot take what they will be given; those that are gone are known."""
    named = [("corpus.sources", name) for name in study.corpus.sources if is_callable(name)]
    for cell in study.cells:
        named += [(where, name) for where, name, is_file in named_outside(cell) if not is_file]
    checked: set[tuple[str, tuple[str, ...]]] = set()
    for where, name in named:
        field_name = where.rpartition(".")[2]
        arguments = ARGUMENTS.get(field_name)
        if arguments is None or (name, arguments) in checked:
            continue
        if (function := importable(name)) is not None:
            check_call(function, f"{where} = {name!r}", arguments)
        checked.add((name, arguments))
    for cell in study.cells:
        if cell.from_outside():
            _check_result(cell)


def _check_result(cell: Cell) -> None:
    """Refuses a user's kind whose job cannot give what it says."""
    cls, result = type(cell), cell.RESULT
    if not (is_dataclass(result) and result.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ConfigError(
            f"{cell.name}: {cls.__name__}.RESULT = {shown(result)}; expected the frozen dataclass "
            f"that its job returns, each field of which becomes results/FIELD.json"
        )
    try:
        get_type_hints(result)
    except NameError as e:
        raise ConfigError(f"{cell.name}: {cls.__name__}.RESULT: {e}; import the type") from None
    if (job := importable(cell.job_path())) is None:
        return
    for role in cell.roles():
        if role in KIND_FUNCTIONS:
            cell.job_function(role)
    given = getattr(job, "__annotations__", {}).get("return", result)
    if isinstance(given, str):  # a name that only type checkers import says nothing
        given = getattr(job, "__globals__", {}).get(given, result)
    if given is not result:
        raise ConfigError(
            f"{cell.name}: its job {cell.job_path()}{line_of(job)} returns "
            f"{getattr(given, '__name__', given)}; expected {cls.__name__}.RESULT, which is "
            f"{result.__name__}"
        )


def _overridden(study: Study, overrides: Sequence[str]) -> Study:
    """The study with all overrides, which are checked together."""
    changes: dict[str, list[str]] = defaultdict(list)
    for text in overrides:
        (head, *rest), _ = assignment(text)
        if not rest:
            raise ConfigError(f"override {text!r}: expected CELL.field=value or corpus.field=value")
        for name in [head] if head == "corpus" else [c.name for c in study.select([head])]:
            changes[name].append(text.partition(".")[2])
    if not changes:
        return study
    corpus = override(study.corpus, changes.pop("corpus", ()), "corpus")
    cells = tuple(
        override(c, changes[c.name], c.name) if c.name in changes else c for c in study.cells
    )
    return replace(study, cells=cells, corpus=corpus)
