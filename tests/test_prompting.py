"""Guarantees of prompting: worked examples never give the answer away, scores are what they say,
and what training holds out it never sees."""

import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_models import (
    GQA,
    full_logits,
    log_softmax,
    mesh,
    noisy_params,
    tiny_corpus,
)
from tiny_results import whole

from rlhf_jax.data.chat import example_ids, prompt_ids, turns_of
from rlhf_jax.data.tokenizer import EOS
from rlhf_jax.evals.prompting import (
    Answers,
    Item,
    answer_ids,
    chosen,
    completed,
    few_shot,
    summary,
    worked_examples,
)
from rlhf_jax.kinds import Pretrain, Prompting
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.prompting import job
from rlhf_jax.kinds.prompting import section as report
from rlhf_jax.kinds.prompting.result import Answered
from rlhf_jax.model.scoring import choice_log_probs
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.report.blocks import html
from rlhf_jax.report.study_results import CellResult, StudyResults
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.files import write_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.plan import cell_plan
from rlhf_jax.study.results import as_json
from rlhf_jax.train import Runtime

sys.path.append(str(Path(__file__).parent.parent / "experiments"))
import instructions

__all__ = ["mesh"]
TASKS = f"{__name__}:tasks"
NAMES = ("king", "river", "house", "love", "good", "bad")


def tasks(split: str, n: int, seed: int) -> list[Item]:
    """Repeat a word, and yes or no; both splits have the same items, so that a test item is in the
    pool."""
    repeat = [
        Item("repeat", "one", f"Say {w} {i}.", w, (f"{w} {w}", "sad"))
        for i in range(n)
        for w in [NAMES[i % len(NAMES)]]
    ]
    asked = [
        Item("ask", "two", f"Is it {i}?", ("yes", "no")[i % 2], (("no", "yes")[i % 2],))
        for i in range(n)
    ]
    return repeat + asked


# --- prompts -------------------------------------------------------------------------------------


def test_few_shot_prompts_are_these_texts():
    item, example = tasks("test", 2, 0)[:2]
    assert few_shot(item, [example], "plain") == "Q: Say river 1.\nA: river\n\nQ: Say king 0.\nA:"
    assert few_shot(item, [], "plain") == "Q: Say king 0.\nA:"
    assert few_shot(item, [example], "chat") == (
        "\n\nHuman: Say river 1.\n\nAssistant: river\n\nHuman: Say king 0.\n\nAssistant:"
    )


def test_worked_examples_are_of_the_same_type_and_never_the_item():
    items = tasks("test", 6, 0)
    for item, examples in zip(items, worked_examples(items, items, 5, 0), strict=True):
        assert len({e.text for e in examples}) == 5
        assert all(e.type == item.type and e.text != item.text for e in examples)
        assert few_shot(item, examples, "plain").count(item.text) == 1
    with pytest.raises(ConfigError, match="gave 5 other items of it; lower shots"):
        worked_examples(items, items, 6, 0)


def test_more_shots_begin_with_those_of_fewer():
    items = tasks("test", 6, 0)
    one, four = (worked_examples(items, items, n, 3) for n in (1, 4))
    assert [e[:1] for e in four] == one
    assert one != worked_examples(items, items, 1, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": " "}, "expected a text"),
        ({"text": "a\n\nHuman: b"}, "marker of a turn"),
        ({"answer": "two  spaces"}, "single spaces"),
        ({"distractors": ()}, "at least one distractor"),
        ({"distractors": ("yes",)}, "all different"),
    ],
)
def test_malformed_items_are_refused(fields, message):
    good = {"type": "t", "group": "g", "text": "a", "answer": "yes", "distractors": ("no",)}
    with pytest.raises(ConfigError, match=message):
        Item(**{**good, **fields})


# --- scores --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_completion_ends_at_eos_or_a_newline_and_its_white_space_does_not_count(corpus):
    encode = corpus.tokenizer.encode
    for ids in (
        [*encode(" the king"), EOS, *encode(" sad")],
        encode(" the king\nQ: more"),
        encode("  the king "),
    ):
        assert completed(corpus.tokenizer, ids) == "the king"
    assert completed(corpus.tokenizer, encode("\n the king")) == ""
    assert completed(corpus.tokenizer, [EOS, *encode("king")]) == ""
    assert completed(corpus.tokenizer, encode(" The king")) != "the king"


