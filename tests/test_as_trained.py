"""`rlhf-jax generate` asks a cell as it was trained; labels and scores that say nothing are said
to."""

from __future__ import annotations

import types
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import GQA, LEARNED, mesh

from rlhf_jax import cli, load
from rlhf_jax.data.annotators import rank_by_annotators
from rlhf_jax.data.feedback import Comparison
from rlhf_jax.data.signals import answer_of
from rlhf_jax.data.tokenizer import ASSISTANT, BOS, END, USER
from rlhf_jax.evals.rankings import label_notes, uninformative
from rlhf_jax.kinds import DPO, PPO, SFT, Compare, Pretrain, TaskConfig
from rlhf_jax.kinds.compare.job import ranked
from rlhf_jax.kinds.rankings import template_of
from rlhf_jax.kinds.sampling import Chunk
from rlhf_jax.kinds.task import task_of
from rlhf_jax.model import sampler
from rlhf_jax.model.sampler import Samples, generate
from rlhf_jax.model.sharding import AXES
from rlhf_jax.objectives import preference_loss
from rlhf_jax.rl.scores import standardising
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, CorpusConfig, ModelConfig, to_json
from rlhf_jax.study.files import write_json
from rlhf_jax.train import Runtime

__all__ = ["mesh"]
CHAT = TaskConfig(prompt_len=8, response_len=6, prompts="m:f", template="chat")


class Letters:
    """A tokenizer of letters: 100 and the letter's number in the alphabet."""

    def encode(self, text):
        return [100 + ord(c) - ord("a") for c in text]

    def decode(self, ids):
        return "".join(chr(i - 100 + ord("a")) for i in ids if i >= 100)


@pytest.fixture
def run(mesh, monkeypatch):
    """A cell that has learned a chat task, and what its sampler was asked, as
    `run.config["asked"]`."""
    asked: list[dict] = []

    def record(params, cfg, prompts, key, *, length, temperature, axes):
        asked.append({"prompts": prompts.shape, "length": length, "temperature": temperature})
        blank = jnp.zeros((1, length))
        return Samples(jnp.full((1, length), 100), blank, blank, blank)

    monkeypatch.setattr(load, "generate", record)
    real = load.place_batch
    monkeypatch.setattr(
        load, "place_batch", lambda b, m: asked.append({"ids": b["ids"].tolist()[0]}) or real(b, m)
    )
    model = replace(GQA, max_positions=20)
    found = load.Run({}, Letters(), model, {"asked": asked}, Runtime(mesh, AXES), CHAT, "chat", 16)
    return found


def test_a_cell_is_asked_in_the_template_and_for_the_length_that_it_has_learned(run, capfd):
    asked = run.config["asked"]
    assert load.sample_text(run, "abc") == "a" * 6
    assert asked[0]["ids"] == [BOS, USER, 100, 101, 102, END, ASSISTANT]
    assert asked[1]["length"] == 6 and capfd.readouterr().err == ""
    asked.clear()
    load.sample_text(replace(run, template="plain"), "abc", tokens=2)
    assert asked[0]["ids"] == [BOS, 100, 101, 102] and asked[1]["length"] == 2
    assert "has learned the chat template, and is asked in the plain one" in capfd.readouterr().err


def test_a_cell_that_learned_no_task_goes_on_for_forty_tokens_or_as_far_as_it_can(run):
    asked, text = run.config["asked"], replace(run, task=None, template="plain", seq_len=None)
    load.sample_text(text, "ab")
    assert asked[1]["length"] == 20 - 3
    load.sample_text(replace(text, model=replace(run.model, max_positions=512)), "ab")
    assert asked[3]["length"] == 40


def test_who_asks_for_more_than_a_model_was_made_for_is_told(run, capfd):
    load.sample_text(run, "abc", tokens=10)
    err = capfd.readouterr().err
    assert "7 + 10 tokens; the model was trained on rows of 16" in err
    assert "asked for 10 tokens; the cell's task has at most 6" in err
    load.sample_text(run, "abcdef", tokens=1)
    assert "the prompt takes 10 tokens; the cell's task has at most 8" in capfd.readouterr().err
    table = replace(run, model=replace(run.model, positions="learned"))
    load.sample_text(table, "abc", tokens=13)
    with pytest.raises(
        ConfigError, match="7 \\+ 14 tokens, but the model has a table of 20 positions"
    ):
        load.sample_text(table, "abc", tokens=14)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_the_generator_does_not_take_is_refused(run, seed):
    with pytest.raises(ConfigError, match=r"seed = .*expected 0 to 2\^32 - 1"):
        load.sample_text(run, "a", seed=seed)


@pytest.mark.parametrize("prompt", ["", "a\udcff"])
def test_a_prompt_that_is_no_text_is_refused(run, prompt):
    with pytest.raises(ConfigError, match="the prompt is"):
        load.sample_text(run, prompt)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": t} for t in (-0.1, float("nan"), float("inf"))]
    + [{"length": 0}, {"samples": 0}],
)
def test_the_sampler_refuses_numbers_that_mean_nothing(wrong):
    given = {"length": 2, "temperature": 1.0, "samples": 1} | wrong
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        generate({}, GQA, jnp.ones((1, 2), jnp.int32), jnp.uint32(0), axes=AXES, **given)


def test_the_sampler_refuses_rows_past_a_table_of_positions():
    length = LEARNED.max_positions - 1
    with pytest.raises(ConfigError, match=f"2 \\+ {length} tokens"):
        sampler.generate(
            {},
            LEARNED,
            jnp.ones((1, 2), jnp.int32),
            jnp.uint32(0),
            length=length,
            temperature=1.0,
            axes=AXES,
        )


