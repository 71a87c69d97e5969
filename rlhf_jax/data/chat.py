"""How prompts and conversations become token ids."""

from __future__ import annotations

from typing import Literal

from .tokenizer import ASSISTANT, BOS, END, USER, Tokenizer

Template = Literal["plain", "chat"]


def prompt_ids(tokenizer: Tokenizer, text: str, template: Template = "plain") -> list[int]:
    """Ids of a prompt that the model is to answer: BOS and the text, or with `chat`
    BOS <|user|> text <|end|> <|assistant|>."""
    ids = tokenizer.encode(text)
    return [BOS, *ids] if template == "plain" else [BOS, USER, *ids, END, ASSISTANT]
