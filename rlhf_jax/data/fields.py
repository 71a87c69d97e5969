"""Names and values of a row's fields, as layouts read them: names in lower case, and lists that a
table or a JSON string holds as text as lists."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data import marks
from rlhf_jax.data.marks import Row
from rlhf_jax.data.messages import Unusable

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
GIVEN = ("input", "context")  # what an instruction or question is about
SYSTEM = ("system", "system_prompt", "system_message")
RESPONSES = ("responses", "answers", "completions", "outputs", "candidates")
TEXTS = ("response", "answer", "completion", "output", "text", "content")
RANKS = ("ranking", "ranks", "scores")
SCORES = (*marks.SCORES, "rank")
MESSAGES = ("messages", "conversations", "conversation")
UNKNOWN = "is in no known layout"
EXPECTED = (
    "Write or rename its fields so that they are those of one: prompt and completion; instruction "
    "and output; question and answer; messages; chosen and rejected, with a prompt or not; prompt, "
    "responses and scores (or ranking); prompt, response and score. Of two answers and a field "
    "that says which is better, make chosen and rejected"
)

NO_OBJECT = (
    "Expected an object a line (.jsonl) or one list of objects (.json), a table (.csv, .tsv) or "
    ".parquet; of an object that holds the list, the list alone"
)

_LISTS = {*MESSAGES, *RESPONSES, *RANKS, "history"}
_MESSAGES = re.compile(r"\[?\s*\{\s*['\"](role|content|from|value)['\"]\s*:")


def plain(row: Row) -> Row:
    """A row without the fields that hold nothing.

    Raises:
        Unusable: two fields of one name, or a printed list that cannot be read.
    """
    names = _names(tuple(row))
    if names is not None or None in row.values():
        row = {k: v for k, v in zip(names or row, row.values(), strict=True) if v is not None}
    for name, value in row.items():
        if isinstance(value, str) and value[:1] in ("[", "{"):
            row[name] = _unpacked(name, value)
    return row


@functools.lru_cache(1024)
def _names(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Names in lower case without spaces around them; None: they are so."""
    found = tuple(name.strip().lower() for name in names)
    if len(set(found)) < len(found):
        twice = next(n for i, n in enumerate(found) if n in found[:i])
        raise Unusable(f"two fields are called {twice!r}; drop or rename one")
    return None if found == names else found


def _unpacked(name: str, text: str) -> Any:
    """The list or message that a text is; any other text as it is."""
    messages = _MESSAGES.match(text) is not None
    if not messages and name not in _LISTS:
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list | dict):
            return found
    if messages:
        raise Unusable(
            f"{name} is a list of messages printed as text; write it as JSON (in Python: "
            "json.dumps)"
        )
    return text


def unread(names: tuple[str, ...], layout: str) -> set[str]:
    """The names of a row in a layout that are not read."""

    def first(among: Sequence[str]) -> set[str]:
        return set(next(([n] for n in among if n in names), []))

    read = {"", *marks.MARKS} | first(SYSTEM)
    asked: set[str] = set()
    if layout == "pairs":
        asked = first((*ASKED, *MESSAGES))
        read |= {"chosen", "rejected", *marks.PAIR_MARKS, *marks.SCORES}
        read |= {n for n in names if marks.opposite(n)}
    elif layout == "kwise":
        asked = first(ASKED)
        read |= first(RESPONSES) | first(RANKS)
    elif layout == "chat":
        read |= first(MESSAGES) | set(marks.SCORES)
    else:
        pair = next((q for q in QUESTIONS if set(q) <= set(names)), ())
        asked = set(pair[:1])
        read |= set(pair) | (first(SCORES) if layout == "scored" else set())
    if asked - {"prompt"}:
        read |= {*GIVEN}
    return set(names) - read - asked - ({"history"} if asked else set())
