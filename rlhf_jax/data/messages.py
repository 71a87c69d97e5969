"""Lists of messages as turns of a conversation: role and content (OpenAI), or from and value
(ShareGPT)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data.chat import MARKERS, Role, Turn, has_marker, transcript
from rlhf_jax.study.config import ConfigError

ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
OPENINGS = (MARKERS["user"], MARKERS["system"])
_CALLS = {"tool_calls", "function_call"}
_LEARNED = {"weight", "loss", "train", "trainable", "training"}


class Unusable(ConfigError):
    """A row that is as its layout says, but from which nothing can be learned."""


def turns(messages: Sequence[Any], field: str) -> list[Turn]:
    """The turns of a list of messages.

    Raises:
        ConfigError: a message that is none, or of an unknown role.
        Unusable: a tool's turn or a call of one, content that is not text, an answer that is not to
            be learned, or a text with a transcript's marker.
    """
    found: list[Turn] = []
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise ConfigError(f"{field}: message {i} is {_short(message)}; expected an object")
        by, holds = ("from", "value") if "from" in message else ("role", "content")
        name, text = message.get(by), message.get(holds)
        role = ROLES.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            raise ConfigError(
                f"{field}: message {i} has {by} = {_short(name)}; expected one of "
                f"{', '.join(ROLES)}"
            )
        if not _CALLS.isdisjoint(message) and any(message.get(call) for call in _CALLS):
            raise Unusable(f"{field}: message {i} calls a tool")
        if role == "assistant":
            _check_learned(message, f"{field}: message {i}")
        if not isinstance(text, str):
            text = _text(text, f"{field}: message {i} has {holds}")
        if has_marker(text):
            raise Unusable(f"{field}: message {i} holds what opens a turn of a transcript")
        found.append(Turn(role, f" {text}" if role == "assistant" else text))
    return found


def _check_learned(message: dict[str, Any], where: str) -> None:
    """Raises:
    Unusable: an answer of the assistant that is not to be learned, or less than others.
    """
    if _LEARNED.isdisjoint(message):
        return
    if message.get("weight") not in (1, None):
        raise Unusable(
            f"{where} has weight = {_short(message['weight'])}; turns have no weights here"
        )
    for name in ("loss", "train", "trainable", "training"):
        if message.get(name) in (False, "false", "False"):
            raise Unusable(f"{where} has {name} = {_short(message[name])}: not to be learned")


def _text(content: Any, where: str) -> str:
    """A message's content in parts that are all text."""
    if isinstance(content, list) and content:
        texts = [_part(part) for part in content]
        if all(text is not None for text in texts):
            return "".join(text or "" for text in texts)
        raise Unusable(f"{where} with parts that are not text")
    raise Unusable(f"{where} of type {type(content).__name__}; expected a string")


def _part(part: Any) -> str | None:
    """The text of a part of a message; None if it is something else."""
    if isinstance(part, dict) and part.get("type", "text") in ("text", "input_text", "output_text"):
        part = part.get("text")
    return part if isinstance(part, str) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def asking(found: list[Turn]) -> list[Turn]:
    """Turns from the first that is not the assistant's."""
    return list(itertools.dropwhile(lambda turn: turn.role == "assistant", found))


def prompt_of(found: Sequence[Turn]) -> str:
    """Turns as a transcript that the assistant is to go on."""
    return transcript([*found, Turn("assistant", "")])


def with_system(prompt: str, system: str) -> str:
    """A prompt, a text or a transcript, under a system's text, as a transcript.

    Raises:
        Unusable: a text holds a transcript's marker.
    """
    if not system.strip():
        return prompt
    if has_marker(system):
        raise Unusable("system holds what opens a turn of a transcript")
    turn = transcript([Turn("system", system)])
    if prompt.startswith(OPENINGS):
        return prompt if prompt.startswith(turn) else turn + prompt
    if has_marker(prompt):
        raise Unusable("the prompt holds what opens a turn of a transcript")
    return turn + prompt_of([Turn("user", prompt)])
