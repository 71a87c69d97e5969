"""The fields of a row as layouts read them: names in lower case, and lists also where a table or a
JSON string holds them as text."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from typing import Any

from rlhf_jax.data.files import literal
from rlhf_jax.study.config import ConfigError

Row = dict[str, Any]

# A question and its answer.
QUESTIONS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("input", "output"),
)
ASKED = ("prompt", "instruction", "question", "query")
GIVEN = ("input", "context")  # the material of an instruction or question
SYSTEM = ("system", "system_prompt", "system_message")
RESPONSES = ("responses", "answers", "completions", "outputs", "candidates")
TEXTS = ("response", "answer", "completion", "output", "text", "content")
RANKS = ("ranking", "ranks", "scores")
RATINGS = ("score", "reward", "rating", "overall_score", "helpfulness", "quality")
SCORES = (*RATINGS, "rank")
MESSAGES = ("messages", "conversations", "conversation")

_LISTS = {*MESSAGES, *RESPONSES, *RANKS, "history"}
_MESSAGES = re.compile(r"\[?\s*\{\s*['\"](role|content|from|value)['\"]\s*:")


class Unusable(ConfigError):
    """A row of a known layout without training data in it."""


def plain(row: Row) -> Row:
    """A row without its empty fields.

    Raises:
        Unusable: two fields of one name, or a printed list that cannot be read.
    """
    names = _lower(tuple(row))
    if names is not None or None in row.values():
        row = {k: v for k, v in zip(names or row, row.values(), strict=True) if v is not None}
    for name, value in row.items():
        if isinstance(value, str) and value[:1] in ("[", "{"):
            row[name] = _unpacked(name, value)
    return row


@functools.lru_cache(1024)
def _lower(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Names in lower case without spaces around them; None where they are so already."""
    found = tuple(name.strip().lower() for name in names)
    if len(set(found)) < len(found):
        twice = next(n for i, n in enumerate(found) if n in found[:i])
        raise Unusable(f"two fields are called {twice!r}; drop or rename one")
    return None if found == names else found


def _unpacked(name: str, value: str) -> Any:
    """The list or message that a text is; any other text as it is."""
    messages = _MESSAGES.match(value) is not None
    if not messages and name not in _LISTS:
        return value
    found = literal(value)
    if isinstance(found, list | dict):
        return found
    if messages:
        raise Unusable(
            f"{name} is a list of messages printed as text; write it as JSON (in Python: "
            "json.dumps)"
        )
    return value


def first(names: Iterable[str], row: Iterable[str]) -> str:
    """The first of the names that a row has; empty if it has none."""
    return next((name for name in names if name in row), "")


def text(value: Any, name: str) -> str:
    """A field's text. Raises ConfigError where it holds none; so do the functions below."""
    if not isinstance(value, str):
        raise ConfigError(f"{name} = {str(value)[:80]}; expected a string")
    return value


def items(value: Any, name: str) -> list[Any]:
    """A field's list."""
    if not isinstance(value, list):
        raise ConfigError(f"{name} = {str(value)[:80]!r}; expected a list")
    return value


def number(value: Any, name: str) -> float:
    """A field's finite number, or that of its text."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ConfigError(f"{name} = {str(value)[:40]!r}; expected a number")
    return found
