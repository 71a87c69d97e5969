"""The content of a value as text that is the same in every process: for hashes of what a callable
computes."""

from __future__ import annotations

import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.source_code import (
    installed,
    is_displayed,
    lambda_text,
    literal_attributes,
    literal_defaults,
    names_in,
    names_loaded,
    source_of,
)

_SCALARS = (bool, int, float, complex, str, bytes)
_USUAL = {("np", "numpy"), ("jnp", "jax.numpy")}


def _builtin_or_installed(cls: type) -> bool:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return file is None or installed(file)


def is_set(value: Any) -> bool:
    return isinstance(value, set | frozenset)


def is_plain(value: Any) -> bool:
    """Whether a value is data whose repr is its content: numbers, texts, and collections of them.
    Sets within collections are not: their repr is another in each process."""
    if isinstance(value, dict):
        return all(is_plain(x) and not is_set(x) for pair in value.items() for x in pair)
    if isinstance(value, list | tuple) or is_set(value):
        return all(is_plain(x) and not is_set(x) for x in value)
    return value is None or isinstance(value, bool | int | float | str | bytes)


class Content:
    """The content of values as nested lists of texts, the same in every process.

    found: sources by qualified name that are hashed elsewhere, and not repeated.
    """

    def __init__(self, found: dict[str, str], own: set[str | None], import_path: str) -> None:
        self.found, self.own, self.import_path = found, own, import_path
        self.facts: dict[str, Any] = {}  # of functions and classes by qualified name
        self.within: list[Any] = []  # values being read: objects can contain themselves

    def read(self, value: Any) -> bool:
        """Whether the source of a function, class or module is content: if it is in the callable's
        own module, or in another that is not installed."""
        name = value.__name__ if isinstance(value, ModuleType) else value.__module__
        file = getattr(sys.modules.get(name or ""), "__file__", None)
        if isinstance(value, FunctionType):
            written = value.__code__.co_filename
            if not written.startswith("<") and written != file:  # wrapped by a decorator
                return not installed(written)
        return name in self.own or (file is not None and not installed(file))

    def of(self, value: Any) -> Any:
        """The content of any value."""
        if value is None or type(value) in _SCALARS:
            return repr(value)
        if isinstance(value, FunctionType | type) and self.read(value):
            return [type(value).__name__, _name(value), self.reached("", value)]
        return self._once(value, lambda: [_name(type(value)), *self._parts(value)])

    def _once(self, value: Any, content: Callable[[], Any]) -> Any:
        """The content of an object, unless it contains itself and is being read already."""
        if any(value is other for other in self.within):
            return ["within"]
        self.within.append(value)
        try:
            return content()
        finally:
            self.within.pop()

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, ModuleType | FunctionType | types.BuiltinFunctionType | type):
            yield from self._named(value)
        elif hasattr(value, "__array_interface__"):
            yield from self._array(value)
        elif isinstance(value, re.Pattern):
            yield [repr(value.pattern), value.flags]
        elif isinstance(value, functools.partial):
            yield from map(self.of, (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            yield from (self.of(value.__self__), self.of(value.__func__))
        elif isinstance(value, _SCALARS):
            yield next(t.__repr__(value) for t in _SCALARS if isinstance(value, t))  # type: ignore[arg-type]
        elif isinstance(value, dict | types.MappingProxyType):
            yield sorted(([self.of(k), self.of(v)] for k, v in value.items()), key=repr)
        elif is_set(value):
            yield sorted(map(self.of, value), key=repr)
        elif isinstance(value, list | tuple):
            yield list(map(self.of, value))
        elif hasattr(value, "__wrapped__"):
            yield self.of(value.__wrapped__)
        elif not self.read(type(value)):
            yield from self._library(value)
        if self.read(type(value)):
            yield self.of(type(value))
            yield self.of(_state(value))

    def _named(self, value: Any) -> Iterator[Any]:
        yield _name(value)
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, ModuleType | type):
            yield self.of(owner)  # a method of an object of a built-in type
        if isinstance(value, FunctionType) and hasattr(value, "__wrapped__"):
            yield self.of(value.__wrapped__)

    def _array(self, value: Any) -> Iterator[Any]:
        import numpy as np

        value = np.asarray(value)
        if value.dtype.hasobject:
            yield from (list(value.shape), self.of(value.ravel().tolist()))
        else:
            data = np.ascontiguousarray(value).tobytes()
            yield [value.dtype.str, list(value.shape), hashlib.sha256(data).hexdigest()]

    def _library(self, value: Any) -> Iterator[Any]:
        """The content of an object of an installed class: its pickle, as values."""
        if type(value).__module__ in ("_thread", "threading"):
            return  # locks have no content
        try:
            made = value.__reduce_ex__(4)
        except Exception:
            raise ConfigError(
                f"{self.import_path!r} uses an object of {_name(type(value))} whose content "
                "cannot be read, so run ids cannot depend on it; make it in a function that the "
                "callable calls (with functools.cache, to make it once)"
            ) from None
        if isinstance(made, str):
            yield made
            return
        maker, arguments, *rest = made
        yield from (self.of(maker), self.of(arguments))
        yield from (self.of(list(r) if isinstance(r, Iterator) else r) for r in rest)

    # functions and classes, without the sources in `found`

    def reached(self, name: str, value: Any) -> list[Any]:
        """The content of a value that code reaches by a global name, without what is in `found`."""
        value = _uncached(value)
        if isinstance(value, ModuleType):
            usual = value.__name__.rpartition(".")[2] == name or (name, value.__name__) in _USUAL
            return [] if usual else [_name(value)]
        if not isinstance(value, FunctionType | type):
            return [] if name and is_plain(value) and name in self.found else [self.of(value)]
        alias = [] if name in ("", value.__name__) else [_name(value)]
        if not self.read(value):
            wrapped = getattr(value, "__wrapped__", None)
            return alias + (self.reached("", wrapped) if wrapped else [])
        read: Callable[[Any], Iterator[Any]] = self._function
        if isinstance(value, type):
            read = self._class
        if not _has_name(value):
            return alias + self._once(value, lambda: [[k, v] for k, v in read(value) if v])
        if (key := _name(value)) not in self.facts:
            self.facts[key] = []
            self.facts[key] = [[k, v] for k, v in read(value) if v]
        return alias

    def _source(self, value: Any) -> str:
        source = source_of(value)
        return "" if source is None or self.found.get(value.__qualname__) == source else source

    def _function(
        self, function: FunctionType, own_source: bool = True
    ) -> Iterator[tuple[str, Any]]:
        if own_source:
            yield "source", self._source(function)
            yield "lambda", lambda_text(function)
        yield "defaults", self._defaults(function)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        yield "closure", [[n, self.of(_held(c))] for n, c in cells if n != "__class__"]
        names = set(names_loaded(function.__code__, "LOAD_GLOBAL", "LOAD_NAME"))
        for name in sorted(names & set(function.__globals__)):
            value = function.__globals__[name]
            if isinstance(value, ModuleType) and self.read(value):
                yield from self._module(value, names_in(function.__code__))
            else:
                yield name, self.reached(name, value)
                if is_displayed(function.__globals__, name) and not is_plain(value):
                    yield f"{name} in order", [self.of(list(value))]
        for name in sorted(set(names_loaded(function.__code__, "IMPORT_NAME"))):
            if module := self._imported(name, function.__globals__.get("__package__") or ""):
                yield from self._module(module, names_in(function.__code__))

    def _module(
        self, module: ModuleType, names: set[str], above: tuple[ModuleType, ...] = ()
    ) -> Iterator[tuple[str, Any]]:
        """The attributes of a user's module that a function names."""
        for name in sorted(names & set(vars(module))) if module not in above else ():
            value = vars(module)[name]
            if isinstance(value, ModuleType) and self.read(value):
                yield from self._module(value, names, (*above, module))
            else:
                yield f"{module.__name__}.{name}", [self.of(value)]

    def _imported(self, name: str, package: str) -> ModuleType | None:
        """The user's module that a function imports in its body."""
        for full in (name, f"{package}.{name}".strip(".")):
            try:
                spec = importlib.util.find_spec(full)
            except (ImportError, ValueError):
                continue
            if spec and spec.origin and spec.has_location and not installed(spec.origin):
                return importlib.import_module(full)
        return None

    def _defaults(self, function: FunctionType) -> list[Any]:
        """Default arguments that the source does not spell out."""
        literals = literal_defaults(function)
        return [
            [p.name, self.of(p.default)]
            for p in inspect.signature(function, follow_wrapped=False).parameters.values()
            if p.default is not p.empty and literals.get(p.name) != repr(p.default)
        ]

    def _class(self, cls: type) -> Iterator[tuple[str, Any]]:
        yield "source", self._source(cls)
        bases = [(b.__name__, b) for b in cls.__bases__ if self.read(b)]
        yield from ((name, self.reached(name, base)) for name, base in bases)
        literals = literal_attributes(cls)
        generated = {"_abc_impl"}
        if isinstance(cls, enum.EnumType):  # differs between versions of Python
            generated |= {name for name in vars(cls) if name.startswith("_") and name.endswith("_")}
        if issubclass(cls, tuple) and not getattr(cls, "_field_defaults", None) and source_of(cls):
            generated |= {"_fields", "_field_defaults"}
        for name, value in sorted(vars(cls).items()):
            parts: Iterable[Any] = (value,)
            if isinstance(value, staticmethod | classmethod):
                parts = (value.__func__,)
            elif isinstance(value, property):
                parts = (value.fget, value.fset, value.fdel)
            elif isinstance(value, functools.cached_property):
                parts = (value.func,)
            for part in parts:
                part = _uncached(part)
                if isinstance(part, FunctionType):
                    if self.read(part) and not part.__code__.co_filename.startswith("<"):
                        inside = part.__code__.co_qualname == f"{cls.__qualname__}.{name}"
                        yield name, [[k, v] for k, v in self._function(part, not inside) if v]
                elif not (name.startswith("__") or name in generated or part is None):
                    accessor = hasattr(type(part), "__get__") and _builtin_or_installed(type(part))
                    if not accessor and literals.get(name) != repr(part):
                        yield name, [self.of(part)]


def _name(value: Any) -> str:
    """Module and qualified name of a module, class or function."""
    if isinstance(value, ModuleType):
        return value.__name__
    return f"{value.__module__}.{getattr(value, '__qualname__', value.__name__)}"


def _uncached(value: Any) -> Any:
    """The function behind `functools.cache`, `jax.jit` and other built-in wrappers of installed
    packages."""
    while hasattr(value, "__wrapped__") and not isinstance(value, FunctionType | type):
        if not _builtin_or_installed(type(value)):
            break
        value = value.__wrapped__
    return value


def _has_name(value: Any) -> bool:
    """Whether a module has a function or class under its qualified name."""
    try:
        at_name = functools.reduce(
            getattr, value.__qualname__.split("."), sys.modules[value.__module__]
        )
    except (AttributeError, KeyError):
        return False
    return _uncached(at_name) is value


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # not assigned yet


def _state(value: Any) -> dict[str, Any]:
    """The attributes of an object of a user's class, in its dictionary or in slots."""
    slots = [
        name
        for cls in type(value).__mro__
        for name, member in vars(cls).items()
        if isinstance(member, types.MemberDescriptorType)
    ]
    return {n: getattr(value, n) for n in slots if hasattr(value, n)} | getattr(
        value, "__dict__", {}
    )
