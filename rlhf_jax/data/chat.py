"""Prompts and conversations as token ids, with the mask of tokens that are learned.

A conversation is a text: turns that open with "\\n\\nHuman: ", "\\n\\nAssistant:" or "\\n\\nSystem:
", as in the transcripts of Bai et al. 2022. A prompt that opens with a turn of a person or the
system and ends in "\\n\\nAssistant:" is one, and prompt + response is the transcript, so what the
assistant says begins with its space. Any other prompt is a single text.

Template `plain` writes a single prompt as BOS text and its answer as answer EOS; a conversation as
BOS, then the marker and text of each turn, with EOS after each of the assistant's. Template `chat`
writes a single prompt as BOS USER text END ASSISTANT and its answer as answer EOS; a conversation
as the same for every turn, the system's turns as USER's.

Every turn of the assistant ends in EOS, not only the last: EOS alone stops generation, so the model
must learn it as the end of an answer wherever the answer stands, and a conversation that goes on
holds the very tokens that were generated. END closes what the model is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from rlhf_jax.data.packing import Example
from rlhf_jax.data.tokenizer import ASSISTANT, BOS, END, EOS, USER, Tokenizer
from rlhf_jax.study.config import ConfigError

Template = Literal["plain", "chat"]
Role = Literal["user", "assistant", "system"]
MARKERS: dict[Role, str] = {
    "user": "\n\nHuman: ",
    "assistant": "\n\nAssistant:",
    "system": "\n\nSystem: ",
}
_ROLES: dict[str, Role] = {marker: role for role, marker in MARKERS.items()}
_MARKER = re.compile("(" + "|".join(map(re.escape, _ROLES)) + ")")


class Turn(NamedTuple):
    """One turn of a conversation: the text after its marker."""

    role: Role
    text: str


def transcript(turns: Iterable[Turn]) -> str:
    """Turns as one text; `turns_of` reads them back."""
    return "".join(MARKERS[turn.role] + turn.text for turn in turns)


def turns_of(text: str) -> list[Turn]:
    """The turns of a transcript; of any other text, none."""
    if not text.startswith((MARKERS["user"], MARKERS["system"])):
        return []
    parts = _MARKER.split(text)[1:]
    return [Turn(_ROLES[m], t) for m, t in zip(parts[::2], parts[1::2], strict=True)]


def has_marker(text: str) -> bool:
    """Whether a text holds the marker of a turn."""
    return bool(_MARKER.search(text))


def prompt_ids(tokenizer: Tokenizer, text: str, template: Template = "plain") -> list[int]:
    """Ids of a prompt that the model is to answer: BOS and the text, or with `chat`
    BOS <|user|> text <|end|> <|assistant|>; of a conversation, all its turns so far."""
    return _prompt(tokenizer, text, template).ids


def example_ids(
    tokenizer: Tokenizer,
    prompt: str,
    response: str,
    template: Template = "plain",
    length: int | None = None,
) -> Example:
    """A prompt and the response to learn. In a conversation the assistant's earlier turns are
    learned as well; turns of others never are.

    Args:
        length: tokens at most; the end of a longer example is cut off.

    Raises:
        ConfigError: a blank response, or nothing to learn within `length`.
    """
    if not response.strip():
        raise ConfigError(f"the response is {response!r}; nothing is learned from a blank one")
    start = _prompt(tokenizer, prompt, template)
    answer = [*tokenizer.encode(response), EOS]
    ids = [*start.ids, *answer][:length]
    mask = [*start.mask, *[1] * len(answer)][:length]
    if not any(mask):
        raise ConfigError(
            f"the prompt takes {len(start.ids)} tokens of at most {length}, which leaves nothing "
            f"to learn; shorten it or make rows longer (corpus.seq_len)"
        )
    return Example(ids, mask)


def _prompt(tokenizer: Tokenizer, text: str, template: Template) -> Example:
    """The prompt with the mask of the assistant's earlier turns."""
    turns = turns_of(text)
    if not turns or turns[-1].role != "assistant" or turns[-1].text.strip():
        ids = tokenizer.encode(text)
        ids = [BOS, *ids] if template == "plain" else [BOS, USER, *ids, END, ASSISTANT]
        return Example(ids, [0] * len(ids))
    ids, mask = [BOS], [0]
    for part, learned in _parts(tokenizer, turns[:-1], template):
        ids += part
        mask += [learned] * len(part)
    opening = [ASSISTANT]
    if template == "plain":
        opening = tokenizer.encode(MARKERS["assistant"] + turns[-1].text)
    return Example(ids + opening, mask + [0] * len(opening))


def _parts(
    tokenizer: Tokenizer, turns: Sequence[Turn], template: Template
) -> Iterator[tuple[list[int], int]]:
    """(ids, whether they are learned) of the parts of turns."""
    for role, text in turns:
        if role == "assistant":
            yield tokenizer.encode(MARKERS[role]) if template == "plain" else [ASSISTANT], 0
            yield [*tokenizer.encode(text), EOS], 1
        elif template == "plain":
            yield tokenizer.encode(MARKERS[role] + text), 0
        else:
            yield [USER, *tokenizer.encode(text), END], 0
