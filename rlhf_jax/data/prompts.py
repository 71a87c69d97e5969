"""Prompts of a task: openings of real sentences of the corpus."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.corpus import Corpus
from rlhf_jax.data.loader import permute
from rlhf_jax.data.tokenizer import BOS
from rlhf_jax.study.config import ConfigError

_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)")
_START = re.compile(r"[\"'“‘(]?[A-Z]")
# In other scripts: with or without a space after it, and letters that have no capitals.
_ANY_END = re.compile(r"[.!?…][\"'”’»)\]]*(?=\s|$)|[。！？｡।॥۔؟։።။།][\"'”’»」』）)\]]*")
_QUOTES = "\"'“”‘’«„(「『（¿¡—–- "
# Scripts without spaces between words; some of them end a sentence with a space.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
_SPACE_ENDS = re.compile("[\u0e00-\u0eff]")
_LETTERS = 4000  # leading characters that decide a document's script


class _Script(NamedTuple):
    """How the sentences of a document end, and whether they begin with A to Z."""

    end: re.Pattern[str]
    latin: bool


_LATIN = _Script(_SENTENCE_END, True)
_OTHER = _Script(_ANY_END, False)
_THAI = _Script(re.compile(_ANY_END.pattern + r"|(?=\s|$)"), False)  # spaces are between sentences


@dataclass(frozen=True)
class Prompt:
    """The opening of a passage of real text, and how its sentence goes on.

    Attributes:
        prompt: the opening; it ends within a sentence, between two words.
        response: the true continuation, to the end of that sentence.
        prompt_ids: BOS and the prompt's tokens, exactly `length` of them.
        response_ids: the response's tokens, without EOS. Prompt and response tokenize separately
            as they do together.
        document: where it is from, `source:id`.
    """

    prompt: str
    response: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    document: str


def prompts_from(
    corpus: Corpus, split: str, n: int, length: int, seed: int, max_response: int = 32
) -> list[Prompt]:
    """`n` different prompts from the documents of a split.

    Splits share no document, so prompts of different splits are from different text. A prompt
    starts where a paragraph or a sentence starts and stays within its paragraph.

    Args:
        n: how many.
        length: tokens of a prompt, BOS included.
        seed: of their choice and order; for one seed, a smaller `n` gives a prefix.
        max_response: most tokens of the true continuation, without EOS.

    Raises:
        ConfigError: the split holds fewer such openings, or `length` is below 2.
    """
    if length < 2:
        raise ConfigError(
            f"task.prompt_len = {length}; expected at least 2: a prompt is BOS and a token of text"
        )
    starts = [
        (f"{d['source']}:{d['id']}", paragraph, at, script)
        for d in corpus.documents(split)
        for script in [_script_of(d["text"][:_LETTERS])]
        for paragraph in d["text"].split("\n\n")
        for at in _sentence_starts(paragraph, script)
    ]
    found: dict[str, Prompt] = {}
    for i in permute(np.arange(len(starts)), len(starts), seed, length):
        if len(found) == n:
            break
        document, paragraph, at, script = starts[i]
        opening = _opening(corpus, paragraph[at:], length, max_response, script)
        if opening and opening[0] not in found:
            found[opening[0]] = Prompt(*opening, document)
    if len(found) < n:
        raise ConfigError(
            f"asked for {n} prompts of {length} tokens, but the {split} split has {len(found)} "
            f"with a continuation of at most {max_response} tokens; ask for fewer, raise "
            f"task.response_len, choose another task.prompt_len, or add text"
        )
    return list(found.values())


def _script_of(text: str) -> _Script:
    """The rules for a document: those of English if half of its letters are A to Z."""
    if text.isascii():
        return _LATIN
    letters = len(re.findall(r"[^\W\d_]", text))
    if 2 * len(re.findall(r"[A-Za-z]", text)) >= letters:
        return _LATIN
    return _THAI if 2 * len(_SPACE_ENDS.findall(text)) >= letters else _OTHER


def _sentence_starts(paragraph: str, script: _Script) -> list[int]:
    ends = [m.end() for m in script.end.finditer(paragraph)]
    after = (re.match(r"\s*", paragraph[end : end + 100]) for end in ends)
    starts = [0, *(end + space.end() for end, space in zip(ends, after, strict=True) if space)]
    if script.latin:
        return [at for at in starts if _START.match(paragraph, at)]
    return [
        at for at in dict.fromkeys(starts) if _begins(paragraph[at : at + 3].lstrip(_QUOTES)[:1])
    ]


def _begins(letter: str) -> bool:
    """Whether a letter is a capital, or of a script without capitals."""
    return letter.isalpha() and (letter.isupper() or letter.upper() == letter.lower())


def _between_words(before: str, after: str, script: _Script) -> bool:
    """Whether a text can be cut here."""
    if after.isspace():
        return True
    whole = not script.latin and bool(after) and not unicodedata.category(after).startswith("M")
    return whole and bool(_UNSPACED.match(before) and _UNSPACED.match(after))


def _opening(
    corpus: Corpus, text: str, length: int, max_response: int, script: _Script
) -> tuple[str, str, tuple[int, ...], tuple[int, ...]] | None:
    """Prompt, response and their ids from the start of `text`; None if it cannot be cut so."""
    tokenizer = corpus.tokenizer
    text = text[: 16 * (length + max_response)]
    head = tokenizer.encode(text)[: length - 1]
    prompt = tokenizer.decode(head)
    rest = text[len(prompt) :]
    if len(head) < length - 1 or not text.startswith(prompt):
        return None
    if not _between_words(prompt[-1:], rest[:1], script):
        return None
    end = script.end.search(rest, 0 if script.latin else 1)
    if not end or (_SENTENCE_END if script.latin else _ANY_END).search(prompt[-3:]):
        return None
    response = rest[: end.end()]
    tail = tokenizer.encode(response)
    whole = tokenizer.encode(prompt + response)
    if len(tail) > max_response or whole != head + tail or not re.search(r"\w", response):
        return None
    return prompt, response, (BOS, *head), tuple(tail)
