"""Public data sets as records: the layouts in which preferences, instructions and conversations are
commonly published, recognised by a row's fields. To add a layout, add an entry to `LAYOUTS`.

records: what `feedback.write` writes; any kind of record.
pairs: chosen, rejected, optionally prompt (or instruction, question): texts, transcripts (hh-rlhf)
    or lists of messages; a comparison.
kwise: prompt, responses (or answers, completions, outputs), ranking (or ranks, scores); or objects
    with a text and a rank or score each; a comparison.
chat: messages of role and content, or conversations of from and value; a demonstration.
labelled: prompt, completion, label (KTO); a demonstration if the label is true.
scored: prompt, response (or completion), score (or reward, rating; or rank); the rows of a prompt
    are a comparison.
instructions: instruction, optionally input or context, output or response (Alpaca, Dolly); or
    prompt, completion (or response); or question, answer (or response); or input, output; a
    demonstration.

Names may have capitals. Lists may be written as texts, of JSON or Python. A `system` text is kept
in the prompt, as the system's turn. Fields that change what may be learned from a row are followed
(`rlhf_jax.data.marks`); others are ignored. Rows that cannot be used are left out, counted and
named. Files are .jsonl or .json (lines, or one list), each also with .gz; .parquet; .csv.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data import fields, marks, messages
from rlhf_jax.data.chat import Turn
from rlhf_jax.data.feedback import Comparison, Demonstration, Record, from_json
from rlhf_jax.data.fields import Row, Unusable, first
from rlhf_jax.data.files import LeftOut, rows
from rlhf_jax.study.config import ConfigError

MOST = 9  # responses of a comparison
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


class Scored(NamedTuple):
    """An answer to be compared with the other answers to its prompt; a higher score is better."""

    prompt: str
    response: str
    score: float


class Found(NamedTuple):
    """The names under which a row has the fields of a layout; empty where it has none."""

    needed: tuple[str, ...]
    beside: str
    asked: str


class Layout(NamedTuple):
    """How the rows of a data set hold records.

    Attributes:
        needs: groups of fields; a row has all fields of one of them, and the first is read.
        record: the record in a row, from its fields and their names.
        asked: fields that ask, of which the first is read; None: the first of the needed ones.
        beside: fields of which a row has one too, if this is not empty.
        reads: other fields that are read, of a row's names.
    """

    needs: tuple[tuple[str, ...], ...]
    record: Callable[[Row, Found], Record | Scored]
    asked: tuple[str, ...] | None = ()
    beside: tuple[str, ...] = ()
    reads: Callable[[tuple[str, ...]], set[str]] = lambda names: set()

    def find(self, row: Row) -> Found | None:
        """The fields of the layout in a row, if it has them."""
        for needed in self.needs:
            if row.keys() >= set(needed):
                break
        else:
            return None
        beside = first(self.beside, row)
        if self.beside and not beside and not _objects(row[needed[0]]):
            return None
        asked = needed[0] if self.asked is None else first(self.asked, row)
        return Found(needed, beside, asked)

    def unread(self, names: tuple[str, ...], found: Found) -> set[str]:
        """Fields of a row in this layout that nothing reads."""
        about = {*fields.GIVEN} if found.asked not in ("", "prompt") else set()
        history = {"history"} if found.asked else set()
        system = first(fields.SYSTEM, names)
        read = {"", *found.needed, found.beside, found.asked, system, *marks.RULES}
        return set(names) - read - about - history - self.reads(names)


class Loaded(NamedTuple):
    """The records of a file.

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


def load(path: str | Path) -> Loaded:
    """The records of a file in any of the `LAYOUTS`, which may differ by row.

    Raises:
        ConfigError: an unreadable file, or no usable row (with the reason for the first one).
    """
    path = Path(path)
    records: list[tuple[int, str, Record]] = []
    scored: dict[str, list[tuple[int, Scored]]] = {}
    left, unread = LeftOut(), dict[tuple[str, tuple[str, ...]], set[str]]()
    for at, value, reason in rows(path):
        try:
            if value is None:
                raise ConfigError(reason)
            row = fields.plain(value)
            name, found = _layout_of(row)
            if name != "records":
                marks.check(row)
                if (shape := (name, tuple(row))) not in unread:
                    unread[shape] = LAYOUTS[name].unread(shape[1], found)
            record = LAYOUTS[name].record(row, found)
            if isinstance(record, Scored):
                scored.setdefault(record.prompt, []).append((at, record))
            else:
                records.append((at, name, _consistent(record)))
        except ConfigError as e:
            left.add(at, str(e))
    records = _judged(records, bool(scored), left)
    for group in scored.values():
        records += [(at, "scored", record) for at, record in _compared(group, left)]
    if not records:
        raise _no_records(path, left)
    records.sort(key=lambda item: item[0])
    numbers, layouts, found_records = zip(*records, strict=True)
    layout = Counter(layouts).most_common(1)[0][0]
    names = sorted(set().union(*unread.values()))
    return Loaded(list(found_records), list(numbers), layout, left.rows, left, names)


