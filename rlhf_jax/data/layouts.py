"""Public data sets as records: the layouts in which preferences, instructions and conversations are
commonly published, recognised by the fields of the first row.

| layout | a row | record |
|---|---|---|
| records | what `feedback.write` writes | any kind |
| pairs | chosen, rejected, optionally prompt: texts, transcripts (hh-rlhf) or lists of messages | comparison |
| kwise | prompt, responses (or answers, completions), ranking (or ranks, scores) | comparison |
| instructions | instruction, optionally input, output (Alpaca); or prompt, completion (or response); or question, answer | demonstration |
| chat | messages of role and content, or conversations of from and value | demonstration |

Fields that a layout does not name are ignored. Files are .jsonl or .json (lines, or one list), each also
with .gz.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config import ConfigError, suggest
from .chat import MARKERS, Role, Turn, has_marker, transcript
from .feedback import Comparison, Demonstration, Record, from_json, rows

Row = dict[str, Any]

QUESTIONS = (
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
RESPONSES = ("responses", "answers", "completions")
RANKS = ("ranking", "ranks", "scores")
MESSAGES = (("messages", "role", "content"), ("conversations", "from", "value"))
ROLES: dict[str, Role] = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "system": "system",
}  # fmt: skip
_OPENINGS = (MARKERS["user"], MARKERS["system"])


class Unusable(ConfigError):
    """A row that is as its layout says, but from which nothing can be learned."""


class Loaded(NamedTuple):
    """What a file holds.

    Attributes:
        rows: the row of each record, from 1.
        layout: a key of `LAYOUTS`.
        skipped: rows that were left out.
    """

    records: list[Record]
    rows: list[int]
    layout: str
    skipped: int


def load(path: str | Path, layout: str | None = None, strict: bool = False) -> Loaded:
    """The records of a file in any of the `LAYOUTS`.

    Args:
        layout: None: the one that the fields of the first row show.
        strict: refuse a row that is unusable, instead of leaving it out.

    Raises:
        ConfigError: an unknown layout, a malformed row (with its number from 1), no usable row.
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"layout = {layout!r}.{suggest(layout, list(LAYOUTS))}")
    records: list[Record] = []
    numbers: list[int] = []
    skipped = 0
    for number, row in rows(path):
        try:
            layout = layout or layout_of(row)
            records.append(LAYOUTS[layout](row))
            numbers.append(number)
        except ConfigError as e:
            if strict or not isinstance(e, Unusable):
                raise ConfigError(f"{path}, row {number}: {e}") from None
            skipped += 1
    if layout is None or not records:
        raise ConfigError(f"{path}: no usable rows, {skipped} left out; expected one record a row")
    return Loaded(records, numbers, layout, skipped)


def layout_of(row: Row) -> str:
    """The layout that a row's fields show.

    Raises:
        ConfigError: they are those of no layout.
    """
    if "kind" in row and "version" in row:
        return "records"
    if "chosen" in row and "rejected" in row:
        return "pairs"
    if _present(row, RESPONSES) and _present(row, RANKS):
        return "kwise"
    if _present(row, [field for field, _, _ in MESSAGES]):
        return "chat"
    if any(q in row and a in row for q, a in QUESTIONS):
        return "instructions"
    raise ConfigError(
        f"a row with fields {', '.join(row) or 'none'} is in no known layout ({', '.join(LAYOUTS)}); "
        "rename its fields to those of one"
    )


def pairs(row: Row) -> Comparison:
    """Two responses, the better one chosen. Without a field `prompt`, both are whole transcripts, and
    the prompt is what comes before the last turn of each; so it is where they are whole transcripts
    all the same.

    Raises:
        Unusable: the transcripts differ before the last turn, do not end in the assistant's, or say
            the same.
    """
    texts = [_said(row, name) for name in ("chosen", "rejected")]
    if all(text.startswith(_OPENINGS) for text in texts) or "prompt" not in row:
        (prompt, first), (other, second) = map(_last_turn, texts)
        if prompt != other:
            raise Unusable("chosen and rejected differ before the last turn")
        responses = [first, second]
    else:
        prompt = _asked(row)
        if isinstance(row["chosen"], list) and not prompt.startswith(_OPENINGS):
            prompt = _prompt([Turn("user", prompt)])
        responses = [t.removeprefix(prompt).removeprefix(MARKERS["assistant"]) for t in texts]
    if responses[0] == responses[1]:
        raise Unusable("chosen and rejected are the same text")
    return Comparison(prompt, tuple(responses), (1, 2))


def kwise(row: Row) -> Comparison:
    """K responses with a rank (lower is better) or a score (higher is better) each. Equal ones tie."""
    responses = _list(row, _named(row, RESPONSES))
    by = _named(row, RANKS)
    values = _list(row, by)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and v == v for v in values):
        raise ConfigError(f"{by} = {values}; expected a number for each response")
    if len(values) != len(responses):
        raise ConfigError(f"{by}: {len(values)} numbers for {len(responses)} responses")
    order = sorted(set(values), reverse=by == "scores")
    ranking = tuple(order.index(v) + 1 for v in values)
    return Comparison(_asked(row), tuple(responses), ranking)


