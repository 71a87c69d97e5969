"""Guarantees of `rlhf_jax.kinds.sft.job`: where examples come from, and which are refused."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_models import mesh, tiny_corpus

from rlhf_jax.data import ASSISTANT, BOS, END, EOS, USER, pack_examples
from rlhf_jax.data.annotators import approved
from rlhf_jax.data.feedback import Comparison, Correction, Critique, Demonstration, read, write
from rlhf_jax.data.packing import Example
from rlhf_jax.data.prompts import prompts_from
from rlhf_jax.kinds import SFT, BestOfN, Compare, Pretrain, TaskConfig
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.pretrain.job import run as pretrain
from rlhf_jax.kinds.sft.job import continuations, from_records, packed_rows, source
from rlhf_jax.kinds.sft.job import run as sft
from rlhf_jax.model.sharding import AXES
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.files import write_json
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.results import as_json
from rlhf_jax.study.runs import Runs
from rlhf_jax.train import Runtime

__all__ = ["mesh"]
TASK = TaskConfig(prompt_len=6, response_len=6)
CHAT = TaskConfig(8, 6, prompts="test_jobs_sft:questions", template="chat")
MIXED = [
    Demonstration("a king", " saw"),
    Correction("a king", " hate", " love"),
    Comparison("a river", (" bad", " good"), (2, 1)),
    Comparison("a river", (" bad", " good"), (1, 1)),
    Critique("sad", "", "x", " happy", "bad"),
]


def questions(split, n, seed):
    return ["a king"] * n


def made(split, n, seed):
    return [Demonstration(f"the {split} {seed} {i}", " good") for i in range(n)]


def critiques(split, n, seed):
    return [MIXED[4]] * n


def junk(split, n, seed):
    return [MIXED[0], ("a", "b")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sft")


@pytest.fixture(scope="module")
def context(mesh, root):
    """cell -> its context, in a study whose base model is trained."""
    corpus, runs, run = tiny_corpus(root), Runs(root / "runs"), Runtime(mesh, AXES)
    model = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab)
    parents = (
        Pretrain("base", model=model, batch=4, tokens=4 * 32 * 4),
        Compare("compare", policy="base", task=TASK, prompts=2, k=2),
        BestOfN("best", policy="base", reward="test_jobs_sft:made", task=TASK, n=4),
    )

    def of(cell):
        study = Study("sft", (*parents, cell), corpus.cfg)
        folders = runs.folders(study, corpus.content_hash)
        return Context(study, cell, folders, corpus, run, Heartbeat(folders[cell.name]))

    base = of(SFT("unused", base="base"))
    base.cell = base.study["base"]
    write_json(base.folder.path / "config.json", {"kind": "pretrain"})
    pretrain(base, base.cell)
    return of


def learned(context, cell):
    return from_records(context(cell), cell, source(context(cell), cell))


def test_without_records_it_learns_approved_continuations_as_ever(context):
    cell = SFT("plain", base="base", task=TASK, examples=40, min_gold=0.1, batch=4)
    ctx = context(cell)
    shown, examples = continuations(ctx, cell)
    rows, steps = packed_rows(ctx, cell, examples)
    prompts = approved(prompts_from(ctx.corpus, "train", 40, 6, 0, 5), 0.1)
    pairs = [([*p.prompt_ids], [*p.response_ids, EOS]) for p in prompts]
    pairs = [Example(p + r, [0] * len(p) + [1] * len(r)) for p, r in pairs]
    expected = pack_examples(pairs, 32, ctx.corpus.token_bytes)
    assert shown == [Demonstration(p.prompt, p.response) for p in prompts]
    assert steps == len(expected["tokens"]) // 4 and rows.keys() == expected.keys()
    for key, value in expected.items():
        assert rows[key].dtype == value.dtype and (rows[key] == value).all(), key


def test_a_file_of_any_records_is_learned_from(context, root):
    path = root / "mixed.jsonl"
    long = Demonstration("a king", " good" * 40)
    write(path, [*MIXED[:4], long])
    cell = SFT("mixed", base="base", task=TASK, records=str(path), batch=2, epochs=2)
    ctx = context(cell)
    result = as_json(sft(ctx, cell))
    assert result["sft"] == {"demonstrations": 4, "steps": 2, "examples": 4, "cut": 1}
    assert np.isfinite(result["heldout"]["loss"])
    assert read(ctx.folder.results / "demonstrations.jsonl", Demonstration) == [
        MIXED[0],
        Demonstration("a king", " love"),
        Demonstration("a river", " good"),
        long,
    ]


def test_prompts_follow_the_template_and_examples_are_bounded(context):
    cell = SFT("made", base="base", task=CHAT, records="test_jobs_sft:made", examples=3, seed=5)
    shown, examples = learned(context, cell)
    assert shown == made("train", 3, 5)
    encode = context(cell).corpus.tokenizer.encode
    for record, example in zip(shown, examples, strict=True):
        given = [BOS, USER, *encode(record.prompt), END, ASSISTANT]
        answer = [*encode(" good"), EOS]
        assert example == (given + answer, [0] * len(given) + [1] * len(answer))
    critiques = dataclasses.replace(cell, records="test_jobs_sft:critiques", examples=2)
    assert len(learned(context, critiques)[1]) == 2


def test_cells_give_their_best_responses_to_training_prompts(context):
    cell = SFT("chosen", base="base", task=TASK, records="compare")
    results = context(cell).folders["compare"].results
    write(
        results / "comparisons.jsonl",
        [MIXED[2], MIXED[3], Comparison("held out", ("a", "b"), (1, 2))],
    )
    shown, examples = learned(context, cell)
    assert shown == [Demonstration("a river", " good")] and len(examples) == 1
    cell = SFT("best-of", base="base", task=TASK, records="best")
    write(context(cell).folders["best"].results / "demonstrations.jsonl", MIXED[:1])
    assert learned(context, cell)[0] == MIXED[:1]


def test_conversations_are_learned_turn_by_turn(context, root):
    path = root / "chat.json"
    turns = [("user", "a"), ("assistant", "good"), ("user", "a"), ("assistant", "king")]
    path.write_text(json.dumps([{"messages": [{"role": r, "content": t} for r, t in turns]}]))
    (example,) = learned(context, SFT("talk", base="base", task=CHAT, records=str(path)))[1]
    decode = context(SFT("talk", base="base")).corpus.tokenizer.decode
    said = [i for i, bit in zip(example.ids, example.mask, strict=True) if bit]
    assert decode(said) == " good king" and said.count(EOS) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Demonstration("a", " ")], "record 1: the response is ' '"),
        ([Demonstration("a king " * 40, " b")], "record 1: the prompt takes .* at most 33"),
        ([MIXED[3]], "1 records, none of which shows an answer"),
    ],
)
def test_records_that_teach_nothing_are_refused_with_their_number(context, root, rows, message):
    path = root / "bad.jsonl"
    write(path, rows)
    with pytest.raises(ConfigError, match=rf"bad: .*bad\.jsonl.* {message}"):
        learned(context, SFT("bad", base="base", task=TASK, records=str(path)))


def test_records_that_teach_nothing_are_left_out_counted_and_named(context, root):
    path = root / "some.jsonl"
    write(
        path, [Demonstration("a", " "), *MIXED[:2], Demonstration("a king " * 40, " b"), MIXED[3]]
    )
    cell = SFT("some", base="base", task=TASK, records=str(path))
    ctx = context(cell)
    shown, examples = from_records(ctx, cell, source(ctx, cell))
    assert (len(shown), len(examples)) == (2, 2)
    said = ctx.left_out[str(path)]
    assert said.startswith("3 rows left out: the response is ' '") and "(row 1)" in said
    assert "at most 33" in said and "(row 4)" in said and "shows no answer to learn (row 5)" in said


def test_records_are_numbered_by_their_rows_in_the_file(context, root):
    path = root / "gaps.jsonl"
    rows = [{"question": "q", "answer": ""}, {"question": "q " * 60, "answer": "a"}]
    path.write_text("".join(json.dumps(r) + "\n\n" for r in rows))
    with pytest.raises(ConfigError, match=r"gaps\.jsonl, record 3: the prompt takes"):
        learned(context, SFT("gaps", base="base", task=TASK, records=str(path)))


def test_callables_must_give_records_and_enough_of_them(context):
    with pytest.raises(ConfigError, match=r"junk.records = .*gave \('a', 'b'\) .*\(number 2 is"):
        learned(context, SFT("junk", base="base", task=TASK, records="test_jobs_sft:junk"))
    cell = SFT("few", base="base", task=TASK, records="test_jobs_sft:made", examples=3)
    with pytest.raises(
        ConfigError, match=r"3 examples fill \d rows of 32 tokens, less than one batch"
    ):
        packed_rows(context(cell), cell, learned(context, cell)[1])


def long_ones(prompts, responses):
    """A labeller that looks at the prompt too."""
    return [len(r) - len(p) for p, r in zip(prompts, responses, strict=True)]


def test_the_tasks_labeller_decides_what_is_shown(context):
    task = TaskConfig(prompt_len=6, response_len=6, gold="test_jobs_sft:long_ones")
    cell = SFT("long", base="base", task=task, examples=40, min_gold=-2.0, batch=4)
    shown, examples = continuations(context(cell), cell)
    prompts = prompts_from(context(cell).corpus, "train", 40, 6, 0, 5)
    expected = [(p.prompt, p.response) for p in prompts if len(p.response) - len(p.prompt) >= -2]
    assert [(d.prompt, d.response) for d in shown] == expected
    assert 0 < len(expected) < 40 and len(examples) == len(expected)
    assert expected != [(p.prompt, p.response) for p in approved(prompts, -2.0)]


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_prompts_without_true_continuations_need_records(template):
    task = TaskConfig(8, 6, prompts="test_jobs_sft:questions", template=template)
    with pytest.raises(
        ConfigError, match=r"s.task.prompts = 'test_jobs_sft:questions'.*give records"
    ):
        SFT("s", task=task)
    assert SFT("s", task=task, records="test_jobs_sft:made").records