def test_an_answer_follows_its_prompt_as_the_tokenizer_would_write_both(corpus):
    item, example = tasks("test", 2, 0)[:2]
    text = few_shot(item, [example], "plain")
    ids = prompt_ids(corpus.tokenizer, text) + answer_ids(corpus.tokenizer, "king", "plain")
    assert ids == prompt_ids(corpus.tokenizer, f"{text} king\n")
    chat = few_shot(item, [example], "chat")
    whole = prompt_ids(corpus.tokenizer, chat, "chat") + answer_ids(
        corpus.tokenizer, "king", "chat"
    )
    assert whole == example_ids(corpus.tokenizer, chat, " king", "chat").ids


def test_multiple_choice_takes_the_likeliest_and_shares_ties():
    assert chosen(np.array([-1.0, -2.0, np.nan])) == 1
    assert chosen(np.array([-2.0, -1.0, -3.0])) == 0
    assert chosen(np.array([-1.0, -1.0 - 1e-7, -4.0])) == 0.5


def test_scores_are_counts_of_items():
    items = tasks("test", 4, 0)
    said = [i.answer for i in items[:3]] + ["something else"] + ["yes"] * 4
    log_probs = np.array(
        [[-1.0, -2.0, -3.0]] * 2 + [[-3.0, -2.0, -1.0]] * 2 + [[-1, -2, np.nan]] * 4
    )
    types, groups = summary(Answers(items, said, log_probs))
    repeat, ask = types
    assert (repeat["exact"], repeat["choice"], repeat["n"]) == (0.75, 0.5, 4)
    assert (ask["exact"], ask["choice"], ask["majority"], ask["chance"]) == (0.5, 1.0, 0.5, 0.5)
    assert repeat["chance"] == pytest.approx(1 / 3) and repeat["majority"] == 0.25
    assert repeat["margin"] == pytest.approx(-0.5) and ask["margin_interval"] == (1.0, 1.0)
    assert repeat["exact_interval"][0] < 0.75 < repeat["exact_interval"][1]
    assert [g["group"] for g in groups] == ["one", "two"] and groups[0]["choice"] == 0.5


def test_a_model_that_guesses_scores_chance():
    items = tasks("test", 500, 0)
    log_probs = np.random.default_rng(0).normal(size=(len(items), 3))
    log_probs[500:, 2] = np.nan
    types, _ = summary(Answers(items, [""] * len(items), log_probs))
    for row in types:
        assert row["choice"] == pytest.approx(row["chance"], abs=0.06) and row["exact"] == 0


def test_choice_log_probs_are_the_sums_of_a_full_forward_pass(mesh):
    rng, params = np.random.default_rng(0), noisy_params(GQA)
    prompts = np.zeros((3, 7), np.int32)
    choices = np.zeros((3, 2, 4), np.int32)
    for b, length in enumerate((7, 4, 1)):
        prompts[b, 7 - length :] = rng.integers(8, GQA.vocab, length)
        for k, of_choice in enumerate(((4, 2), (1, 3), (2, 0))[b]):
            choices[b, k, :of_choice] = rng.integers(8, GQA.vocab, of_choice)
    placed = place_batch({"prompts": prompts, "choices": choices}, mesh)
    program = jax.jit(lambda p, x, y: choice_log_probs(p, GQA, x, y, AXES))
    found = np.asarray(program(params, placed["prompts"], placed["choices"]))
    for b in range(3):
        for k in range(2):
            prompt, choice = (x[x > 0] for x in (prompts[b], choices[b, k]))
            row, segments = np.zeros((2, 1, 11), np.int32)
            end = len(prompt) + len(choice)
            row[0, :end], segments[0, :end] = [*prompt, *choice], 1
            log_probs = log_softmax(full_logits(params, GQA, row, segments, np.arange(11)[None]))[0]
            expected = sum(log_probs[t - 1, row[0, t]] for t in range(len(prompt), end))
            assert found[b, k] == pytest.approx(expected, abs=1e-4)


# --- the cell ------------------------------------------------------------------------------------


