"""Public data sets as records: the layouts in which preferences, instructions and conversations are
commonly published, recognised by a row's fields.

| layout | a row | record |
|---|---|---|
| records | what `feedback.write` writes | any kind |
| pairs | chosen, rejected, optionally prompt (or instruction, question): texts, transcripts (hh-rlhf) or lists of messages | comparison |
| kwise | prompt, responses (or answers, completions, outputs), ranking (or ranks, scores); or objects with a text and a rank or score each | comparison |
| scored | prompt, response (or completion), score (or reward, rating; or rank) | comparison of a prompt's rows |
| labelled | prompt, completion, label (KTO) | demonstration, if the label is true |
| instructions | instruction, optionally input or context, output or response (Alpaca, Dolly); or prompt, completion (or response); or question, answer (or response); or input, output | demonstration |
| chat | messages of role and content, or conversations of from and value | demonstration |

Names may have capitals. Lists may be written as texts, of JSON or Python.

A `system` text is kept in the prompt, as the system's turn. Fields that change what may be learned
from a row are followed (`rlhf_jax.data.marks`); others are ignored. Rows that cannot be used are
left out, counted and named. Files are .jsonl or .json (lines, or one list), each also with .gz;
.parquet; .csv.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data import fields, marks
from rlhf_jax.data.chat import MARKERS, Turn, has_marker, transcript
from rlhf_jax.data.compared import compared, consistent
from rlhf_jax.data.feedback import Comparison, Demonstration, Record, from_json
from rlhf_jax.data.files import LeftOut, rows
from rlhf_jax.data.marks import Row
from rlhf_jax.data.messages import OPENINGS, Unusable, asking, prompt_of, turns, with_system
from rlhf_jax.study.config import ConfigError, suggest

_STRIPPED = tuple(opening.lstrip() for opening in OPENINGS)


class Loaded(NamedTuple):
    """What a file holds.

    Attributes:
        rows: the row of each record, from 1.
        layout: a key of `LAYOUTS`, that of most rows.
        skipped: rows that were left out.
        left_out: which, and why.
        unread: fields of those rows that no layout reads.
    """

    records: list[Record]
    rows: list[int]
    layout: str
    skipped: int
    left_out: LeftOut
    unread: list[str]


def load(path: str | Path, layout: str | None = None, strict: bool = False) -> Loaded:
    """The records of a file in any of the `LAYOUTS`.

    Args:
        layout: None: the one that each row's fields show.
        strict: refuse a row that is unusable, instead of leaving it out.

    Raises:
        ConfigError: an unknown layout, an unreadable file, no usable row (with what the first one
            is).
    """
    path = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"layout = {layout!r}.{suggest(layout, list(LAYOUTS))}")
    found: list[tuple[int, str, Record]] = []
    scored: dict[str, list[tuple[int, str, float]]] = {}
    left, seen = LeftOut(), set[tuple[str, tuple[str, ...]]]()
    for number, value, reason in rows(path):
        try:
            if value is None:
                raise ConfigError(reason)
            row = fields.plain(value)
            shown = layout or layout_of(row)
            if shown != "records":
                marks.check(row)
                seen.add((shown, tuple(row)))
            if shown == "scored":
                prompt, response, score = _scored(row)
                scored.setdefault(prompt, []).append((number, response, score))
            else:
                found.append((number, shown, consistent(LAYOUTS[shown](row))))
        except ConfigError as e:
            if strict:
                raise ConfigError(f"{path}, row {number}: {e}") from None
            left.add(number, str(e))
    found = _answered(found, bool(scored), left)
    for prompt, group in scored.items():
        found += [(number, "scored", c) for number, c in compared(prompt, group, left)]
    if scored:
        found.sort(key=lambda item: item[0])
    if not found:
        if not left.rows:
            raise ConfigError(
                f"{path}: no usable rows: the file is empty; expected one record a row"
            )
        number, reason = left.first
        if reason.endswith(fields.UNKNOWN):
            reason += f". {fields.EXPECTED}"
        elif reason.startswith(("not JSON", "not UTF-8", "expected an object")):
            reason += f". {fields.NO_OBJECT}"
        raise ConfigError(
            f"{path}, row {number}: {reason}. The file has no usable rows, {left.rows} left out"
        )
    numbers, layouts, records = zip(*found, strict=True)
    layout = layout or Counter(layouts).most_common(1)[0][0]
    unread = sorted(set().union(*(fields.unread(names, kind) for kind, names in seen)))
    return Loaded(list(records), list(numbers), layout, left.rows, left, unread)


def _answered(
    found: list[tuple[int, str, Record]], scored: bool, left: LeftOut
) -> list[tuple[int, str, Record]]:
    """Without answers that nobody has judged, in a file whose other answers are judged."""
    if not scored and not any(layout == "labelled" for _, layout, _ in found):
        return found
    for number, layout, _ in found:
        if layout == "instructions":
            left.add(number, "no label or score, which other rows have")
    return [item for item in found if item[1] != "instructions"]


def layout_of(row: Row) -> str:
    """The layout that a row's fields show.

    Raises:
        ConfigError: they are those of no layout.
    """
    if "kind" in row and "version" in row:
        return "records"
    if "chosen" in row and "rejected" in row:
        return "pairs"
    if (name := _present(row, fields.RESPONSES)) and (
        _present(row, fields.RANKS) or _objects(row[name])
    ):
        return "kwise"
    if _present(row, fields.MESSAGES):
        return "chat"
    if any(q in row and a in row for q, a in fields.QUESTIONS):
        if "label" in row:
            return "labelled"
        return "scored" if _present(row, fields.SCORES) else "instructions"
    names = ascii(", ".join(row))[1:-1][:200]
    raise ConfigError(f"a row with fields {names or 'none'} {fields.UNKNOWN}")


def pairs(row: Row) -> Comparison:
    """Two responses, the better one chosen. Without a field that asks, both are whole transcripts,
    and the prompt is what comes before the last turn of each; so it is where they are whole
    transcripts all the same.

    Raises:
        Unusable: the transcripts differ before the last turn, do not end in the assistant's, or say
            the same; scores that do not say that chosen is better.
    """
    marks.check_pair(row)
    marks.check_score(row)
    texts = [_said(row, name) for name in ("chosen", "rejected")]
    asked = _present(row, (*fields.ASKED, *fields.MESSAGES))
    if asked is None or (texts[0].startswith(OPENINGS) and texts[1].startswith(OPENINGS)):
        (prompt, first), (other, second) = map(_last_turn, texts)
        if prompt != other:
            raise Unusable("chosen and rejected differ before the last turn")
        responses = [first, second]
    else:
        prompt = _question(row, asked)
        if not isinstance(row["chosen"], str) and not prompt.startswith(OPENINGS):
            prompt = prompt_of([Turn("user", prompt)])
        responses = [t.removeprefix(prompt).removeprefix(MARKERS["assistant"]) for t in texts]
    prompt, responses = _under_system(row, prompt, responses)
    if responses[0] == responses[1]:
        raise Unusable("chosen and rejected are the same text")
    return Comparison(prompt, tuple(responses), (1, 2))


def kwise(row: Row) -> Comparison:
    """K responses with a rank (lower is better) or a score (higher is better) each, in a list
    beside theirs or in an object with each. Equal ones tie."""
    name = _named(row, fields.RESPONSES)
    by, responses, values = ranked(_list(row, name), name, row)
    if not all(_finite(v) for v in values):
        raise ConfigError(f"{by} = {str(values)[:80]}; expected a number for each response")
    lower = by in ("ranking", "ranks", "rank")
    if lower and any(v < 0 for v in values):
        raise ConfigError(
            f"{by} = {str(values)[:80]}; ranks are not negative, and the best is the lowest"
        )
    if len(values) != len(responses):
        raise ConfigError(f"{by}: {len(values)} numbers for {len(responses)} responses")
    order = sorted(set(values), reverse=not lower)
    ranking = tuple(order.index(v) + 1 for v in values)
    if not all(isinstance(text, str) for text in responses):
        raise ConfigError(f"{name} = {str(responses)[:80]}; expected texts")
    prompt, responses = _under_system(
        row, _question(row, _present(row, fields.ASKED) or "prompt"), responses
    )
    return Comparison(prompt, tuple(responses), ranking)


def ranked(items: list[Any], name: str, row: Row) -> tuple[str, list[Any], list[Any]]:
    """Which numbers rank the responses, the responses, and their numbers."""
    if by := _present(row, fields.RANKS):
        return by, items, _list(row, by)
    first = items[0] if items else None
    by = _present(first, fields.SCORES) if isinstance(first, dict) else None
    text = _present(first, fields.TEXTS) if isinstance(first, dict) else None
    if by is None or text is None or not all(isinstance(x, dict) for x in items):
        raise ConfigError(
            f"{name}: expected texts and one of {', '.join(fields.RANKS)} beside them, or objects "
            f"with one of {', '.join(fields.TEXTS)} and one of {', '.join(fields.SCORES)}"
        )
    return by, [x.get(text) for x in items], [x.get(by) for x in items]


def instructions(row: Row) -> Demonstration:
    """An instruction or a question and its answer; what it is about (Alpaca's `input`, Dolly's
    `context`) follows after a blank line. Nothing is put between prompt and answer: the chat
    template separates them.

    Raises:
        Unusable: a blank answer.
    """
    prompt, answer = _exchange(row)
    return Demonstration(prompt, answer)


def labelled(row: Row) -> Demonstration:
    """An answer whose label says that it is good.

    Raises:
        Unusable: it says that it is not, or the answer is blank.
    """
    if not marks.label(row):
        raise Unusable("label is false: not an answer to imitate")
    return instructions(row)


def _scored(row: Row) -> tuple[str, str, float]:
    """Prompt, response and score, of which a higher one is better."""
    name = _named(row, fields.SCORES)
    score = marks.number(row, name)
    prompt, answer = _exchange(row)
    return prompt, answer, -score if name == "rank" else score


def chat(row: Row) -> Demonstration:
    """A conversation: the last turn of the assistant is the response, the turns before it the
    prompt, as a transcript (`rlhf_jax.data.chat`). Turns of the assistant that answer nothing are
    left out.

    Raises:
        Unusable: the assistant answers nobody or with a blank, or a text holds a transcript's
            marker.
    """
    marks.check_score(row)
    field = _named(row, fields.MESSAGES)
    found = asking(turns(_list(row, field), field))
    while found and found[-1].role != "assistant":
        found.pop()
    if len(found) < 2 or not found[-1].text.strip():
        raise Unusable("the assistant answers nobody, or with a blank")
    prompt, (answer,) = _under_system(row, prompt_of(found[:-1]), [found[-1].text])
    return Demonstration(prompt, answer)


def _no_rows_alone(row: Row) -> Record:
    raise ConfigError("rows with scores are compared with each other; load the file")


LAYOUTS: dict[str, Callable[[Row], Record]] = {
    "records": from_json,
    "pairs": pairs,
    "kwise": kwise,
    "scored": _no_rows_alone,
    "labelled": labelled,
    "instructions": instructions,
    "chat": chat,
}


def _exchange(row: Row) -> tuple[str, str]:
    """Prompt and answer of a row that holds one of each."""
    names = next((names for names in fields.QUESTIONS if all(name in row for name in names)), None)
    if names is None:
        raise ConfigError(
            f"fields {', '.join(row)}; expected "
            f"{' or '.join(' and '.join(q) for q in fields.QUESTIONS)}"
        )
    prompt = _question(row, names[0])
    answer = row[names[1]]
    if isinstance(answer, list | dict):
        said = turns(answer if isinstance(answer, list) else [answer], names[1])
        if [turn.role for turn in said] != ["assistant"]:
            raise Unusable(f"{names[1]} is not one turn of the assistant")
        answer = said[0].text
    answer = _text({names[1]: answer}, names[1])
    if not answer.strip():
        raise Unusable(f"{names[1]} is blank")
    prompt, (answer,) = _under_system(row, prompt, [answer])
    return prompt, answer


def _under_system(row: Row, prompt: str, responses: Sequence[str]) -> tuple[str, list[str]]:
    """Prompt and responses with the row's system text. In a conversation what the assistant says
    begins with a space."""
    if name := _present(row, fields.SYSTEM):
        prompt = with_system(prompt, _text(row, name))
    if prompt.startswith(OPENINGS) and prompt.rstrip().endswith(MARKERS["assistant"]):
        prompt = prompt.rstrip()
        responses = [t if t[:1].isspace() or not t else f" {t}" for t in responses]
    return prompt, list(responses)


def _present(row: Row, names: Sequence[str]) -> str | None:
    for name in names:
        if name in row:
            return name
    return None


def _named(row: Row, names: Sequence[str]) -> str:
    name = _present(row, names)
    if name is None:
        raise ConfigError(f"fields {', '.join(row)}; expected one of: {', '.join(names)}")
    return name


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _finite(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    )


def _text(row: Row, name: str) -> str:
    if not isinstance(value := row.get(name), str):
        raise ConfigError(f"{name} = {str(value)[:80]}; expected a string")
    return value


def _list(row: Row, name: str) -> list[Any]:
    if not isinstance(value := row.get(name), list):
        raise ConfigError(f"{name} = {str(value)[:80]!r}; expected a list")
    return value


def _opened(text: str) -> str:
    """A transcript whose leading blank lines were stripped, with them; any other text as it is."""
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
    stripped = text.startswith(_STRIPPED) and MARKERS["assistant"] in text
    return "\n\n" + text if stripped else text


def _last_turn(text: str) -> tuple[str, str]:
    """A transcript before and after the marker of its last turn, which must be the assistant's."""
    at = text.rfind(MARKERS["assistant"])
    at += len(MARKERS["assistant"]) if at >= 0 else 0
    head, response = text[:at], text[at:]
    if not head.startswith(OPENINGS) or has_marker(response):
        raise Unusable('no transcript that opens with "Human:" and ends in an "Assistant:" turn')
    return head, response