def _layout_of(row: Row) -> tuple[str, Found]:
    """The layout that a row's fields show, and the names of its fields."""
    for name, layout in LAYOUTS.items():
        if (found := layout.find(row)) is not None:
            return name, found
    names = ascii(", ".join(row))[1:-1][:200]
    raise ConfigError(f"a row with fields {names or 'none'} {UNKNOWN}")


def _judged(
    records: list[tuple[int, str, Record]], scored: bool, left: LeftOut
) -> list[tuple[int, str, Record]]:
    """The records without unlabelled answers, if other answers of the file have labels or
    scores."""
    if not scored and not any(layout == "labelled" for _, layout, _ in records):
        return records
    for at, layout, _ in records:
        if layout == "instructions":
            left.add(at, "no label or score, which other rows have")
    return [item for item in records if item[1] != "instructions"]


def _no_records(path: Path, left: LeftOut) -> ConfigError:
    if not left.rows:
        return ConfigError(f"{path}: no usable rows: the file is empty; expected one record a row")
    at, reason = left.first
    if reason.endswith(UNKNOWN):
        reason += f". {EXPECTED}"
    elif reason.startswith(("not JSON", "not UTF-8", "expected an object")):
        reason += f". {NO_OBJECT}"
    return ConfigError(
        f"{path}, row {at}: {reason}. The file has no usable rows, {left.rows} left out"
    )


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


# --- the record in a row of each layout ----------------------------------------------------------


def _record(row: Row, found: Found) -> Record:
    return from_json(row)


def _pair(row: Row, found: Found) -> Comparison:
    """Two responses, the better one chosen. Without a field that asks, or where both are whole
    transcripts, the prompt is what comes before the last turn of each.

    Raises:
        Unusable: the transcripts differ before the last turn, do not end in the assistant's, or say
            the same; scores that do not say that chosen is better.
    """
    marks.check_pair(row)
    texts = [messages.said(row[name], name) for name in found.needed]
    if not found.asked or all(text.startswith(messages.OPENINGS) for text in texts):
        (prompt, chosen), (other, rejected) = map(messages.last_turn, texts)
        if prompt != other:
            raise Unusable("chosen and rejected differ before the last turn")
    else:
        prompt = messages.question(row, found.asked)
        if not isinstance(row["chosen"], str) and not prompt.startswith(messages.OPENINGS):
            prompt = messages.prompt_of([Turn("user", prompt)])
        chosen, rejected = (t.removeprefix(prompt).removeprefix(messages.ANSWER) for t in texts)
    prompt, responses = messages.under_system(row, prompt, [chosen, rejected])
    if responses[0] == responses[1]:
        raise Unusable("chosen and rejected are the same text")
    return Comparison(prompt, responses, (1, 2))


def _ranked(row: Row, found: Found) -> Comparison:
    """K responses with a rank (lower is better) or a score (higher is better) each, in a list
    beside theirs or in an object with each. Equal ones tie."""
    name, by = found.needed[0], found.beside
    responses = fields.items(row[name], name)
    if by:
        values = fields.items(row[by], by)
    else:
        by, text = (first(names, responses[0]) for names in (fields.SCORES, fields.TEXTS))
        if not by or not text or not all(isinstance(x, dict) for x in responses):
            raise ConfigError(
                f"{name}: expected texts and one of {', '.join(fields.RANKS)} beside them, or "
                f"objects with one of {', '.join(fields.TEXTS)} and one of "
                f"{', '.join(fields.SCORES)}"
            )
        values = [x.get(by) for x in responses]
        responses = [x.get(text) for x in responses]
    shown = f"{by} = {str(values)[:80]}"
    if any(type(v) not in (int, float) or not abs(v) < float("inf") for v in values):
        raise ConfigError(f"{shown}; expected a number for each response")
    lower = by in ("ranking", "ranks", "rank")
    if lower and min(values, default=0) < 0:
        raise ConfigError(f"{shown}; ranks are not negative, and the best is the lowest")
    if len(values) != len(responses):
        raise ConfigError(f"{by}: {len(values)} numbers for {len(responses)} responses")
    if not all(isinstance(text, str) for text in responses):
        raise ConfigError(f"{name} = {str(responses)[:80]}; expected texts")
    prompt, texts = messages.under_system(
        row, messages.question(row, found.asked or "prompt"), responses
    )
    return Comparison(prompt, texts, _ranks(values, descending=not lower))


