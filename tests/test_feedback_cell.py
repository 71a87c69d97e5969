"""Guarantees of feedback cells, and of what learns from them: corrections, critiques and
verdicts."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_models import mesh, tiny_corpus_config

from rlhf_jax.data import prepare
from rlhf_jax.data.annotators import criticise, gold_score
from rlhf_jax.data.feedback import Comparison, Correction, Critique, read
from rlhf_jax.data.tokenizer import BOS, EOS, PAD
from rlhf_jax.kinds import (
    DPO,
    PPO,
    SFT,
    Compare,
    Ensemble,
    Feedback,
    Pretrain,
    Reward,
    TaskConfig,
    sampling,
)
from rlhf_jax.kinds.compare.job import run as compare
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.feedback.job import run as feedback
from rlhf_jax.kinds.ppo.job import run as ppo
from rlhf_jax.kinds.pretrain.job import run as pretrain
from rlhf_jax.kinds.rankings import ceilings, rankings
from rlhf_jax.kinds.sft.job import from_records, source
from rlhf_jax.kinds.sft.job import run as sft
from rlhf_jax.kinds.sft.judge import agreement
from rlhf_jax.model.scoring import join
from rlhf_jax.model.sharding import AXES, place_batch
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, ModelConfig, OptimConfig
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.plan import cell_plan
from rlhf_jax.study.results import as_json
from rlhf_jax.study.runs import Runs
from rlhf_jax.train import Runtime, Stopped
from rlhf_jax.worker import _begin, _finish

__all__ = ["mesh"]
TASK = TaskConfig(prompt_len=6, response_len=8)
LIKED = 0.05
SAMPLES: dict = {
    "policy": "base",
    "task": TASK,
    "prompts": 20,
    "heldout_prompts": 12,
    "k": 2,
    "seed": 3,
}


class Bench:
    """Runs the cells of one study in this process."""

    def __init__(self, corpus, mesh, root):
        self.corpus, self.runs, self.runtime = corpus, Runs(root), Runtime(mesh, AXES)
        model = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab)
        fast = OptimConfig(lr=2e-2)
        self.study = Study(
            "feedback",
            (
                Pretrain("base", model=model, batch=8, tokens=8 * 96 * 60, optim=fast),
                Feedback("corrections", gives="corrections", min_gold=LIKED, **SAMPLES),
                Feedback("critiques", gives="critiques", min_gold=LIKED, **SAMPLES),
                Compare("compare", **SAMPLES),
                Reward("by-corrections", base="base", comparisons="corrections", batch=4),
                DPO("dpo", policy="base", comparisons="corrections"),
                SFT("edited", base="base", task=TASK, records="corrections", batch=2),
                SFT("critic", base="base", task=TASK, records="critiques", batch=4, optim=fast),
                PPO(
                    "ppo",
                    policy="base",
                    reward="critic",
                    task=TASK,
                    iterations=1,
                    batch=4,
                    epochs=1,
                ),
                PPO("astray", policy="base", reward="edited", task=TASK),
            ),
            corpus.cfg,
        )

    def context(self, name):
        folders = self.runs.folders(self.study, self.corpus.content_hash)
        folders[name].path.mkdir(parents=True, exist_ok=True)
        return Context(
            self.study,
            self.study[name],
            folders,
            self.corpus,
            self.runtime,
            Heartbeat(folders[name]),
        )

    def run(self, name, job):
        ctx = self.context(name)
        _begin(ctx, 1)
        results = job(ctx, ctx.cell)
        _finish(ctx, results)
        return as_json(results)

    def records(self, name, file="records.jsonl"):
        return (self.context(name).folder.results / file).read_bytes()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    cfg = dataclasses.replace(tiny_corpus_config(folder), seq_len=96)
    return prepare(cfg, folder / "runs", lambda _: None)


@pytest.fixture(scope="module")
def bench(corpus, mesh, tmp_path_factory):
    bench = Bench(corpus, mesh, tmp_path_factory.mktemp("feedback"))
    bench.run("base", pretrain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "CHUNK", 8)
        names = ("corrections", "critiques")
        bench.reports = {n: bench.run(n, feedback)["feedback"] for n in names}
        yield bench


@pytest.fixture(scope="module")
def critic(bench):
    return bench.run("critic", sft)


def given(bench, name, file, kind):
    return read(bench.context(name).folder.results / file, kind)


def test_records_are_what_the_labeller_gives_to_samples_for_prompts_of_each_split(bench):
    ctx = bench.context("critiques")
    for split, file in (("train", "records.jsonl"), ("validation", "heldout.jsonl")):
        critiques = given(bench, "critiques", file, Critique)
        assert critiques == [criticise(c.prompt, c.response, LIKED) for c in critiques]
        n = {"train": 20, "validation": 12}[split]
        asked = ctx.prompts(TASK, split, n, 3).texts
        assert [c.prompt for c in critiques] == [p for p in asked for _ in range(2)]
        edits = given(bench, "corrections", file, Correction)
        revised = [(c.prompt, c.response, c.revision) for c in critiques if c.revision]
        assert [(e.prompt, e.response, e.edited) for e in edits] == revised
        assert (gold_score(e.edited for e in edits) > gold_score(e.response for e in edits)).all()
    report = bench.reports["critiques"]
    assert (report["train_records"], report["validation_records"]) == (40, 24)
    verdicts = [
        c.verdict
        for c in given(bench, "critiques", "records.jsonl", Critique)
        + given(bench, "critiques", "heldout.jsonl", Critique)
    ]
    assert report["good"] == pytest.approx(verdicts.count("good") / 64)
    assert 0 < report["good"] < 1


def test_a_compare_cell_ranks_the_same_samples(bench):
    bench.run("compare", compare)
    ranked = given(bench, "compare", "comparisons.jsonl", Comparison)
    seen = [
        (c.prompt, c.response)
        for file in ("records.jsonl", "heldout.jsonl")
        for c in given(bench, "critiques", file, Critique)
    ]
    assert [(c.prompt, r) for c in ranked for r in c.responses] == seen


def test_interrupted_cells_give_the_same_records(bench, corpus, mesh, tmp_path, monkeypatch):
    halved = Bench(corpus, mesh, tmp_path)
    source, target = (b.context("base").folder.path for b in (bench, halved))
    target.rmdir()
    target.symlink_to(source)
    halved.runtime.stop.set()
    with pytest.raises(Stopped, match="8 of 32"):
        halved.run("critiques", feedback)
    halved.runtime.stop.clear()
    first = halved.context("critiques").folder.results / "chunk-train-0.npz"
    written = first.stat().st_mtime_ns
    halved.run("critiques", feedback)
    assert first.stat().st_mtime_ns == written
    for file in ("records.jsonl", "heldout.jsonl"):
        assert halved.records("critiques", file) == bench.records("critiques", file)


def test_corrections_become_pairs_that_prefer_the_edit(bench):
    ctx = bench.context("by-corrections")
    data = rankings(ctx, ctx.cell)
    for split, file in (("train", "records.jsonl"), ("validation", "heldout.jsonl")):
        edits = given(bench, "corrections", file, Correction)
        rows = data[split]
        assert rows["ranks"].tolist() == [[1, 2]] * len(edits)
        texts = [[corpus_text(bench, r) for r in pair] for pair in rows["responses"]]
        assert texts == [[e.edited, e.response] for e in edits]
    assert ceilings(ctx, ctx.cell, data["validation"]) == {}
    dpo = bench.context("dpo")
    assert rankings(dpo, dpo.cell).keys() == data.keys()


def corpus_text(bench, ids):
    return bench.corpus.tokenizer.decode(ids.tolist())


def test_edits_are_learned_as_answers(bench):
    ctx = bench.context("edited")
    shown, examples = from_records(ctx, ctx.cell, source(ctx, ctx.cell))
    edits = given(bench, "corrections", "records.jsonl", Correction)
    assert [(d.prompt, d.response) for d in shown] == [(e.prompt, e.edited) for e in edits]
    assert len(examples) == len(edits)


def test_the_critique_models_report_says_how_it_judges(bench, critic):
    report = critic["judge"]
    assert report["train"]["n"] == 40 and report["heldout"]["n"] == 24
    assert 0 <= report["heldout"]["accuracy"] <= 1
    critiques = given(bench, "critiques", "records.jsonl", Critique)
    scores = scored(bench, critiques)
    assert scores.mean() == pytest.approx(0, abs=0.05) and scores.std() == pytest.approx(
        1, abs=0.05
    )
    right = (scores - report["bias"] > 0) == [c.verdict == "good" for c in critiques]
    assert right.mean() == pytest.approx(report["train"]["accuracy"], abs=0.06)


def scored(bench, critiques):
    """Scores of the named reward, of texts encoded as the tokenizer would."""
    encode, n = bench.corpus.tokenizer.encode, len(critiques)
    prompts, tokens = np.full((n, 12), PAD, np.int32), np.full((n, 16), PAD, np.int32)
    for i, c in enumerate(critiques):
        asked, said = [BOS, *encode(c.prompt)], [*encode(c.response), EOS]
        prompts[i, 12 - len(asked) :] = asked
        tokens[i, : len(said)] = said
    named = bench.context("ppo").reward("critic")
    mask = (tokens != PAD).astype(np.float32)
    b = place_batch({"p": prompts, "t": tokens, "m": mask}, bench.runtime.mesh)
    score = jax.jit(lambda arrays, p, t, m: named.score(arrays, join(p, t, m), m))
    return np.asarray(score(named.arrays, b["p"], b["t"], b["m"]))


def test_ppo_learns_from_the_verdicts_of_a_critique_model(bench, critic):
    result = bench.run("ppo", ppo)["ppo"]
    assert np.isfinite(result["reward_proxy"]) and np.isfinite(result["explained_variance"])
    assert result["max_ratio_error"] < 1e-4


def test_models_that_have_learned_no_verdicts_are_no_reward(bench):
    with pytest.raises(
        ConfigError, match=r"astray.reward = 'edited', which has learned no verdicts"
    ):
        bench.context("astray").reward("edited")


def test_agreement_compares_with_the_majority_and_ranks_pairs():
    critiques = [
        Critique(p, "r", "c", None, v)
        for p, v in (("a", "good"), ("a", "bad"), ("b", "bad"), ("b", "bad"))
    ]
    found = agreement(np.array([-1.0, -2.0, -1.0, 3.0]), critiques)
    assert as_json(found) == {
        "n": 4,
        "good": 0.25,
        "accuracy": 0.5,
        "majority": 0.75,
        "ranking": 0.5,
        "ranking_same_prompt": 1.0,
    }
    even = agreement(np.array([0.0, 0.0, -1.0, 0.0]), critiques)
    assert even.accuracy == (0.5 + 0.5 + 1 + 0.5) / 4  # even odds are right half the time
    alone = agreement(np.array([1.0]), critiques[:1])
    assert alone.ranking is None and alone.ranking_same_prompt is None


def test_the_plan_knows_feedback_and_what_learns_from_it(bench):
    study = bench.study
    plans = {c.name: cell_plan(study, c) for c in study.cells}
    assert plans["corrections"].sequences == plans["compare"].sequences == 64
    assert plans["by-corrections"].flops > 0
    alone = dataclasses.replace(study["ppo"], reward="tiny_rewards:longest_word")
    assert plans["ppo"].flops > cell_plan(study, alone).flops


def test_only_the_sentiment_task_has_a_labeller_that_edits():
    task = dataclasses.replace(TASK, gold="tiny_rewards:longest_word")
    with pytest.raises(ConfigError, match="edits and criticises by"):
        Feedback("f", task=task)
    with pytest.raises(ConfigError, match="k = 0; expected a whole number of at least 1"):
        Feedback("f", k=0)


def test_critique_models_are_no_members_of_ensembles(bench):
    cells = (*bench.study.cells, Ensemble("both", members=("by-corrections", "critic")))
    with pytest.raises(ConfigError, match=r"both.members = 'critic' is a sft cell"):
        Study("refused", cells, bench.corpus.cfg)
