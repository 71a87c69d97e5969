"""Parts of messages to the user, and warnings."""

from __future__ import annotations

import difflib
import reprlib
import sys
from collections.abc import Sequence
from typing import Any


def warn(text: str) -> None:
    """Prints a line to standard error, beside a command's output."""
    print(f"rlhf-jax: {text}", file=sys.stderr, flush=True)


def suggest(given: str, known: Sequence[str]) -> str:
    """` Did you mean 'x'?` for a near miss, and the full list otherwise."""
    near = difflib.get_close_matches(given, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."


def shown(value: Any) -> str:
    """A value in a message, shortened."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes integers of up to 4300 digits
        return f"an integer of {value.bit_length()} bits"


def not_unicode(text: str) -> str:
    """Why UTF-8 cannot write a text: bytes in another encoding became half of a surrogate pair.
    Empty if it can."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        near = text[max(0, e.start - 20) : e.start + 20]
        return (
            f"not valid Unicode text: character {e.start} of {len(text)} in {near!r} is half of a "
            "surrogate pair; give the text in UTF-8"
        )
    return ""
