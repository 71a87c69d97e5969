"""Every kind of cell that learns from feedback, through a worker, from text to what a user reads;
and the task whose optimum is known."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_execute import Process
from tiny_models import mesh, tiny_corpus

from rlhf_jax.data import feedback
from rlhf_jax.load import load_run
from rlhf_jax.study import load_study
from rlhf_jax.study.config import to_json
from rlhf_jax.study.files import read_json
from rlhf_jax.study.runs import Runs

__all__ = ["mesh"]

STUDY = """
from tiny_kinds import Likelihood, Soup
from rlhf_jax.kinds import *
from rlhf_jax.study.config import CorpusConfig, ModelConfig, from_json
from rlhf_jax.study import Study

CORPUS = from_json(CorpusConfig, {corpus!r})
REWARD = "tiny_rewards:longest_word"


def study(tiny):
    small = ModelConfig(layers=1, width=16, heads=2, vocab=CORPUS.vocab)
    other = ModelConfig(layers=1, width=24, heads=2, vocab=CORPUS.vocab)
    task = TaskConfig(prompt_len=6, response_len=6, gold=REWARD)
    same = dict(task=task)
    asked = dict(policy="base", prompts=16, heldout_prompts=8, **same)
    rewards = ("reward-a", "reward-b")
    return Study("feedback", (
        Pretrain("base", model=small, batch=4, tokens=4 * 32 * 8),
        Pretrain("base-b", model=other, batch=4, tokens=4 * 32 * 8),
        Compare("compare", k=3, **asked),
        Compare("again", k=2, seed=1, **asked),
        Reward("reward-a", base="base", comparisons="compare", batch=4, loss="plackett_luce"),
        Reward("reward-b", base="base-b", comparisons="compare", batch=4, earlier=("again",),
            centre=0.01),
        Ensemble("worst", members=rewards, combine="worst"),
        PPO("ppo", policy="base", reward="worst", iterations=2, batch=4, epochs=1, critic="shared",
            ema=0.9, ptx_coef=0.5, ptx_batch=4, score_at="after", **same),
        PPO("own", policy="base", reward="reward-b", iterations=2, batch=4, epochs=1, **same),
        PPO("grpo", policy="base", reward=REWARD, iterations=2, batch=4, samples=2, epochs=1,
            algorithm="grpo", kl_in="loss", no_eos="keep", **same),
        DPO("dpo", policy="base", comparisons="compare", batch=4),
        Soup("soup", first="base", second="dpo", share=0.25),
        Likelihood("likelihood", judge="dpo", scale=0.1),
        PPO("ppo-soup", policy="soup", reward="likelihood", iterations=1, batch=4, epochs=1,
            algorithm="tiny_kinds:mean_of_others", policy_loss="tiny_kinds:plain", **same),
        BestOfN("best", policy="soup", reward="likelihood", prompts=8, n=4, **same),
        SFT("rejection", base="soup", records="best", batch=1, **same),
        Evaluate("evaluate", before="base", after="ppo", reward="worst", prompts=8,
                 modes="tiny_rewards:length_class", **same),
        Evaluate("evaluate-grpo", before="soup", after="grpo", reward=REWARD, prompts=8, **same),
    ), CORPUS)
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(study, folders, answers) after one worker did all of it."""
    root = tmp_path_factory.mktemp("feedback")
    corpus = tiny_corpus(root)
    path = root / "study.py"
    path.write_text(STUDY.format(corpus=to_json(corpus.cfg)))
    for name in ("tiny_rewards.py", "tiny_kinds.py"):
        (root / name).write_text((Path(__file__).parent / name).read_text())
    study = load_study(path)
    worker = Process(path, root / "runs")
    names = [c.name for c in study.order()]
    worker.give(*names)
    answers = [worker.answer() for _ in names]
    code, errors = worker.end()
    assert code == 0, errors[-2000:]
    return study, Runs(root / "runs").folders(study, corpus.content_hash), answers, errors


def test_every_kind_of_cell_gets_done(done):
    _, folders, answers, errors = done
    failed = {a["cell"]: a["reason"] for a in answers if a["outcome"] != "done"}
    assert not failed, errors[-3000:]
    assert all(f.done() for f in folders.values())


def test_the_memory_of_every_model_is_said_before_the_start(done):
    *_, errors = done
    line = next(x for x in errors.splitlines() if "ppo: memory plan" in x)
    for part in (
        "policy with gradients and Adam",
        "reference",
        "average of the policy",
        "2 reward models",
    ):
        assert part in line


def test_a_policy_is_read_as_a_plain_model_whatever_it_was_trained_with(done):
    _, folders, *_ = done
    base = load_run(folders["base"].path).params
    for name in ("ppo", "own", "grpo", "dpo", "rejection"):
        got = load_run(folders[name].path).params
        assert set(got) == set(base)
        assert any((np.asarray(got["embed"]) != np.asarray(base["embed"])).ravel())


def test_a_policy_and_a_reward_of_a_users_kinds_serve_every_kind_that_takes_one(done):
    """`soup` and `likelihood` lie beside the study file; PPO, SFT, Evaluate and BestOfN, which
    name them, are among the cells that got done."""
    study, folders, *_ = done
    base, dpo, soup = (load_run(folders[n].path).params for n in ("base", "dpo", "soup"))
    for a, b, mixed in zip(*map(jax.tree.leaves, (base, dpo, soup)), strict=True):
        np.testing.assert_allclose(mixed, 0.75 * a + 0.25 * b, atol=1e-6)
    # A sum of log-probabilities, times 0.1: of 6 tokens of 340 about -0.1 x 6 x log(340).
    (row,) = folders["ppo-soup"].metrics()
    assert -0.1 * 12 * math.log(340) < row["reward_proxy"] < -0.01
    assert study["ppo-soup"].parents() == ("soup", "likelihood")


def test_iterations_are_checked_and_logged(done):
    _, folders, *_ = done
    for name in ("ppo", "own", "grpo"):
        rows = folders[name].metrics()
        assert [r["step"] for r in rows] == [1, 2]
        assert all(r["max_ratio_error"] <= 1e-4 and r["max_logprob_gap"] <= 1e-4 for r in rows)
    assert "ptx_loss" in folders["ppo"].metrics()[0]
    assert "value_loss" not in folders["grpo"].metrics()[0]


def test_the_best_of_samples_become_demonstrations(done):
    _, folders, *_ = done
    records = feedback.read(folders["best"].results / "demonstrations.jsonl")
    result = folders["best"].result("best_of_n")
    assert len(records) == result["demonstrations"] and result["curve"][-1]["n"] == 4
    proxies = [point["proxy"] for point in result["curve"]]
    assert proxies == sorted(proxies)


def test_comparisons_of_earlier_rounds_are_learned_from_as_well(done):
    _, folders, *_ = done
    assert folders["reward-a"].result("report")["prompts"] == 16
    assert folders["reward-b"].result("report")["prompts"] == 32


def test_evaluations_take_ensembles_callables_and_modes(done):
    _, folders, *_ = done
    one, other = (folders[n].result("evaluation") for n in ("evaluate", "evaluate-grpo"))
    assert one["modes"] and other["proxy_after"] == pytest.approx(other["gold_after"], abs=1e-5)


@pytest.mark.slow
def test_ppo_reaches_95_percent_of_the_optimum_of_a_task_whose_optimum_is_known(tmp_path):
    """Shortest ways through a graph, from random walks (`experiments/random_walk.py`)."""
    here = Path(__file__).parents[1]
    command = [
        sys.executable,
        "-m",
        "rlhf_jax.cli",
        "run",
        "experiments/random_walk.py",
        "--runs",
        str(tmp_path),
        "--display",
        "lines",
        "--only",
        "walker",
        "ppo-0",
        "eval-ppo-0",
        "--",
        "ppo-0.iterations=40",
    ]
    subprocess.run(command, check=True, cwd=here, timeout=900)
    (folder,) = (tmp_path / "cells").glob("eval-ppo-0-*")
    found = json.loads((folder / "results" / "evaluation.json").read_text())
    assert found["gold_before"] < 0.6 and found["gold_after"] >= 0.95
    assert read_json(folder / "done.json")
