"""A long text as documents, so that one file can be split into training and validation."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

PASSAGE = 4000  # characters
PARAGRAPH = 16 * PASSAGE  # characters; longer paragraphs are cut
SHARES = 200  # least number of documents of a source's files, if their text is long enough
SHORTEST = 100  # characters of a passage
HELD = 1 << 24  # characters without a blank line that are held in memory

_BLANK = re.compile(r"(?:\r?\n){2,}")
# A text is cut at the end of a line, of a sentence (in any script), or of a word.
_CUTS = (
    re.compile(r"\n"),
    re.compile(r"[.!?][\"'”’)\]]*\s+|[。！？｡।۔؟][\"'”’」』）]*"),
    re.compile(r"\s+"),
)


def passages(blocks: Iterable[str], shares: int = SHARES) -> Iterator[str]:
    """A text, given in blocks, cut at blank lines into passages of at least `PASSAGE` characters.

    If more than half of it is one paragraph, longer than a passage, it is cut at line ends instead,
    into about `shares` passages of `SHORTEST` to `PASSAGE` characters; lines that are too long are
    cut after sentences or words. So is any paragraph of more than `PARAGRAPH` characters.
    """
    head, blocks = "", iter(blocks)
    for block in blocks:
        head += block
        if len(head) > SHARES * PASSAGE:
            break
    else:
        text = head.strip()
        longest = max(map(len, _BLANK.split(text)))
        if shares > 1 and longest > max(PASSAGE, len(text) // 2):
            yield from _cut(text, min(PASSAGE, max(SHORTEST, len(text) // shares)))
            return
    yield from _at_blank_lines(itertools.chain([head], blocks))


def _at_blank_lines(blocks: Iterable[str]) -> Iterator[str]:
    passage = ""
    for paragraph in _paragraphs(blocks):
        parts = _cut(paragraph, PASSAGE) if len(paragraph) > PARAGRAPH else [paragraph]
        for part in parts:
            passage += f"\n\n{part}" if passage else part
            if len(passage) >= PASSAGE:
                yield passage
                passage = ""
    if passage.strip():
        yield passage


def _paragraphs(blocks: Iterable[str]) -> Iterator[str]:
    """The text between blank lines, in parts of at most about `HELD` characters."""
    rest, searched = "", 0
    for block in blocks:
        rest += block
        at = 0
        for blank in _BLANK.finditer(rest, searched):
            # A blank line at the end of a block may continue in the next block.
            if rest[blank.end() : blank.end() + 2] in ("", "\r"):
                break
            yield rest[at : blank.start()]
            at = blank.end()
        rest = rest[at:]
        if len(rest) > HELD:
            at = rest.rfind("\n", 0, -2) + 1 or len(rest) - 2
            yield rest[:at].rstrip("\r\n")
            rest = rest[at:]
        searched = max(0, len(rest.rstrip("\r\n")) - 1)
    yield from _BLANK.split(rest)


def _cut(text: str, size: int) -> Iterator[str]:
    """Pieces of at least `size` characters, the last one of at least half as many."""
    at = 0
    while len(text) - at > size + size // 2:
        end = _end(text, at + size - 1, max(400, size // 2))
        if piece := text[at:end].strip():
            yield piece
        at = end
    if piece := text[at:].strip():
        yield piece


def _end(text: str, start: int, within: int) -> int:
    """Where to cut at or after `start`."""
    for cut in _CUTS:
        if found := cut.search(text, start, start + within):
            return found.end()
    return start + 1
