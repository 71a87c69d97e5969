"""A prompting cell of a policy whose every probability is known: its completions, choices and
counts."""

import numpy as np
import pytest
import tiny_policies as tiny
from tiny_models import mesh
from tiny_policies import MODEL, Bench, Table, compiled

from rlhf_jax.data.tokenizer import EOS
from rlhf_jax.evals.prompting import Item
from rlhf_jax.kinds import Pretrain, Prompting

__all__ = ["compiled", "mesh"]
ANSWERS = {"one": ("good", "bad", "love"), "two": ("good", "good love", "sad")}


def tasks(split, n, seed):
    """Items of two groups, those of the test split begin with another word; more than are asked
    at once."""
    return [
        Item(
            "say",
            group,
            f"{tiny.MARKERS[split]} {' '.join(str(i))}",
            answers[i % 3],
            tuple(a for a in answers if a != answers[i % 3]) + (("hate sad",) if i % 2 else ()),
        )
        for group, answers in ANSWERS.items()
        for i in range(n)
    ]


def speaker():
    """Says `good` after a colon, ends a line after `good` and `love`, goes on after `bad`."""
    rng = np.random.default_rng(11)
    logits = rng.normal(0, 0.5, (tiny.CLASSES, tiny.VOCAB))
    ids, newline = tiny.word_ids(), tiny.corpus().tokenizer.encode("\n")[0]
    colon = tiny.classes()[tiny.corpus().tokenizer.encode(":")[-1]]
    for i, word in enumerate(tiny.SAID):
        logits[colon, ids[word]] = 6 - i
        logits[i, [newline, ids["love"], ids["sad"]]] = {"bad": (1, 4, 2)}.get(word, (5, 3, 2))
    return Table(logits)


@pytest.fixture(scope="module")
def asked(mesh, tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("prompting"), mesh)
    parent = Pretrain("speaker", model=MODEL, batch=2, tokens=64, seed=9)
    bench.finished(bench.study(parent), "speaker", MODEL, tiny.trunk(MODEL, speaker().logits))
    cell = Prompting(
        "asked",
        policy="speaker",
        tasks=f"{__name__}:tasks",
        shots=(0, 2),
        items=40,
        answer_len=4,
        seed=1,
    )
    ctx = bench.run(cell, beside=(parent,))
    return bench, ctx.folder.result("prompting")


def greedy(bench):
    """The completion of every prompt, which ends in a colon."""
    token, row = bench.corpus.tokenizer.encode("A:")[-1], []
    while len(row) < 4 and token != EOS:
        token = int(speaker().logits[tiny.classes()[token]].argmax())
        row.append(token)
    return bench.corpus.tokenizer.decode(row).split("\n")[0].strip()


def choice(bench, text):
    """Nats a token of an answer and the end of its line."""
    encode = bench.corpus.tokenizer.encode
    tokens = encode(f" {text}") + encode("\n")
    before = [encode("A:")[-1], *tokens[:-1]]
    return speaker().log_probs(before, tokens).mean()


def test_matches_choices_and_margins_are_those_of_the_probabilities(asked):
    bench, found = asked
    said = greedy(bench)
    assert said == "good"
    for shots in (0, 2):
        for group in ANSWERS:
            items = [i for i in tasks("test", 40, 1) if i.group == group]
            lp = [[choice(bench, c) for c in i.choices] for i in items]
            for rows in (found["types"], found["groups"]):
                (row,) = (r for r in rows if (r["shots"], r["group"]) == (shots, group))
                assert row["n"] == 40
                assert row["exact"] == pytest.approx(np.mean([i.answer == said for i in items]))
                assert row["choice"] == pytest.approx(np.mean([x[0] > max(x[1:]) for x in lp]))
                assert row["margin"] == pytest.approx(
                    np.mean([x[0] - max(x[1:]) for x in lp]), abs=1e-4
                )
                assert row["chance"] == pytest.approx(np.mean([1 / len(i.choices) for i in items]))
                assert row["majority"] == pytest.approx(14 / 40)
            assert 0.2 < row["choice"] < 0.9 and row["exact"] == 14 / 40


def test_items_are_of_the_test_split_and_worked_examples_of_the_training_split(asked):
    bench, found = asked
    assert len(found["shown"]) == 2 * 2 * 2
    for shown in found["shown"]:
        item = next(
            i for i in tasks("test", 40, 1) if (i.group, i.text) == (shown["group"], shown["text"])
        )
        *worked, last = shown["prompt"].split("\n\n")
        assert last == f"Q: {item.text}\nA:" and len(worked) == shown["shots"]
        pool = {
            f"Q: {i.text}\nA: {i.answer}" for i in tasks("train", 40, 1) if i.group == item.group
        }
        assert len(set(worked)) == len(worked) and set(worked) <= pool
        assert (shown["answer"], shown["completion"]) == (item.answer, "good")
        best = max(item.choices, key=lambda c: choice(bench, c))
        assert shown["chosen"] == best
    encode = bench.corpus.tokenizer.encode
    lengths = [1 + len(encode(f"Q: {i.text}\nA:")) + 4 for i in tasks("test", 40, 1)]
    assert found["tokens"]["0"] == {
        "mean": pytest.approx(np.mean(lengths)),
        "longest": max(lengths),
    }
    assert found["tokens"]["2"]["mean"] > 2 * np.mean(lengths)