def instructions(row: Row) -> Demonstration:
    """An instruction or a question and its answer; Alpaca's `input` follows after a blank line. Nothing
    is put between prompt and answer: the chat template separates them.

    Raises:
        Unusable: a blank answer.
    """
    found = next((names for names in QUESTIONS if all(name in row for name in names)), None)
    if found is None:
        raise ConfigError(
            f"fields {', '.join(row)}; expected {' or '.join(' and '.join(q) for q in QUESTIONS)}"
        )
    prompt, answer = (_text(row, name) for name in found)
    if found[0] == "instruction" and row.get("input"):
        prompt += "\n\n" + _text(row, "input")
    if not answer.strip():
        raise Unusable(f"{found[1]} is blank")
    return Demonstration(prompt, answer)


def chat(row: Row) -> Demonstration:
    """A conversation: the last turn of the assistant is the response, the turns before it the prompt,
    as a transcript (`rlhf_jax.data.chat`). Turns of the assistant that answer nothing are left out.

    Raises:
        Unusable: the assistant answers nobody or with a blank, or a text holds a transcript's marker.
    """
    turns = _asking(_turns(row, _named(row, [field for field, _, _ in MESSAGES])))
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if len(turns) < 2 or not turns[-1].text.strip():
        raise Unusable("the assistant answers nobody, or with a blank")
    return Demonstration(_prompt(turns[:-1]), turns[-1].text)


LAYOUTS: dict[str, Callable[[Row], Record]] = {
    "records": from_json,
    "pairs": pairs,
    "kwise": kwise,
    "instructions": instructions,
    "chat": chat,
}


def _present(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _named(row: Row, names: Sequence[str]) -> str:
    name = _present(row, names)
    if name is None:
        raise ConfigError(f"fields {', '.join(row)}; expected one of: {', '.join(names)}")
    return name


def _text(row: Row, name: str) -> str:
    if not isinstance(value := row.get(name), str):
        raise ConfigError(f"{name} = {value!r}; expected a string")
    return value


def _list(row: Row, name: str) -> list[Any]:
    if not isinstance(value := row.get(name), list):
        raise ConfigError(f"{name} = {value!r}; expected a list")
    return value


def _prompt(turns: Sequence[Turn]) -> str:
    return transcript([*turns, Turn("assistant", "")])


def _last_turn(text: str) -> tuple[str, str]:
    """A transcript before and after the marker of its last turn, which must be the assistant's."""
    at = text.rfind(MARKERS["assistant"])
    at += len(MARKERS["assistant"]) if at >= 0 else 0
    head, response = text[:at], text[at:]
    if not head.startswith(_OPENINGS) or has_marker(response):
        raise Unusable('no transcript that opens with "Human:" and ends in an "Assistant:" turn')
    return head, response


def _said(row: Row, name: str) -> str:
    """A text as it is, a list of messages as a transcript."""
    if isinstance(row.get(name), list):
        return transcript(_turns({"messages": row[name]}, "messages"))
    return _text(row, name)


def _asked(row: Row) -> str:
    """The field `prompt`: a text as it is, a list of messages as a transcript to be answered."""
    if not isinstance(row.get("prompt"), list):
        return _text(row, "prompt")
    turns = _asking(_turns({"messages": row["prompt"]}, "messages"))
    if not turns or turns[-1].role == "assistant":
        raise Unusable("prompt holds no turn that an answer could follow")
    return _prompt(turns)


def _asking(turns: list[Turn]) -> list[Turn]:
    """Turns from the first that is not the assistant's."""
    return list(itertools.dropwhile(lambda turn: turn.role == "assistant", turns))


def _turns(row: Row, field: str) -> list[Turn]:
    """The turns of a list of messages."""
    _, role_of, text_of = next(names for names in MESSAGES if names[0] == field)
    turns: list[Turn] = []
    for i, message in enumerate(_list(row, field), 1):
        if not isinstance(message, dict):
            raise ConfigError(f"{field}: message {i} is {message!r}; expected an object")
        role, text = message.get(role_of), message.get(text_of)
        if not isinstance(role, str) or role not in ROLES or not isinstance(text, str):
            raise ConfigError(
                f"{field}: message {i} has {role_of} = {role!r} and {text_of} of type "
                f"{type(text).__name__}; expected one of {', '.join(ROLES)}, and a string"
            )
        if has_marker(text):
            raise Unusable(f"{field}: message {i} holds what opens a turn of a transcript")
        turns.append(Turn(ROLES[role], f" {text}" if ROLES[role] == "assistant" else text))
    return turns