@pytest.fixture
def context(corpus, mesh, monkeypatch):
    """A maker of a prompting cell's context with the parameters given."""
    monkeypatch.setattr(job, "CHUNK", 8)
    model = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab, max_positions=96)

    def make(folder, change=lambda x: x, **options):
        params = jax.tree.map(change, noisy_params(model))
        monkeypatch.setattr(Context, "language_model", lambda self, name: params)
        options = {"shots": (0, 2), "items": 6, "answer_len": 16, "tasks": TASKS, **options}
        cell = Prompting("asked", policy="base", **options)
        study = Study("s", (Pretrain("base", model=model), cell), corpus.cfg)
        beat = SimpleNamespace(progress=lambda **_: None)
        return Context(
            study, cell, {"asked": CellFolder(folder)}, corpus, Runtime(mesh, AXES), beat
        )

    return make


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_cell_reports_every_type_at_every_number_of_shots(context, tmp_path, template):
    ctx = context(tmp_path, template=template)
    found = as_json(job.run(ctx, ctx.cell))["prompting"]
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    assert [(r["shots"], r["type"]) for r in found["types"]] == [
        (0, "repeat"),
        (0, "ask"),
        (2, "repeat"),
        (2, "ask"),
    ]
    assert all(r["n"] == 6 for r in found["types"])
    assert found["tokens"]["2"]["longest"] > found["tokens"]["0"]["longest"] > 16
    for shown in found["shown"]:
        assert shown["prompt"].count(shown["text"]) == 1
        assert "Say" not in shown["text"] or shown["prompt"].count("Say") == 1 + shown["shots"]


def test_a_uniform_model_scores_exactly_chance(context, tmp_path):
    ctx = context(tmp_path, change=lambda x: 0 * x, shots=(1,))
    for row in as_json(job.run(ctx, ctx.cell))["prompting"]["types"]:
        assert row["choice"] == pytest.approx(row["chance"]) and row["exact"] == 0
        assert row["margin"] == pytest.approx(0, abs=1e-5)


def test_prompts_and_answers_that_do_not_fit_are_refused(context, tmp_path):
    ctx = context(tmp_path, shots=(0, 5))
    with pytest.raises(ConfigError, match=r"5 shots takes \d+ tokens .* model.max_positions = 96"):
        job.run(ctx, ctx.cell)
    ctx = context(tmp_path, answer_len=2)
    with pytest.raises(ConfigError, match="answer_len is 2; raise it"):
        job.run(ctx, ctx.cell)
    ctx = context(tmp_path, tasks=f"{__name__}:not_items")
    with pytest.raises(ConfigError, match="gave 'text' for the test split; expected items"):
        job.run(ctx, ctx.cell)


def not_items(split, n, seed):
    return ["text"] * n


