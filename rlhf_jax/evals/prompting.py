"""Evaluation by prompting: few-shot prompts, exact match, and multiple choice.

| template | prompt | end of the answer |
|---|---|---|
| plain | "Q: text", "A: answer", a blank line for each worked example; "Q: text", "A:" | newline |
| chat | for each worked example a turn of user and assistant; a turn of the user | EOS |

Exact match: the greedy completion, up to its first newline or EOS and stripped of white space,
equals the answer. Multiple choice: the answer has a higher log-probability per token than every
distractor (Brown et al. 2020). The tokens include the end of the choice, so that "river" does not
win over "river river" by being its beginning. Multiple choice improves before exact match does.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.data.chat import Template, Turn, has_marker, prompt_ids, transcript
from rlhf_jax.data.tokenizer import EOS, Tokenizer
from rlhf_jax.evals.intervals import paired_interval, wilson_interval
from rlhf_jax.study.config import ConfigError

TIE = 1e-5  # nats a token, which float32 does not tell apart


@dataclass(frozen=True)
class Item:
    """A task with one right answer.

    Attributes:
        type: of the instruction, for instance "last word".
        group: what the type is together with in figures, for instance "held-out types".
        text: the instruction and its input.
        answer: without white space around it, on one line.
        distractors: wrong answers, for multiple choice.
    """

    type: str
    group: str
    text: str
    answer: str
    distractors: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.text.strip() or has_marker(self.text):
            raise ConfigError(
                f"item {self.text!r}: expected a text, without the marker of a turn in it"
            )
        for choice in self.choices:
            if not choice or choice != " ".join(choice.split()):
                raise ConfigError(
                    f"item {self.text!r}: the choice {choice!r} is empty or has white space that "
                    f"exact match would not see; write it on one line with single spaces"
                )
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise ConfigError(
                f"item {self.text!r}: choices {self.choices}; give at least one distractor, all "
                f"different from each other and from the answer"
            )

    @property
    def choices(self) -> tuple[str, ...]:
        """The answer first."""
        return (self.answer, *self.distractors)


def worked_examples(
    items: Sequence[Item], pool: Sequence[Item], shots: int, seed: int
) -> list[list[Item]]:
    """For each item `shots` other items of its type and group from the pool. For one seed the
    examples of fewer shots are the first ones of more shots.

    Raises:
        ConfigError: the pool has too few.
    """
    found = []
    for i, item in enumerate(items):
        others = [
            p for p in pool if (p.type, p.group) == (item.type, item.group) and p.text != item.text
        ]
        if len(others) < shots:
            raise ConfigError(
                f"{shots} shots of {item.type!r} ({item.group}), but the training split gave "
                f"{len(others)} other items of it; lower shots or have the tasks give more"
            )
        random.Random(f"{seed} {i}").shuffle(others)
        found.append(others[:shots])
    return found


def few_shot(item: Item, examples: Sequence[Item], template: Template) -> str:
    """The prompt: worked examples, then the item's text, as `rlhf_jax.data.chat.prompt_ids` reads
    it."""
    if template == "plain":
        worked = "".join(f"Q: {e.text}\nA: {e.answer}\n\n" for e in examples)
        return f"{worked}Q: {item.text}\nA:"
    turns = [t for e in examples for t in (Turn("user", e.text), Turn("assistant", f" {e.answer}"))]
    return transcript([*turns, Turn("user", item.text), Turn("assistant", "")])


def answer_ids(tokenizer: Tokenizer, answer: str, template: Template) -> list[int]:
    """Token ids of an answer as it follows a prompt, its end included."""
    end = tokenizer.encode("\n") if template == "plain" else [EOS]
    return [*tokenizer.encode(f" {answer}"), *end]


def completed(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of a completion up to its first EOS or newline, stripped of white space."""
    ids = list(tokens)
    ids = ids[: ids.index(EOS)] if EOS in ids else ids
    return tokenizer.decode(ids).split("\n")[0].strip()


def chosen(log_probs_K: np.ndarray) -> float:
    """1 if the first choice is the likeliest, 1/m if m choices are equally likely (to `TIE`), else
    0."""
    best = np.flatnonzero(log_probs_K >= np.nanmax(log_probs_K) - TIE)
    return 1 / len(best) if 0 in best else 0.0


def encoded(
    tokenizer: Tokenizer, items: Sequence[Item], prompts: Sequence[str], template: Template
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Token ids of the prompts, and of every choice of every item."""
    ids = [prompt_ids(tokenizer, text, template) for text in prompts]
    return ids, [[answer_ids(tokenizer, c, template) for c in item.choices] for item in items]


@dataclass(frozen=True)
class Answers:
    """A model's completions of n items at one number of shots, and log-probabilities per token of
    their choices (n, K), NaN beyond an item's choices."""

    items: Sequence[Item]
    completions: Sequence[str]
    log_probs_NK: np.ndarray


def scored(answers: Answers, seed: int = 0) -> dict[str, Any]:
    """Rates over some items, with 95% intervals over items.

    Returns {"n", "exact", "exact_interval", "majority": exact match of the answer that is right
    most often, "choice", "choice_interval", "chance": of picking the right choice blindly,
    "margin": nats a token by which the answer is likelier than the likeliest distractor,
    "margin_interval"}.
    """
    items, n = answers.items, len(answers.items)
    exact = sum(said == item.answer for said, item in zip(answers.completions, items, strict=True))
    right = sum(map(chosen, answers.log_probs_NK))
    margin, ends = paired_interval(
        answers.log_probs_NK[:, 0] - np.nanmax(answers.log_probs_NK[:, 1:], axis=1),
        resamples=1000,
        seed=seed,
    )
    (_, most), *_ = Counter(item.answer for item in items).most_common(1)
    return {
        "n": n,
        "exact": exact / n,
        "exact_interval": wilson_interval(exact, n),
        "majority": most / n,
        "choice": right / n,
        "choice_interval": wilson_interval(right, n),
        "chance": float(np.mean([1 / len(item.choices) for item in items])),
        "margin": margin,
        "margin_interval": ends,
    }


def summary(answers: Answers, seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`scored` of every type and group, in the order of the items, and of every group, whose chance
    and majority are means over its types."""
    kinds = list(dict.fromkeys((item.group, item.type) for item in answers.items))
    types = [
        {"group": group, "type": kind, **scored(_only(answers, group, kind), seed)}
        for group, kind in kinds
    ]
    groups = []
    for group in dict.fromkeys(group for group, _ in kinds):
        parts = [t for t in types if t["group"] == group]
        row = scored(_only(answers, group), seed)
        row["majority"] = float(np.mean([t["majority"] for t in parts]))
        groups.append({"group": group, "types": len(parts), **row})
    return types, groups


def _only(answers: Answers, group: str, kind: str | None = None) -> Answers:
    hit = [i for i, t in enumerate(answers.items) if t.group == group and kind in (None, t.type)]
    return Answers(
        [answers.items[i] for i in hit],
        [answers.completions[i] for i in hit],
        answers.log_probs_NK[hit],
    )
