"""The training data in each kind of record.

| record | (prompt, completion) | comparison |
|---|---|---|
| comparison | best response, unless blank or tied with another text | itself, unless all tie |
| demonstration | its response | |
| correction | its edited response | edited over response |
| critique | its revision, and the texts below | revision over response |

Stiennon et al. 2020 and Ouyang et al. 2022 learn from demonstrations and comparisons; Saunders et
al. 2022 teach a model to write critiques and refine its answers by them; Bai et al. 2022 learn from
revisions and prefer them. A model of critiques is trained on these texts; | marks the begin of the
completion:

    PROMPT [response] RESPONSE [critique] | CRITIQUE [verdict] VERDICT
    PROMPT [response] RESPONSE [verdict] | VERDICT
    PROMPT [response] RESPONSE [critique] CRITIQUE [revision] | REVISION

Each name in brackets is on a line of its own, after a blank line. In the second text the verdict
follows at once, so its probability is that of one token sequence, and `rlhf_jax.rl.critique` can
score a response by log p(good) - log p(bad). A critique without a verdict gives the first text
without its verdict, and no second text; a critique without a revision gives no third.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlhf_jax.data.chat import Template, prompt_ids
from rlhf_jax.data.feedback import Comparison, Correction, Critique, Demonstration, Record
from rlhf_jax.data.tokenizer import EOS, Tokenizer

VERDICTS = ("good", "bad")
Pair = tuple[str, str]  # prompt and completion


def answer_of(record: Record) -> str | None:
    """The answer to its prompt that a record shows to be right, if any."""
    match record:
        case Demonstration():
            return record.response
        case Correction():
            return record.edited
        case Critique():
            return record.revision
        case Comparison():
            ranked = zip(record.responses, record.ranking, strict=True)
            best = [text for text, rank in ranked if rank == min(record.ranking)]
            return best[0] if len(set(best)) == 1 and best[0].strip() else None


def critique_prompt(prompt: str, response: str) -> str:
    """The prompt of a critique."""
    return f"{prompt}{_head('response')}{response}{_head('critique')}"


def verdict_prompt(prompt: str, response: str) -> str:
    """The prompt of a verdict alone."""
    return f"{prompt}{_head('response')}{response}{_head('verdict')}"


def verdict_ids(tokenizer: Tokenizer) -> list[list[int]]:
    """The completions of `VERDICTS`."""
    return [[*tokenizer.encode(verdict), EOS] for verdict in VERDICTS]


def verdict_tokens(tokenizer: Tokenizer, template: Template = "plain") -> int:
    """Tokens of a verdict prompt and the longest verdict beside those of prompt and response."""
    around = prompt_ids(tokenizer, verdict_prompt("", ""), template)
    return len(around) + max(map(len, verdict_ids(tokenizer)))


def revision_prompt(prompt: str, response: str, critique: str) -> str:
    """The prompt of a revision in the light of a critique."""
    return f"{critique_prompt(prompt, response)}{critique}{_head('revision')}"


def critique_examples(record: Critique) -> list[Pair]:
    """The texts that teach to criticise, to judge and to revise."""
    given = (record.prompt, record.response)
    judged = f"{_head('verdict')}{record.verdict}" if record.verdict else ""
    examples = [(critique_prompt(*given), record.critique + judged)]
    if record.verdict:
        examples.append((verdict_prompt(*given), record.verdict))
    if record.revision:
        examples.append((revision_prompt(*given, record.critique), record.revision))
    return examples


def examples_of(records: Iterable[Record]) -> list[Pair]:
    """The examples of supervised fine-tuning, record by record."""
    examples: list[Pair] = []
    for record in records:
        if (answer := answer_of(record)) is not None:
            examples.append((record.prompt, answer))
        if isinstance(record, Critique):
            examples += critique_examples(record)
    return examples


def comparisons_of(records: Iterable[Record]) -> list[Comparison]:
    """The comparisons that reward models and direct objectives learn from, in the order of the
    records, without those that prefer nothing."""
    found = []
    for record in records:
        if isinstance(record, Comparison):
            if len(set(record.ranking)) > 1:
                found.append(record)
        elif isinstance(record, Correction | Critique) and (better := answer_of(record)):
            found.append(Comparison(record.prompt, (better, record.response), (1, 2)))
    return found


def _head(name: str) -> str:
    return f"\n\n[{name}]\n"
