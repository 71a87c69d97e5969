"""What lies outside a study and enters run ids by its content: callables by import path, files."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from pathlib import Path
from types import CodeType
from typing import Any

from rlhf_jax.config import ConfigError


def file_hash(path: str) -> str:
    """Hash of a file of records."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as e:
        raise ConfigError(
            f"{path!r}: {e.strerror or e}; expected a cell of the study, MODULE:FUNCTION or a file of records"
        ) from None


def source_hash(import_path: str) -> str:
    """Hash of what `MODULE:FUNCTION` computes, as far as its module says: its source, and that of the
    module's functions, classes and constants that it uses, directly or not. Editing a reward, or a word list
    that it looks into, makes it another run; a comment elsewhere in the file does not."""
    function = load_callable(import_path)
    parts = sorted(_used(function, function.__module__).items())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _used(start: Any, module: str) -> dict[str, str]:
    """Name -> source or value, of an object and of what it uses of its own module."""
    found: dict[str, str] = {}
    waiting = [start]
    while waiting:
        item = inspect.unwrap(waiting.pop())
        if item.__qualname__ in found:
            continue
        found[item.__qualname__] = inspect.getsource(item)
        methods = vars(item).values() if isinstance(item, type) else (item,)
        for method in (inspect.unwrap(m) for m in methods if callable(m)):
            code = getattr(method, "__code__", None)
            for name in _names(code) if code else ():
                value = method.__globals__.get(name, inspect)
                if getattr(value, "__module__", None) == module and hasattr(value, "__qualname__"):
                    waiting.append(value)
                elif _plain(value):
                    found[name] = repr(
                        sorted(value, key=repr) if isinstance(value, _SETS) else value
                    )
    return found


_SETS = (set, frozenset)


def _names(code: CodeType) -> set[str]:
    """Global names in a function, and in the functions within it."""
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    own = {name for name in code.co_names if not name.startswith("__")}
    return own.union(*map(_names, inner))


def _plain(value: Any) -> bool:
    """Whether a value is data: numbers, texts, and collections of them."""
    if isinstance(value, dict):
        return all(_plain(k) and _plain(v) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str | bytes)


def load_callable(import_path: str) -> Any:
    """The object at `MODULE:FUNCTION`."""
    module, _, name = import_path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise ConfigError(
            f"{import_path!r} cannot be imported ({e}); expected MODULE:FUNCTION"
        ) from None