def _said(row: Row, name: str) -> str:
    """A text as it is, a message or a list of messages as a transcript."""
    value = row.get(name)
    if isinstance(value, str):
        return _opened(value)
    if isinstance(value, list | dict):
        return transcript(turns([value] if isinstance(value, dict) else value, name))
    return _text(row, name)


def _question(row: Row, name: str) -> str:
    """The field that asks, with what it is about: a text as it is, a list of messages as a
    transcript to be answered."""
    if isinstance(row.get(name), list):
        found = asking(turns(row[name], name))
        if not found or found[-1].role == "assistant":
            raise Unusable(f"{name} holds no turn that an answer could follow")
        return prompt_of(found)
    prompt = _opened(_text(row, name))
    if name != "prompt":
        given = (g for g in fields.GIVEN if g != name and row.get(g))
        parts = [prompt, *(_text(row, g) for g in given)]
        prompt = "\n\n".join(part for part in parts if part.strip())
    return _after(row["history"], prompt) if row.get("history") else prompt


def _after(history: Any, prompt: str) -> str:
    """A prompt after earlier exchanges, a list of question and answer each."""
    if not isinstance(history, list) or not all(
        isinstance(x, list) and len(x) == 2 for x in history
    ):
        raise ConfigError(f"history = {str(history)[:80]}; expected pairs of question and answer")
    messages = [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return prompt_of(turns([*messages, {"role": "user", "content": prompt}], "history"))