def test_a_cell_is_refused_that_cannot_be_asked():
    for options, message in (
        ({}, "expected MODULE:FUNCTION"),
        ({"tasks": TASKS, "shots": ()}, "different numbers of examples"),
        ({"tasks": TASKS, "shots": (1, 1)}, "different numbers of examples"),
        ({"tasks": TASKS, "items": 0}, "asked.items = 0; expected a whole number of at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            Prompting("asked", **options)


def test_its_cost_grows_with_items_and_shots(context, tmp_path):
    flops = []
    for options in ({}, {"items": 12}, {"shots": (0, 1, 2, 3)}):
        ctx = context(tmp_path, **options)
        flops.append(cell_plan(ctx.study, ctx.cell).flops)
    assert flops[1] == flops[2] == 2 * flops[0] > 0


# --- the instructions ----------------------------------------------------------------------------


def as_pattern(phrasing: str) -> re.Pattern[str]:
    slots = re.escape(phrasing).replace(r"\{l\}", r"[a-z]+(?: [a-z]+)*")
    return re.compile(re.sub(r"\\\{[a-z]\\\}", "[a-z]+", slots))


def test_training_records_hold_no_held_out_type_phrasing_or_word():
    kinds = instructions.TRAINED_TYPES.values()
    taught = [as_pattern(p) for k in kinds for p in k.phrasings[: -instructions.NEW]]
    kept = [as_pattern(p) for k in kinds for p in k.phrasings[-instructions.NEW :]]
    kept += [as_pattern(p) for k in instructions.HELD_OUT_TYPES.values() for p in k.phrasings]
    words = {w for part in instructions.words_of("test") for w in part}
    fixed = {w for k in kinds for p in k.phrasings for w in re.findall("[a-z]+", p.lower())}
    seen = 0
    for record in instructions.records("train", 1500, 0):
        for turn in turns_of(record.prompt):
            if turn.role == "user":
                seen += 1
                assert any(p.fullmatch(turn.text) for p in taught), turn.text
                assert not any(p.fullmatch(turn.text) for p in kept), turn.text
                assert not (set(re.findall("[a-z]+", turn.text.lower())) - fixed) & words
    assert seen > 2500


def test_items_are_of_the_words_of_their_split_and_balanced():
    train, test = (instructions.words_of(s) for s in ("train", "test"))
    assert not set(train.any) & set(test.any) and len(test.any) > 30
    items = instructions.items("test", 20, 0)
    assert len(items) == 20 * (
        2 * len(instructions.TRAINED_TYPES) + len(instructions.HELD_OUT_TYPES)
    )
    for name, parts in (("present", 2), ("absent", 2), ("count", 5), ("feeling", 2)):
        some = [i.answer for i in items if i.type == name]
        assert {some.count(a) for a in set(some)} == {len(some) // parts}
    assert items[0] == instructions.items("test", 5, 0)[0]
    assert items[0] != instructions.items("test", 20, 1)[0]
    with pytest.raises(ConfigError, match="ask for fewer"):
        instructions.items("test", 800, 0)


def test_answers_are_right():
    """Against a second reading of each instruction."""
    for item in instructions.items("test", 20, 0):
        if item.type == "count":
            line = re.sub(r".*(\?|:) ", "", item.text)
            assert item.answer == instructions.NUMBERS[len(line.split()) - 1]
        elif item.type in ("present", "absent"):
            named = [
                w for w in re.findall("[a-z]+", item.text) if w in instructions.words_of("test").any
            ]
            twice = len(set(named)) < len(named)
            assert item.answer == ("yes" if twice == (item.type == "present") else "no")
        elif item.type in ("first", "last", "second"):
            named = [
                w for w in re.findall("[a-z]+", item.text) if w in instructions.words_of("test").any
            ]
            assert item.answer == named[-4:][{"first": 0, "second": 1, "last": 3}[item.type]]


# --- the report ----------------------------------------------------------------------------------


def asked_cell(root: Path, name: str, parent: str, choice: float, template: str = "chat"):
    folder = CellFolder(root / name)
    row = {
        "group": "trained",
        "n": 10,
        "exact": choice / 2,
        "exact_interval": [0.1, 0.9],
        "majority": 0.2,
        "choice": choice,
        "choice_interval": [0.1, 0.9],
        "chance": 0.3,
        "margin": 0.5,
        "margin_interval": [0, 1],
    }
    rows = [{"shots": n, **row, "choice": choice + n / 100} for n in (0, 4)]
    shown = {
        "shots": 0,
        "group": "trained",
        "type": "t",
        "text": "<Say>",
        "answer": "a",
        "completion": name,
    }
    answered = {
        "template": template,
        "items": 10,
        "shots": [0, 4],
        "seen": 64,
        "groups": rows,
        "tokens": {"0": {"mean": 20.0, "longest": 30}, "4": {"mean": 70.0, "longest": 99}},
        "types": [{**r, "type": "t"} for r in rows],
        "shown": [shown],
    }
    write_json(folder.path / "results" / "prompting.json", whole(Answered, answered))
    write_json(folder.path / "done.json", {"seconds": 1.0})
    return CellResult(name, name, "prompting", (parent,), folder)


def test_the_report_compares_before_and_after_and_shows_every_seed(tmp_path):
    def other(name, kind, *parents):
        return CellResult(name, name, kind, parents, CellFolder(tmp_path / name))

    cells = (
        asked_cell(tmp_path, "asked-sft-s0", "sft-s0", 0.8),
        asked_cell(tmp_path, "asked-sft-s1", "sft-s1", 0.9),
        asked_cell(tmp_path, "asked-base", "base", 0.3),
    )
    models = (
        other("base", "pretrain"),
        other("sft-s0", "sft", "base"),
        other("sft-s1", "sft", "base"),
    )
    study = StudyResults(tmp_path, {}, (*models, *cells))
    section = report.section(study)
    (line,) = section.said
    assert "base, chat 30.0% (15.0% exact); sft, chat 85.0% (42.5% exact); chance 30.0%" in line
    text = html(section.blocks)
    assert "&lt;Say&gt;" in text and "[80.0%, 90.0%]" in text and "99" in text
    plot = section.blocks[0]
    assert {row[2] for row in plot.rows} == {c.name for c in cells}
    assert {(row[0], row[1]) for row in plot.rows} == {
        ("base, chat", "before"),
        ("sft, chat", "after"),
    }
    assert len(plot.rows) == 3 * 2 * 2 and not math.isnan(plot.rows[0][-1])
    empty = StudyResults(tmp_path, {}, models)
    assert "No prompting cell has results yet" in html(report.section(empty).blocks)