def test_a_model_speaks_the_template_of_the_last_task_in_its_line():
    model = ModelConfig(layers=1, width=16, heads=2, vocab=64, max_positions=64)
    plain = TaskConfig(prompt_len=4, response_len=4)
    records = {"records": "shown.jsonl"}
    study = Study(
        "s",
        (
            Pretrain("base", model=model, tokens=256, batch=4),
            SFT("chat", base="base", task=CHAT, **records),
            DPO("dpo", policy="chat", comparisons="pairs.jsonl"),
            PPO("ppo", policy="dpo", reward="m:f", task=plain, batch=4),
        ),
        CorpusConfig(vocab=64, seq_len=32),
    )
    tasks = {c.name: task_of(study, c) for c in study.cells}
    assert tasks == {"base": None, "chat": CHAT, "dpo": CHAT, "ppo": plain}
    assert [template_of(study, study[n]) for n in ("base", "dpo", "ppo")] == [
        "plain",
        "chat",
        "plain",
    ]


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({"kind": "pretrain"}, "plain"),
        ({"kind": "sft", "task": to_json(CHAT)}, "chat"),  # of a run before `learned_task`
        ({"kind": "dpo", "learned_task": to_json(CHAT)}, "chat"),
    ],
)
def test_the_folder_of_a_cell_says_its_template(tmp_path, monkeypatch, config, template):
    monkeypatch.setattr(load, "read_model", lambda folder, cfg, runtime: {})
    monkeypatch.setattr(load, "read_manifest", lambda folder: {"seq_len": 32})
    monkeypatch.setattr(load, "Corpus", lambda *a: types.SimpleNamespace(tokenizer=None))
    monkeypatch.setattr(load, "keep_compiled", lambda folder: None)
    folder = tmp_path / "cells" / "a-1"
    (folder / "checkpoints").mkdir(parents=True)
    write_json(folder / "config.json", {**config, "model": to_json(GQA), "corpus": "c"})
    run = load.load_run(folder)
    assert (run.template, run.seq_len) == (template, 32)
    said = []
    monkeypatch.setattr(load, "sample_text", lambda run, *a: said.append(run.template) or "x")
    words = ["generate", str(folder), "--prompt", "a"]
    assert cli.main(words) == cli.main([*words, "--template", "plain"]) == 0
    assert said == [template, "plain"]


def test_a_reward_model_is_not_asked_for_text(run):
    scores = replace(run, config={"kind": "reward", "name": "rm"})
    for ask in (load.sample_text, load.next_tokens):
        with pytest.raises(
            ConfigError, match="rm is a reward model, which gives scores and no text"
        ):
            ask(scores, "abc")


# --- labels and scores without information
# -----------------------------------------------------------


def test_completions_of_the_same_text_tie_and_others_are_ranked_as_before():
    cell = Compare("c", k=4, noise=0.5, annotators=3, length_bias=0.1, disagreement=0.3)
    texts = ["x", "y", "x", "x", "a", "a", "a", "a", "p", "q", "r", "s"]
    mask = np.ones((3, 4, 5))
    mask[0, 2, 3:] = 0  # the same text can be of other tokens
    gold = np.linspace(0, 1, 12)
    scores = types.SimpleNamespace(
        gold=lambda task, prompts, responses: np.where(
            np.array(responses) == "y", 1.0, gold * (np.array(responses) > "o")
        )
    )
    ranks = ranked(scores, cell, Chunk("train", 0, ["", "", ""], texts, mask))["ranks"]
    assert ranks[0][0] == ranks[0][2] == ranks[0][3] != ranks[0][1]
    assert (ranks[1] == 1).all()
    alone = rank_by_annotators(gold[8:], 0.5, 3, (cell.seed, 0, 2), 0.3, bias=0.1 * mask[2].sum(-1))
    assert (ranks[2] == alone).all() and len(set(ranks[2])) > 1


def test_a_best_response_that_is_given_twice_is_still_the_best():
    assert answer_of(Comparison("p", ("good", "bad", "good"), (1, 2, 1))) == "good"
    assert answer_of(Comparison("p", ("good", "fine", "bad"), (1, 1, 2))) is None


def test_comparisons_that_all_tie_are_counted_and_weigh_nothing():
    ranks = np.array([[1, 2, 3], [1, 1, 1], [2, 2, -1], [1, 1, 2]])
    assert uninformative(ranks) == 2
    notes = label_notes(ranks, ranks[[0, 3]], 0.75)
    assert len(notes) == 1 and notes[0].startswith("2 of 4 training comparisons have no two")
    assert "chance gives 50%" in label_notes(ranks[:1], ranks[:1], 0.51)[0]
    assert label_notes(ranks[:1], ranks[:1], None) == []
    rng = np.random.default_rng(0)
    after, before = rng.normal(size=(2, 4, 3))
    for loss in ("dpo", "ipo"):
        whole = preference_loss(after, before, jnp.asarray(ranks), loss, 0.1)
        some = np.array([0, 3])
        part = preference_loss(after[some], before[some], jnp.asarray(ranks[some]), loss, 0.1)
        assert float(whole[0]) == pytest.approx(float(part[0])) and float(whole[1]) == 2


def test_scores_without_spread_are_centred_and_not_blown_up():
    assert standardising(np.full(4, 3.0)) == (1.0, -3.0)
    assert standardising(np.array([3.0, 3.0 + 2e-7])) == (1.0, pytest.approx(-3.0))
    gain, bias = standardising(np.array([1.0, 3.0]))
    assert (gain, bias) == (1.0, -2.0)
    gain, bias = standardising(np.array([0.0, 0.01]))
    assert gain == pytest.approx(200) and bias == pytest.approx(-1)
