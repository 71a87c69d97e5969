"""The source code of functions, classes and modules, read for content hashes."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from rlhf_jax.study.config import ConfigError

_INSTALLED = {sysconfig.get_path(p) for p in ("stdlib", "platstdlib", "purelib", "platlib")}


def source_of(item: Any) -> str | None:
    """The source of a function or class; None of a class that no statement defines, and of
    built-in code.

    Raises:
        ConfigError: a function that is in no file.
    """
    try:
        return inspect.getsource(getattr(item, "__code__", item))
    except (OSError, TypeError):
        if not hasattr(item, "__code__"):
            return None
        raise ConfigError(
            f"the source of {item.__qualname__!r} cannot be read, so run ids cannot depend on it; "
            "define it with `def` in a file"
        ) from None


@functools.cache
def installed(file: str) -> bool:
    """Whether a file is of an installed package, of Python, or of this one."""
    path = Path(file)
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    folders = (*_INSTALLED, str(Path(__file__).parents[1]))
    return any(path.is_relative_to(folder) for folder in folders)


def names_in(code: CodeType) -> set[str]:
    """Names of globals and attributes in a function, and in the functions within it."""
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    own = {name for name in code.co_names if not name.startswith("__")}
    return own.union(*map(names_in, inner))


def names_loaded(code: CodeType, *operations: str) -> Iterator[str]:
    """The names that these operations of a function, and of the functions within it, load."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in operations:
            yield instruction.argval
    for inner in (c for c in code.co_consts if isinstance(c, CodeType)):
        yield from names_loaded(inner, *operations)


def is_displayed(names: dict[str, Any], name: str) -> bool:
    """Whether the module with these globals writes a dictionary out, so that its order is content.
    Others, made from a set for instance, may have another order in each process."""
    if not isinstance(names[name], dict):
        return False
    try:
        tree = ast.parse(inspect.getsource(sys.modules[names["__name__"]]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return False
    return any(
        isinstance(line, ast.Assign | ast.AnnAssign)
        and isinstance(line.value, ast.Dict)
        and name in [getattr(target, "id", "") for target in _targets(line)]
        for line in tree.body
    )


def _parsed(value: Any) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(source_of(value) or "")).body[0]
    except (SyntaxError, IndexError):
        return None  # a lambda in the middle of a statement, a class that no statement defines


def _literal(node: ast.AST | None) -> str | None:
    """The repr of a literal."""
    try:
        return repr(ast.literal_eval(node)) if node else None  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return None


def _targets(line: ast.stmt) -> list[Any]:
    return line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]


def literal_defaults(function: FunctionType) -> dict[str, str | None]:
    """Argument -> repr of its default, where the source has a literal."""
    node = _parsed(function)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return {}
    a = node.args
    positional = [*a.posonlyargs, *a.args][len(a.posonlyargs) + len(a.args) - len(a.defaults) :]
    pairs = [
        *zip(positional, a.defaults, strict=True),
        *zip(a.kwonlyargs, a.kw_defaults, strict=True),
    ]
    return {argument.arg: _literal(default) for argument, default in pairs}


def literal_attributes(cls: type) -> dict[str, str | None]:
    """Attribute -> repr of its value, where the class statement has a literal."""
    node, found = _parsed(cls), {}
    for line in node.body if isinstance(node, ast.ClassDef) else ():
        for target in _targets(line):
            if isinstance(target, ast.Name):
                found[target.id] = _literal(getattr(line, "value", None))
    return found


def lambda_text(function: FunctionType) -> str:
    """The text of a lambda that shares its line with others."""
    if function.__name__ != "<lambda>":
        return ""
    tree = ast.parse("".join(inspect.findsource(function)[0]))
    code = function.__code__
    lambdas = (n for n in ast.walk(tree) if isinstance(n, ast.Lambda))
    nodes = [n for n in lambdas if n.lineno == code.co_firstlineno]
    if len(nodes) < 2:
        return ""
    places = [(line, column) for line, _, column, _ in code.co_positions() if line and column]
    for node in sorted(nodes, key=lambda n: -n.col_offset):
        start = (node.body.lineno, node.body.col_offset)
        end = (node.body.end_lineno or 0, node.body.end_col_offset or 0)
        if all(start <= place < end for place in places):
            return ast.unparse(node)
    return ast.dump(tree)