def _ranks(values: list[float], descending: bool) -> tuple[int, ...]:
    """Dense ranks from 1."""
    order = sorted(set(values), reverse=descending)
    return tuple(order.index(value) + 1 for value in values)


def _exchange(row: Row, found: Found) -> Demonstration:
    """A question and its answer; its material (Alpaca's `input`, Dolly's `context`) follows after a
    blank line. Nothing is put between prompt and answer: the chat template separates them.
    """
    prompt, given = messages.question(row, found.asked), found.needed[1]
    prompt, (response,) = messages.under_system(row, prompt, [messages.answer(row[given], given)])
    return Demonstration(prompt, response)


def _scored(row: Row, found: Found) -> Scored:
    score = fields.number(row[found.beside], found.beside)
    exchange = _exchange(row, found)
    return Scored(exchange.prompt, exchange.response, -score if found.beside == "rank" else score)


def _chat(row: Row, found: Found) -> Demonstration:
    """A conversation: the last turn of the assistant is the response, the turns before it the
    prompt, as a transcript (`rlhf_jax.data.chat`). Turns of the assistant that answer nothing are
    left out.

    Raises:
        Unusable: the assistant answers nobody or with a blank, or a text holds a transcript's
            marker.
    """
    marks.check_rating(row)
    (field,) = found.needed
    talk = messages.without_greeting(messages.turns(fields.items(row[field], field), field))
    while talk and talk[-1].role != "assistant":
        talk.pop()
    if len(talk) < 2 or not talk[-1].text.strip():
        raise Unusable("the assistant answers nobody, or with a blank")
    prompt, (response,) = messages.under_system(row, messages.prompt_of(talk[:-1]), [talk[-1].text])
    return Demonstration(prompt, response)


def _each(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple((name,) for name in names)


# In the order in which they are tried.
LAYOUTS: dict[str, Layout] = {
    "records": Layout((("kind", "version"),), _record),
    "pairs": Layout(
        (("chosen", "rejected"),), _pair, (*fields.ASKED, *fields.MESSAGES), reads=marks.of_pair
    ),
    "kwise": Layout(_each(fields.RESPONSES), _ranked, fields.ASKED, beside=fields.RANKS),
    "chat": Layout(_each(fields.MESSAGES), _chat, reads=lambda names: set(fields.RATINGS)),
    "labelled": Layout(fields.QUESTIONS, _exchange, None, beside=("label",)),
    "scored": Layout(fields.QUESTIONS, _scored, None, beside=fields.SCORES),
    "instructions": Layout(fields.QUESTIONS, _exchange, None),
}


# --- comparisons ---------------------------------------------------------------------------------


def _consistent(record: Record) -> Record:
    """Raises Unusable for a comparison that ranks a text above itself."""
    if isinstance(record, Comparison) and len(set(record.responses)) < len(record.responses):
        ranked = set(zip(record.responses, record.ranking, strict=True))
        if len(ranked) > len({text for text, _ in ranked}):
            raise Unusable("two responses are the same text and have different ranks")
    return record


def _compared(group: list[tuple[int, Scored]], left: LeftOut) -> list[tuple[int, Record]]:
    """The answers to a prompt, each in a row of its own, ranked by their scores; more than 9 in
    several comparisons."""
    found: list[tuple[int, Record]] = []
    for start in range(0, len(group), MOST):
        numbers, part = zip(*group[start : start + MOST], strict=True)
        ranking = _ranks([answer.score for answer in part], descending=True)
        try:
            if len(part) < 2:
                raise Unusable("a score of one response alone compares nothing")
            if max(ranking) < 2:
                raise Unusable("all responses to the prompt have the same score")
            responses = tuple(answer.response for answer in part)
            record = Comparison(part[0].prompt, responses, ranking)
            found.append((numbers[0], _consistent(record)))
        except ConfigError as e:
            for at in numbers:
                left.add(at, str(e))
    return found
