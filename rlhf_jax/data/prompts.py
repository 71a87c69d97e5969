"""Prompts of a task: openings of real sentences of the corpus."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..config import ConfigError
from .corpus import Corpus
from .loader import permute
from .tokenizer import BOS

_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)")


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
        raise ConfigError(f"length = {length}; a prompt is BOS and at least one token of text")
    starts = [
        (f"{d['source']}:{d['id']}", paragraph, at)
        for d in corpus.documents(split)
        for paragraph in d["text"].split("\n\n")
        for at in _sentence_starts(paragraph)
    ]
    found: dict[str, Prompt] = {}
    for i in permute(np.arange(len(starts)), len(starts), seed, length):
        if len(found) == n:
            break
        document, paragraph, at = starts[i]
        opening = _opening(corpus, paragraph[at:], length, max_response)
        if opening and opening[0] not in found:
            found[opening[0]] = Prompt(*opening, document)
    if len(found) < n:
        raise ConfigError(
            f"asked for {n} prompts of {length} tokens, but the {split} split has {len(found)} "
            f"with a continuation of at most {max_response} tokens; lower n or length, or add text"
        )
    return list(found.values())


def _sentence_starts(paragraph: str) -> list[int]:
    after = (re.match(r"\s*", paragraph[m.end() :]) for m in _SENTENCE_END.finditer(paragraph))
    ends = (m.end() for m in _SENTENCE_END.finditer(paragraph))
    starts = [0, *(end + space.end() for end, space in zip(ends, after, strict=True) if space)]
    return [at for at in starts if re.match(r"[\"'“‘(]?[A-Z]", paragraph[at:])]


def _opening(
    corpus: Corpus, text: str, length: int, max_response: int
) -> tuple[str, str, tuple[int, ...], tuple[int, ...]] | None:
    """Prompt, response and their ids at the start of `text`, if it can be cut there."""
    tokenizer = corpus.tokenizer
    text = text[: 16 * (length + max_response)]
    head = tokenizer.encode(text)[: length - 1]
    prompt = tokenizer.decode(head)
    rest = text[len(prompt) :]
    if len(head) < length - 1 or not text.startswith(prompt) or not rest[:1].isspace():
        return None
    end = _SENTENCE_END.search(rest)
    if not end or _SENTENCE_END.search(prompt[-3:]):
        return None
    response = rest[: end.end()]
    tail = tokenizer.encode(response)
    whole = tokenizer.encode(prompt + response)
    if len(tail) > max_response or whole != head + tail or not re.search(r"\w", response):
        return None
    return prompt, response, (BOS, *head), tuple(tail)
