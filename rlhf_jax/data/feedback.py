"""Human feedback as records: JSON lines, `{"kind": "comparison", "version": 1, ...}`, checked field by
field."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..config import ConfigError, suggest

VERSION = 1


@dataclass(frozen=True)
class Demonstration:
    """What a labeller would have the model answer."""

    prompt: str
    response: str

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        _check_text("response", self.response)


@dataclass(frozen=True)
class Comparison:
    """A labeller's ranking of 2 to 9 responses to a prompt (Ouyang et al. 2022 use 4 to 9).

    Attributes:
        ranking: one rank per response, from 1; lower is better, equal ranks are ties.
    """

    prompt: str
    responses: tuple[str, ...]
    ranking: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        if not 2 <= len(self.responses) <= 9:
            raise ConfigError(f"{len(self.responses)} responses; a comparison has 2 to 9")
        for text in self.responses:
            _check_text("responses", text, empty=True)
        if len(self.ranking) != len(self.responses):
            raise ConfigError(
                f"{len(self.ranking)} ranks for {len(self.responses)} responses; give one each"
            )
        if not all(type(rank) is int and rank >= 1 for rank in self.ranking):
            raise ConfigError(f"ranking = {self.ranking}; ranks are integers from 1, 1 the best")


Record = TypeVar("Record", Demonstration, Comparison)


def _check_text(name: str, value: Any, empty: bool = False) -> None:
    if not isinstance(value, str) or not (value or empty):
        raise ConfigError(f"{name} = {value!r}; expected a string{'' if empty else ', not empty'}")


def write(path: Path, records: Sequence[Record]) -> None:
    """Write records of one kind, a line each; the file appears whole or not at all.

    Raises:
        ConfigError: no records, or of more than one kind.
    """
    kinds = {type(r).__name__.lower() for r in records}
    if len(kinds) != 1 or not kinds <= {"demonstration", "comparison"}:
        raise ConfigError(f"{path}: records of {sorted(kinds) or 'no kind'}; expected one kind")
    head = {"kind": kinds.pop(), "version": VERSION}
    lines = (json.dumps(head | dataclasses.asdict(r), ensure_ascii=False) for r in records)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a file; `kind` is `Demonstration` or `Comparison`.

    Raises:
        ConfigError: a malformed row, with its number from 1, or an empty file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not readable: {e}") from None
    records = []
    for row, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                records.append(_parse(line, kind))
            except ConfigError as e:
                raise ConfigError(f"{path}, row {row}: {e}") from None
    if not records:
        raise ConfigError(f"{path}: no records; expected one {kind.__name__.lower()} a line")
    return records


def _parse(line: str, kind: type[Record]) -> Record:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as e:
        raise ConfigError(f"not JSON ({e})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"expected an object, got {type(data).__name__}")
    expected = {"kind": kind.__name__.lower(), "version": VERSION}
    for key, value in expected.items():
        if data.pop(key, None) != value:
            raise ConfigError(f"expected {key!r}: {value!r}, as `feedback.write` puts it")
    names = [f.name for f in dataclasses.fields(kind)]
    if missing := [n for n in names if n not in data]:
        raise ConfigError(f"no field {missing[0]!r}; a {expected['kind']} has {', '.join(names)}")
    if unknown := [k for k in data if k not in names]:
        raise ConfigError(f"unknown field {unknown[0]!r}.{suggest(unknown[0], names)}")
    for name in ("responses", "ranking"):
        if name in data:
            if not isinstance(data[name], list):
                raise ConfigError(f"{name}: expected a list, got {data[name]!r}")
            data[name] = tuple(data[name])
    return kind(**data)
