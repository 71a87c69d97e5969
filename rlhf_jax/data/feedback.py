"""Human feedback as records: JSON lines, `{"kind": "comparison", "version": 1, ...}`, checked field
by field. There are four kinds, and a file may mix them; `rlhf_jax.data.signals` makes training data
of each.

comparison: prompt, responses (2 to 9), ranking (1 is best, equal ranks are ties).
demonstration: prompt, response.
correction: prompt, response, edited.
critique: prompt, response, critique; optionally revision and verdict ("good" or "bad").

A prompt is a text, or a conversation as a text in the form of `rlhf_jax.data.chat`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from rlhf_jax.data import files
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import write_text
from rlhf_jax.study.messages import not_unicode, suggest

VERSION = 1
Verdict = Literal["good", "bad"]


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the answer that a labeller would give."""

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
                f"ranking: {len(self.ranking)} ranks for {len(self.responses)} responses; give one "
                "each"
            )
        if not all(type(rank) is int and rank >= 1 for rank in self.ranking):
            raise ConfigError(f"ranking = {self.ranking}; ranks are integers from 1, 1 the best")


@dataclass(frozen=True)
class Correction:
    """A person's edit of a response that the model gave."""

    prompt: str
    response: str
    edited: str

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        _check_text("response", self.response, empty=True)
        _check_edit("edited", self.edited, self.response)


@dataclass(frozen=True)
class Critique:
    """A person's criticism of a response that the model gave.

    Attributes:
        revision: the response as it should have been, in the light of the critique.
        verdict: whether the response is acceptable as it is.
    """

    prompt: str
    response: str
    critique: str
    revision: str | None = None
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        _check_text("response", self.response, empty=True)
        _check_text("critique", self.critique)
        if self.revision is not None:
            _check_edit("revision", self.revision, self.response)
        if self.verdict is not None and self.verdict not in get_args(Verdict):
            raise ConfigError(
                f"verdict = {self.verdict!r}; expected 'good', 'bad' or no such field"
            )


Record = Demonstration | Comparison | Correction | Critique
R = TypeVar("R", bound=Record)
KINDS: dict[str, type[Record]] = {k.__name__.lower(): k for k in get_args(Record)}


def _check_text(name: str, value: Any, empty: bool = False) -> None:
    if not isinstance(value, str) or not (value or empty):
        raise ConfigError(f"{name} = {value!r}; expected a string{'' if empty else ', not empty'}")
    if why := not_unicode(value):
        raise ConfigError(f"{name} is {why}")


def _check_edit(name: str, value: str, response: str) -> None:
    _check_text(name, value)
    if value == response:
        raise ConfigError(f"{name} is the same text as response; expected one that differs")


def write(path: Path, records: Sequence[Record]) -> None:
    """Write records, a line each; the file appears whole or not at all.

    Raises:
        ConfigError: no records, or something that is not a record.
    """
    if not records:
        raise ConfigError(f"{path}: no records to write; expected at least one")
    for i, record in enumerate(records, 1):
        if not isinstance(record, get_args(Record)):
            raise ConfigError(f"record {i} is {record!r}; expected one of: {', '.join(KINDS)}")
    write_text(Path(path), "".join(_line(record) for record in records))


def _line(record: Record) -> str:
    given = {k: v for k, v in dataclasses.asdict(record).items() if v is not None}
    data = {"kind": type(record).__name__.lower(), "version": VERSION, **given}
    return json.dumps(data, ensure_ascii=False) + "\n"


def read(path: Path, kind: type[R] | None = None) -> list[R]:
    """The records of a file, in its order.

    Args:
        path: JSON lines, or such a file compressed with gzip (.gz).
        kind: the class that all records must have; None: any kinds, mixed.

    Raises:
        ConfigError: a malformed row, with its number from 1 and the field, or an empty file.
    """
    records: list[Any] = []
    for row, data, reason in files.rows(Path(path)):
        try:
            if data is None:
                raise ConfigError(reason)
            records.append(from_json(data, kind))  # type: ignore[arg-type]
        except ConfigError as e:
            raise ConfigError(f"{path}, row {row}: {e}") from None
    if not records:
        expected = kind.__name__.lower() if kind else "record"
        raise ConfigError(f"{path}: no records; expected one {expected} a line")
    return records


def from_json(data: dict[str, Any], kind: type[Record] | None = None) -> Record:
    """The record in a row.

    Raises:
        ConfigError: another kind or version, or a field that is missing, unknown or malformed.
    """
    data = dict(data)
    if kind is None:
        named = data.get("kind")
        if not isinstance(named, str) or named not in KINDS:
            raise ConfigError(f"kind = {named!r}; expected one of: {', '.join(KINDS)}")
        kind = KINDS[named]
    expected = {"kind": kind.__name__.lower(), "version": VERSION}
    for key, value in expected.items():
        if (got := data.pop(key, None)) != value:
            raise ConfigError(
                f"expected {key!r}: {value!r}, as `feedback.write` puts it, got {got!r}"
            )
    fields = dataclasses.fields(kind)
    names = [f.name for f in fields]
    needed = [f.name for f in fields if f.default is dataclasses.MISSING]
    if missing := [n for n in needed if n not in data]:
        raise ConfigError(f"no field {missing[0]!r}; a {expected['kind']} has {', '.join(needed)}")
    if unknown := [k for k in data if k not in names]:
        raise ConfigError(f"unknown field {unknown[0]!r}.{suggest(unknown[0], names)}")
    for name in ("responses", "ranking"):
        if name in data:
            if not isinstance(data[name], list):
                raise ConfigError(f"{name}: expected a list, got {data[name]!r}")
            data[name] = tuple(data[name])
    return kind(**data)
