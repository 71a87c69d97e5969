"""Texts and lists of messages as prompts and answers. A message has a role and content (OpenAI), or
from and value (ShareGPT)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data.chat import MARKERS, Role, Turn, has_marker, transcript
from rlhf_jax.data.fields import GIVEN, SYSTEM, Row, Unusable, first, text
from rlhf_jax.study.config import ConfigError

ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
OPENINGS = (MARKERS["user"], MARKERS["system"])
ANSWER = MARKERS["assistant"]
_STRIPPED = tuple(opening.lstrip() for opening in OPENINGS)
_FLAGS = ("loss", "train", "trainable", "training")


def turns(messages: Sequence[Any], field: str) -> list[Turn]:
    """The turns of a list of messages.

    Raises:
        ConfigError: an element that is not a message, or is of an unknown role.
        Unusable: a tool's turn or a call of one, content that is not text, an answer that is not to
            be learned, or a text with a transcript's marker.
    """
    return [_turn(message, f"{field}: message {i}") for i, message in enumerate(messages, 1)]


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise ConfigError(f"{where} is {_short(message)}; expected an object")
    by, holds = ("from", "value") if "from" in message else ("role", "content")
    name, content = message.get(by), message.get(holds)
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise ConfigError(f"{where} has {by} = {_short(name)}; expected one of {', '.join(ROLES)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise Unusable(f"{where} calls a tool")
    if role == "assistant":
        _check_learned(message, where)
    if not isinstance(content, str):
        content = _joined(content, f"{where} has {holds}")
    if has_marker(content):
        raise Unusable(f"{where} holds what opens a turn of a transcript")
    return Turn(role, f" {content}" if role == "assistant" else content)


def _check_learned(message: dict[str, Any], where: str) -> None:
    """Raises Unusable for an answer of the assistant that is not to be learned, or less than
    others."""
    if message.get("weight") not in (1, None):
        weight = _short(message["weight"])
        raise Unusable(f"{where} has weight = {weight}; turns have no weights here")
    for name in _FLAGS:
        if message.get(name) in (False, "false", "False"):
            raise Unusable(f"{where} has {name} = {_short(message[name])}: not to be learned")


def _joined(content: Any, where: str) -> str:
    """The text of a message's content, a list of parts that are all text."""
    if not isinstance(content, list) or not content:
        raise Unusable(f"{where} of type {type(content).__name__}; expected a string")
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type", "text") in (
            "text",
            "input_text",
            "output_text",
        ):
            part = part.get("text")
        if not isinstance(part, str):
            raise Unusable(f"{where} with parts that are not text")
        texts.append(part)
    return "".join(texts)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def without_greeting(found: list[Turn]) -> list[Turn]:
    """Turns from the first that is not the assistant's."""
    return list(itertools.dropwhile(lambda turn: turn.role == "assistant", found))


def prompt_of(found: Sequence[Turn]) -> str:
    """Turns as a transcript that the assistant is to continue."""
    return transcript([*found, Turn("assistant", "")])


def said(value: Any, name: str) -> str:
    """A text as it is; a message or a list of messages as a transcript."""
    if isinstance(value, list | dict):
        return transcript(turns([value] if isinstance(value, dict) else value, name))
    return _opened(text(value, name))


def question(row: Row, name: str) -> str:
    """The prompt in the field that asks, with its material: a text as it is, a list of messages as
    a transcript to be answered."""
    if isinstance(row.get(name), list):
        found = without_greeting(turns(row[name], name))
        if not found or found[-1].role == "assistant":
            raise Unusable(f"{name} holds no turn that an answer could follow")
        return prompt_of(found)
    prompt = _opened(text(row.get(name), name))
    if name != "prompt":
        given = (text(row[g], g) for g in GIVEN if g != name and row.get(g))
        prompt = "\n\n".join(part for part in (prompt, *given) if part.strip())
    return _after(row["history"], prompt) if row.get("history") else prompt


def answer(value: Any, name: str) -> str:
    """An answer, a text or one message of the assistant.

    Raises:
        Unusable: it is blank, or another turn.
    """
    if isinstance(value, list | dict):
        found = turns(value if isinstance(value, list) else [value], name)
        if [turn.role for turn in found] != ["assistant"]:
            raise Unusable(f"{name} is not one turn of the assistant")
        value = found[0].text
    if not text(value, name).strip():
        raise Unusable(f"{name} is blank")
    return value


def last_turn(value: str) -> tuple[str, str]:
    """A transcript before and after the marker of its last turn, which must be the assistant's."""
    at = value.rfind(ANSWER)
    at += len(ANSWER) if at >= 0 else 0
    head, response = value[:at], value[at:]
    if not head.startswith(OPENINGS) or has_marker(response):
        raise Unusable('no transcript that opens with "Human:" and ends in an "Assistant:" turn')
    return head, response


def under_system(row: Row, prompt: str, responses: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Prompt and responses with the row's system text. In a conversation what the assistant says
    begins with a space."""
    if name := first(SYSTEM, row):
        prompt = _with_system(prompt, text(row[name], name))
    if prompt.startswith(OPENINGS) and prompt.rstrip().endswith(ANSWER):
        prompt = prompt.rstrip()
        responses = [t if t[:1].isspace() or not t else f" {t}" for t in responses]
    return prompt, tuple(responses)


def _with_system(prompt: str, system: str) -> str:
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


def _opened(value: str) -> str:
    """A transcript whose leading blank lines were stripped, with them; any other text as it is."""
    value = value.replace("\r\n", "\n")
    return f"\n\n{value}" if value.startswith(_STRIPPED) and ANSWER in value else value


def _after(history: Any, prompt: str) -> str:
    """A prompt after earlier exchanges, a list of question and answer each."""
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise ConfigError(f"history = {str(history)[:80]}; expected pairs of question and answer")
    messages = [
        {"role": role, "content": content}
        for pair in [*history, [prompt]]
        for role, content in zip(("user", "assistant"), pair, strict=False)
    ]
    return prompt_of(turns(messages, "history"))
