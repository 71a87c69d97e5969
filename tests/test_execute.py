"""Guarantees of `rlhf_jax.worker`: worker processes take a study from text to an evaluated policy,
survive SIGTERM and failing cells, and leave folders that `load_run` reads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import mesh, tiny_corpus, tiny_corpus_config

from rlhf_jax.load import load_run, next_tokens, sample_text
from rlhf_jax.study import load_study
from rlhf_jax.study.config import ConfigError, to_json
from rlhf_jax.study.files import read_json
from rlhf_jax.study.runs import Runs

__all__ = ["mesh"]

STUDY = """
from rlhf_jax.kinds import PPO, SFT, Compare, Evaluate, Pretrain, Reward, TaskConfig
from rlhf_jax.study import CorpusConfig, ModelConfig
from rlhf_jax.study.config import from_json
from rlhf_jax.study import Study

CORPUS = from_json(CorpusConfig, {corpus!r})


def study(tiny):
    model = ModelConfig(layers=1, width=16, heads=2, vocab=CORPUS.vocab)
    task = TaskConfig(prompt_len=6, response_len=6)
    same = dict(task=task)
    return Study("whole", (
        Pretrain("base", model=model, batch=4, tokens=4 * 32 * 8),
        Pretrain("long", model=model, batch=4, tokens=4 * 32 * 400, repeat=True),
        SFT("greedy", base="base", examples=10**6, **same),
        SFT("sft", base="base", examples=64, batch=4, **same),
        Compare("compare", policy="sft", prompts=16, heldout_prompts=8, k=2, **same),
        Reward("reward", base="sft", comparisons="compare", batch=4),
        PPO("ppo", policy="sft", reward="reward", iterations=2, batch=4, epochs=1, **same),
        Evaluate("evaluate", before="sft", after="ppo", reward="reward", prompts=8, **same),
    ), CORPUS)
"""
CHAIN = ("sft", "compare", "reward", "ppo", "evaluate")


class Process:
    """A worker that is given names and asked for answers."""

    def __init__(self, study, runs):
        here = str(Path(__file__).parent.parent)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "rlhf_jax.worker",
                str(study),
                "--runs",
                str(runs),
                "--threads",
                "1",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": here, "JAX_PLATFORMS": "cpu"},
        )

    def give(self, *names):
        self.process.stdin.write("".join(n + "\n" for n in names))
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()[-3000:]
        return json.loads(line)

    def end(self):
        self.process.stdin.close()
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        errors = self.process.stderr.read()
        self.process.stderr.close()
        return code, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The study after a worker that fails at one cell and is stopped in another, and a second
    worker that finishes. The answers of both, and what was seen between them."""
    folder = tmp_path_factory.mktemp("execute")
    corpus = tiny_corpus(folder)
    path, runs = folder / "whole.py", Runs(folder / "runs")
    path.write_text(STUDY.format(corpus=to_json(corpus.cfg)))
    study = load_study(path)
    folders = runs.folders(study, corpus.content_hash)

    first = Process(path, runs.root)
    first.give("base", "greedy", "long")
    answers = [first.answer(), first.answer()]
    between = {
        "failed": folders["greedy"].state(),
        "failure": read_json(folders["greedy"].path / "failed.json"),
    }
    deadline = time.time() + 60
    while len(folders["long"].metrics()) < 5 and time.time() < deadline:
        time.sleep(0.01)
    first.process.send_signal(signal.SIGTERM)
    answers.append(first.answer())
    between["code"], between["errors"] = first.end()
    between["stopped"] = folders["long"].state()
    between["rows"] = folders["long"].metrics()

    second = Process(path, runs.root)
    second.give("base", "long", *CHAIN)
    answers += [second.answer() for _ in range(7)]
    code, errors = second.end()
    assert code == 0, errors[-3000:]
    return folders, answers, between, study


def outcomes(answers):
    return [(a["cell"], a["outcome"]) for a in answers]


def test_cells_run_in_the_order_they_are_named_and_are_done(whole):
    folders, answers, _, study = whole
    assert outcomes(answers[3:]) == [(n, "done") for n in ("base", "long", *CHAIN)]
    for name in ("base", "long", *CHAIN):
        path = folders[name].path
        assert read_json(path / "done.json")["seconds"] >= 0
        config = read_json(path / "config.json")
        assert config["kind"] == study[name].KIND and config["name"] == name
        assert not (path / "heartbeat.json").exists() and not (path / "failed.json").exists()
        sessions = read_json(path / "provenance.json")["sessions"]
        assert len(sessions) == (2 if name == "long" else 1) and sessions[0]["versions"]["jax"]


