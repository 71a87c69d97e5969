"""Guarantees of PPO cells as jobs: a result does not depend on how often the cell was
interrupted."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import GQA, mesh, noisy_params, same_bits, tiny_corpus

from rlhf_jax.kinds import PPO, Pretrain, TaskConfig
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.ppo import job
from rlhf_jax.model import param_axes, with_scalar_head
from rlhf_jax.model.sharding import AXES, place
from rlhf_jax.rl.rollout import SamplerMismatch
from rlhf_jax.rl.scores import Reward
from rlhf_jax.study import Study
from rlhf_jax.study.config import ModelConfig
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.results import as_json
from rlhf_jax.train import Runtime, Stopped

__all__ = ["mesh"]


def constant(prompts, responses):
    """A reward that nothing can be learned from, which is a diagnosis from the first iteration
    on."""
    return np.ones(len(responses))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def run(corpus, mesh, monkeypatch):
    """(folder, iteration after which it is asked to stop) -> the cell's result; one compiled
    iteration."""
    model = ModelConfig(layers=1, width=16, heads=2, vocab=corpus.cfg.vocab)
    cell = PPO(
        "p",
        policy="base",
        reward=f"{__name__}:constant",
        task=TaskConfig(6, 5),
        iterations=3,
        batch=4,
        epochs=1,
        algorithm="reinforce",
    )

    def params(self, name):
        return place(jax.tree.map(jnp.asarray, noisy_params(model)), param_axes(model), mesh)

    monkeypatch.setattr(Context, "language_model", params)
    compiled = functools.cache(lambda: make(*arguments))
    make, arguments = job.make_ppo_step, []

    def once(*given):
        arguments[:] = arguments or given
        return compiled()

    monkeypatch.setattr(job, "make_ppo_step", once)

    def run(folder, stop_at=None, compute="float32"):
        shape = dataclasses.replace(model, compute=compute)
        study = Study("s", (Pretrain("base", model=shape), cell), corpus.cfg)
        runtime = Runtime(mesh, AXES, log=lambda _: None)

        def progress(step=None, phase="", **_):
            if phase == "training" and step == stop_at:
                runtime.stop.set()

        beat = SimpleNamespace(progress=progress)
        ctx = Context(study, cell, {"p": CellFolder(folder)}, corpus, runtime, beat)
        folder.mkdir(exist_ok=True)
        return as_json(job.run(ctx, cell))["ppo"]

    return run


def test_an_interrupted_cell_has_the_diagnoses_and_metrics_of_an_undisturbed_one(run, tmp_path):
    whole = run(tmp_path / "whole")
    assert whole["diagnoses"]["constant reward"].startswith("first in iteration 1: ")
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stop_at=1)
    assert CellFolder(tmp_path / "cut").metrics()[-1]["step"] < 3
    assert run(tmp_path / "cut") == whole
    # Also where all iterations had been taken before, and only the result was missing.
    assert run(tmp_path / "cut") == whole


def test_a_critic_starts_from_the_model_that_the_reward_names_or_from_the_policy(mesh):
    wide = dataclasses.replace(GQA, width=32)
    policy, other = (jax.tree.map(jnp.asarray, noisy_params(cfg)) for cfg in (GQA, wide))
    ctx = SimpleNamespace(runtime=Runtime(mesh, AXES), model=GQA)
    judge = with_scalar_head(other, wide, jax.random.key(0))
    for reward, cfg, trunk in (
        (Reward(None, {"any": other}), GQA, policy),  # of a user's kind, its arrays are its own
        (Reward(None, (), (judge, wide)), wide, other),
    ):
        models, critic = job._trained(ctx, PPO("p"), policy, reward)
        assert critic == cfg
        expected = with_scalar_head(trunk, cfg, None)
        assert same_bits(models["critic"], expected) and same_bits(models["policy"], policy)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_every_iteration_is_checked_in_every_dtype(run, tmp_path, monkeypatch, compute):
    """The loop is handed a check that stops the cell where trainer and sampler disagree."""

    def one_iteration(folder, state, step, batch_at, steps, runtime, row, beat, check):
        check(
            1,
            {
                "max_logprob_gap": 9.0,
                "approx_kl_before": 9.0,
                "logprob_variance": 1.0,
                "clip_frac_before": 1.0,
            },
        )

    monkeypatch.setattr(job, "train", one_iteration)
    with pytest.raises(SamplerMismatch, match=f"1 layers in {compute}"):
        run(tmp_path / "p", compute=compute)
