"""Responses that are ranked: rows with a score each as comparisons, and what a comparison may not
be."""

from __future__ import annotations

from rlhf_jax.data.feedback import Comparison, Record
from rlhf_jax.data.files import LeftOut
from rlhf_jax.data.messages import Unusable
from rlhf_jax.study.config import ConfigError

MOST = 9  # responses of a comparison


def consistent(record: Record) -> Record:
    """Raises:
    Unusable: a comparison that ranks a text above itself.
    """
    if isinstance(record, Comparison) and len(set(record.responses)) < len(record.responses):
        ranked = set(zip(record.responses, record.ranking, strict=True))
        if len(ranked) > len({text for text, _ in ranked}):
            raise Unusable("two responses are the same text and have different ranks")
    return record


def compared(
    prompt: str, group: list[tuple[int, str, float]], left: LeftOut
) -> list[tuple[int, Record]]:
    """The responses to a prompt, each in a row of its own, ranked by their scores; more than 9 in
    several comparisons."""
    found: list[tuple[int, Record]] = []
    for at in range(0, len(group), MOST):
        part = group[at : at + MOST]
        numbers, responses, scores = zip(*part, strict=True)
        order = sorted(set(scores), reverse=True)
        try:
            if len(part) < 2:
                raise Unusable("a score of one response alone compares nothing")
            if len(order) < 2:
                raise Unusable("all responses to the prompt have the same score")
            ranking = tuple(order.index(s) + 1 for s in scores)
            found.append((numbers[0], consistent(Comparison(prompt, responses, ranking))))
        except ConfigError as e:
            for number in numbers:
                left.add(number, str(e))
    return found
