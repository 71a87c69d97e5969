"""Human feedback, recorded and simulated: demonstrations, comparisons, prompts, annotators.

Records are JSON lines, `{"kind": "comparison", "version": 1, ...}`, checked field by field. Where
no person has given feedback, prompts come from real text and a programmatic labeller judges:
sentiment (VADER, Hutto & Gilbert 2014) is the gold score, and annotators rank with noise.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..config import ConfigError, suggest
from .corpus import Corpus
from .loader import permute
from .tokenizer import BOS

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


# --- prompts from text -----------------------------------------------------------------------

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


# --- simulated labellers ---------------------------------------------------------------------


@functools.cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def gold_score(texts: Iterable[str]) -> np.ndarray:
    """VADER's compound sentiment of each response, float64 in [-1, 1]; about 0.1 ms a text."""
    return np.array([_analyzer().polarity_scores(text)["compound"] for text in texts], np.float64)


def approved(prompts: Iterable[Prompt], threshold: float = 0.0) -> list[Prompt]:
    """The prompts whose true continuation has a `gold_score` of at least `threshold`: what the
    labeller would demonstrate. Trained on with EOS, they teach the model to finish the sentence and
    to stop."""
    prompts = list(prompts)
    scores = gold_score(p.response for p in prompts)
    return [p for p, score in zip(prompts, scores, strict=True) if score >= threshold]


def rank_by_annotators(
    scores: np.ndarray, noise: float, annotators: int, seed: int | Sequence[int]
) -> np.ndarray:
    """Rankings that noisy annotators would give.

    Each annotator draws a ranking from a Plackett-Luce model (Plackett 1975) with utilities
    score / noise, by sorting utilities to which Gumbel noise is added (Yellott 1977). The result
    ranks the responses by their mean rank over the annotators.

    Args:
        scores: (..., K) utilities, higher is better.
        noise: the difference in score that makes the odds of a preference e to 1; 0: no noise.
        annotators: at least 1.
        seed: of the draws.

    Returns:
        (..., K) int64 dense ranks from 1, lower is better; equal mean ranks are ties.
    """
    if noise < 0 or annotators < 1:
        raise ConfigError(f"noise = {noise}, annotators = {annotators}; expected >= 0 and >= 1")
    scores = np.asarray(scores, np.float64)
    gumbel = np.random.default_rng(seed).gumbel(size=(annotators, *scores.shape))
    utilities = scores + noise * gumbel
    better = utilities[..., None, :] > utilities[..., :, None]  # [..., k, j]: j is above k
    total = better.sum(axis=(0, -1))  # mean rank, times annotators, from 0: exact integers
    above = total[..., None, :] < total[..., :, None]
    first = np.tril(total[..., None, :] == total[..., :, None], -1).any(-1)  # a tie seen earlier
    return 1 + (above & ~first[..., None, :]).sum(axis=-1)
