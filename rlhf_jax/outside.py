"""What lies outside a study and enters run ids by its content: callables by import path, files."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from rlhf_jax.config import ConfigError
from rlhf_jax.content import Content, is_displayed, is_plain, is_set, names_in, source_of

# Content hash -> the hash that run ids of kept results hold. The first rule, which these ids were
# made by, did not see compiled patterns and dictionaries of functions.
FIRST_RULE = {
    "703b3f706842674a": "2ac3019f2a1e864c",  # rlhf_jax.data.annotators:varied_sentiment
    "261a60adb105411c": "009a72969bedad0d",  # experiments/instructions.py, records
    "18ae3a3a22e375cd": "351948830fae9d1b",  # items
    "301f18cfebfad034": "409ede52980f8d99",  # prompts
}


def is_callable(value: str) -> bool:
    """Whether a text names a callable, MODULE:FUNCTION. An existing file is a file, whatever its
    path."""
    return bool(re.fullmatch(r"[\w.]+:[\w.]+", value)) and not Path(value).is_file()


def file_hash(path: str) -> str:
    """Hash of a file of records."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as e:
        raise ConfigError(
            f"{path!r}: {e.strerror or e}; expected a cell of the study, MODULE:FUNCTION or a file "
            "of records"
        ) from None


def load_callable(import_path: str) -> Any:
    """The object at `MODULE:FUNCTION`."""
    module, _, name = import_path.partition(":")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as e:  # of the user's module, whatever it is
        raise ConfigError(
            f"{import_path!r} cannot be imported ({type(e).__name__}: {e}); expected "
            "MODULE:FUNCTION"
        ) from None
    if not callable(found):
        raise ConfigError(f"{import_path!r} is {type(found).__name__}; expected a callable")
    return found


def source_hash(import_path: str) -> str:
    """Hash of what `MODULE:FUNCTION` computes, as far as it can be read: its source, that of the
    functions and classes that it uses, its closure and defaults, and the values of constants and
    objects that it uses, directly or not, in its own module and in others that are not installed
    packages. Editing a reward, or a word list that it looks into, makes it another run; a comment
    elsewhere in the file does not.

    Raises:
        ConfigError: it cannot be imported, or uses an object whose content cannot be read.
    """
    start = load_callable(import_path)
    named = hasattr(inspect.unwrap(start), "__qualname__")
    found = _used(start, start.__module__) if named else {}
    own = {import_path.partition(":")[0], start.__module__ if named else None}
    try:
        content = Content(found, own, import_path)
        facts = content.reached("", start)
    except RecursionError:
        raise ConfigError(f"{import_path!r} uses objects nested too deeply to be read") from None
    parts: Any = sorted(found.items())
    facts += sorted([k, v] for k, v in content.facts.items() if v)
    parts = [parts, facts] if facts else parts
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return FIRST_RULE.get(digest, digest)


# --- the first rule: sources and constants of one module ----------------------------------------


def _used(start: Any, module: str) -> dict[str, str]:
    """Name -> source or value, of an object and of what it uses of its own module."""
    found: dict[str, str] = {}
    waiting = [start]
    while waiting:
        item = inspect.unwrap(waiting.pop())
        if item.__qualname__ in found or (source := source_of(item)) is None:
            continue
        found[item.__qualname__] = source
        methods = vars(item).values() if isinstance(item, type) else (item,)
        for method in (inspect.unwrap(m) for m in methods if callable(m)):
            code = getattr(method, "__code__", None)
            for name in names_in(code) if code else ():
                value = method.__globals__.get(name, inspect)
                if getattr(value, "__module__", None) == module and hasattr(value, "__qualname__"):
                    waiting.append(value)
                elif is_plain(value):
                    ordered = is_displayed(method.__globals__, name)
                    found[name] = repr(value if ordered else _sorted(value))
    return found


def _sorted(value: Any) -> Any:
    """Plain data in an order that does not depend on the process."""
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value, key=repr)}
    if type(value) in (list, tuple):
        return type(value)(map(_sorted, value))
    return sorted(value, key=repr) if is_set(value) else value
