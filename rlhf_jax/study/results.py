"""Typed results: a kind's result is a frozen dataclass whose fields are the files of `results/`.
A method `headline()` gives what is shown beside the cell's name.

`as_json` and `from_json` are each other's inverse. Reading is strict: an unknown key, a missing one
and a value of another type are refused by name. A field with a default may be missing in a file,
and is not written while it has that default; so may what an export leaves out (lists of more than
64 values, and `samples`).
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.messages import suggest

T = TypeVar("T")
Interval = tuple[float, float]
NOTE = 200  # characters
LEFT_OUT = "left_out"  # file -> rows of it that a cell of any kind has not used, and why


class Mismatch(ValueError):
    """JSON that is not what a dataclass describes; names the field."""


class Headline(NamedTuple):
    """The one number that is shown beside a finished cell.

    Attributes:
        name: what was measured. value, error, low, high: the result, and its standard error or 95%
            interval.
        form: format of the numbers. unit: of them, empty where there is none.
        note: which rows of its records were left out, if any.
    """

    name: str
    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None
    form: str = ".4f"
    unit: str = ""
    note: str = ""

    def number(self) -> str:
        said = f"{self.value:{self.form}}"
        if self.error is not None:
            said += f" ± {self.error:{self.form}}"
        if self.low is not None and self.high is not None:
            said += f" [{self.low:{self.form}}, {self.high:{self.form}}]"
        return f"{said} {self.unit}".rstrip()

    def text(self) -> str:
        return f"{self.name} {self.number()}" + (f"; {self.note}" if self.note else "")

    def to_json(self) -> dict[str, Any]:
        found = {"name": self.name, "value": self.value, "stderr": self.error, "unit": self.unit}
        interval = None if self.low is None else [self.low, self.high]
        return found | {"interval": interval, "text": self.text()}


@dataclass(frozen=True)
class Untyped:
    """Results of a kind that has no result class, or is not known here."""

    files: dict[str, Any] = field(metadata={"rest": True})


def renamed(key: str) -> Any:
    """A field whose key in JSON is no Python name."""
    return field(metadata={"key": key})


def flat(suffix: str) -> Any:
    """A dataclass whose keys stand, with a suffix, among those of the object that holds it."""
    return field(metadata={"suffix": suffix})


def rest() -> Any:
    """A dict of all keys that are no other field's."""
    return field(metadata={"rest": True})


def as_json(value: Any) -> Any:
    """Plain JSON of a result or a part of one."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found: dict[str, Any] = {}
        for f in dataclasses.fields(value):
            content, suffix = getattr(value, f.name), f.metadata.get("suffix")
            if content == _default(f):
                continue
            if f.metadata.get("rest") or suffix is not None:
                found |= {f"{k}{suffix or ''}": v for k, v in as_json(content).items()}
            else:
                found[f.metadata.get("key", f.name)] = as_json(content)
        return found
    if isinstance(value, tuple | list):
        return [as_json(v) for v in value]
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    return value


def from_json(cls: type[T], data: Any, where: str = "", suffix: str = "") -> T:
    """The dataclass `cls` from JSON. suffix: of the keys of a `flat` field.

    Raises:
        Mismatch: names the field, what is there and what is expected.
    """
    if not isinstance(data, dict):
        raise Mismatch(f"{where or cls.__name__}: expected an object, found {_shown(data)}")
    unread, values, gathers = dict(data), {}, None
    for f, hint in _typed(cls):
        key = f.metadata.get("key", f.name)
        path = f"{where}.{key}{suffix}" if where else f"{key}{suffix}"
        if (ending := f.metadata.get("suffix")) is not None:
            keys = {k for inner in _keys(hint) if (k := f"{inner}{ending}") in unread}
            inner = {k.removesuffix(ending): unread.pop(k) for k in keys}
            values[f.name] = from_json(hint, inner, where, ending)
        elif f.metadata.get("rest"):
            gathers = (f.name, hint)
        elif key in unread:
            values[f.name] = _convert(hint, unread.pop(key), path)
        elif _default(f) is dataclasses.MISSING:
            raise Mismatch(f"{path} is missing")
    if gathers:
        values[gathers[0]] = _convert(gathers[1], unread, where)
    elif unread:
        key = next(iter(unread))
        raise Mismatch(f"{where}{'.' if where else ''}{key} is unknown.{suggest(key, _keys(cls))}")
    return cls(**values)


def read(cls: type | None, folder: CellFolder) -> Any:
    """The results of a finished cell as `cls`; None where it has written none.

    Raises:
        Damaged: they are not what a cell of that kind writes.
    """
    files = {name: folder.result(name) for name in folder.result_names() if name != LEFT_OUT}
    if not files:
        return None
    try:
        return from_json(cls or Untyped, files)
    except Mismatch as e:
        stem = str(e).split(":")[0].split()[0].split(".")[0]
        raise folder.damaged(folder.results / f"{stem}.json", str(e)) from None


def headline(cls: type | None, folder: CellFolder) -> Headline | None:
    """The headline of a cell; None where it is not done or has none.

    Raises:
        Damaged: the results are not what the cell wrote.
    """
    result = read(cls, folder) if folder.record() is not None else None
    make: Callable[[], Headline] | None = getattr(result, "headline", None)
    left = folder.result(LEFT_OUT) or {}
    return make()._replace(note="; ".join(left.values())[:NOTE]) if make else None


def scalars(result: Any) -> Iterator[tuple[str, Any]]:
    """(FILE.key, value) of the numbers and words at the top of every file."""
    for stem, content in as_json(result).items():
        for key, value in content.items() if isinstance(content, dict) else ():
            if isinstance(value, int | float | str):
                yield f"{stem}.{key}", value


def _default(f: dataclasses.Field[Any]) -> Any:
    made = f.default_factory
    return made() if made is not dataclasses.MISSING else f.default


def _typed_fields(cls: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return [(f, hints[f.name]) for f in dataclasses.fields(cls)]


_typed: Callable[[Any], list[tuple[dataclasses.Field[Any], Any]]] = functools.cache(_typed_fields)


def _keys(cls: Any) -> list[str]:
    return [f.metadata.get("key", f.name) for f, _ in _typed(cls)]


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as a field of type `hint` holds it. An int stays one in a field of type float."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(Any, hint), value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, path)
    if origin is tuple and isinstance(value, list | tuple):
        each = args[:1] * len(value) if args[-1] is ... else args
        if len(each) == len(value):
            named = enumerate(zip(each, value, strict=True))
            return tuple(_convert(h, v, f"{path}[{i}]") for i, (h, v) in named)
    elif origin is dict and isinstance(value, dict):
        return {k: _convert(args[1], v, f"{path}.{k}" if path else k) for k, v in value.items()}
    elif isinstance(value, bool):
        if hint is bool:
            return value
    elif origin is None and isinstance(value, (int, float) if hint is float else hint):
        return value
    name = str(hint).removeprefix("<class '").removesuffix("'>")
    raise Mismatch(f"{path}: expected {name}, found {_shown(value)}")


def _shown(value: Any) -> str:
    return repr(value)[:60]