def test_a_done_cell_is_not_run_again(whole):
    folders, answers, _, _ = whole
    assert outcomes(answers)[0] == outcomes(answers)[3] == ("base", "done")
    assert [r["step"] for r in folders["base"].metrics()] == list(range(1, 9))


def test_a_failing_cell_says_why_and_the_worker_goes_on(whole):
    _, answers, between, _ = whole
    assert answers[1]["outcome"] == "failed" and "prompts of 6 tokens" in answers[1]["reason"]
    assert between["failed"]["state"] == "failed"
    assert between["failure"]["reason"] == answers[1]["reason"]
    assert "ConfigError" in between["failure"]["traceback"]


def test_sigterm_stops_a_cell_at_a_checkpoint_and_it_goes_on_from_there(whole):
    folders, answers, between, _ = whole
    assert outcomes(answers)[2] == ("long", "stopped") and between["code"] == 0
    rows = between["rows"]
    assert len(rows) >= 5 and rows[-1]["step"] < 400 and between["stopped"]["state"] == "waiting"
    assert f"stopped at step {rows[-1]['step']} of 400" in answers[2]["reason"]
    final = folders["long"].metrics()
    assert final[: len(rows)] == rows  # timing too: these steps were not run a second time
    assert [r["step"] for r in final] == list(range(1, 401))
    assert final[-1]["tokens"] == 4 * 32 * 400
    assert final[-1]["loss"] < final[0]["loss"] - 0.5


def test_results_hold_what_reports_read(whole):
    folders, _, _, _ = whole
    base, sft = (folders[n].result("heldout")["loss"] for n in ("base", "sft"))
    assert 0 < base < 8 and 0 < sft < 8
    assert folders["sft"].result("sft")["demonstrations"] > 4
    report = folders["reward"].result("report")
    assert report["gain"] > 0 and 0 <= report["accuracy"] <= 1 and report["n_pairs"] > 0
    evaluation = folders["evaluate"].result("evaluation")
    assert evaluation["n_prompts"] == len(evaluation["gold"]["after"]) == 8
    lo, hi = evaluation["gain_interval"]
    assert lo <= evaluation["gain"] <= hi
    rows = folders["ppo"].metrics()
    assert [r["step"] for r in rows] == [1, 2]
    assert all(r["max_ratio_error"] <= 1e-4 and r["clip_frac_before"] == 0 for r in rows)


def test_the_reward_is_normalised_over_the_samples_it_was_trained_on(whole):
    """The first PPO iteration samples from the policy of the comparisons: its scores are near 0."""
    folders, _, _, _ = whole
    data = np.load(folders["compare"].results / "train.npz")
    assert data["ranks"].shape == (16, 2) and data["responses"].shape == (16, 2, 6)
    lines = (folders["compare"].results / "comparisons.jsonl").read_text().splitlines()
    assert len(lines) == 24
    assert abs(folders["ppo"].metrics()[0]["reward_proxy"]) < 1.5


@pytest.mark.parametrize("name", ["base", "ppo"])
def test_load_run_gives_a_model_that_speaks(whole, name):
    run = load_run(whole[0][name].path)
    assert run.model.width == 16 and run.config["name"] == name
    assert run.params["embed"].shape == (340, 16)
    likely = next_tokens(run, "The king", top=10)
    p = [q for _, q in likely]
    assert len(p) == 10 and p == sorted(p, reverse=True) and 0.03 < sum(p) < 1
    assert sum(q for _, q in next_tokens(run, "The king", top=340)) == pytest.approx(1, abs=1e-4)
    if name == "ppo":
        assert sample_text(run, "The king", tokens=6, temperature=0.0).startswith(likely[0][0])


def test_a_reward_cell_is_read_with_its_head(whole):
    run = load_run(whole[0]["reward"].path)
    assert np.abs(jax.device_get(run.params["scalar"]["w"])).max() > 0


def test_load_run_refuses_what_is_no_trained_cell(whole, tmp_path):
    with pytest.raises(ConfigError, match="not a folder of a trained cell"):
        load_run(tmp_path)
    with pytest.raises(ConfigError, match="not a folder of a trained cell"):
        load_run(whole[0]["compare"].path)


def test_a_worker_without_a_corpus_says_what_to_do(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    corpus = to_json(tiny_corpus_config(tmp_path)) | {"seed": 1}
    (tmp_path / "whole.py").write_text(STUDY.format(corpus=corpus))
    worker = Process(tmp_path / "whole.py", tmp_path / "runs")
    code, errors = worker.end()
    assert code != 0 and "start through `rlhf-jax run`" in errors
