"""Guarantee: where a study runs does not change what it finds. Every kind of cell, and every
algorithm and option of PPO, goes through a real worker on one device and on meshes; all results are
compared."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_corpus_config

from rlhf_jax.data import prepare
from rlhf_jax.kinds import KINDS
from rlhf_jax.study import load_study
from rlhf_jax.study.config import CorpusConfig, to_json
from rlhf_jax.study.populations import populations
from rlhf_jax.study.runs import Runs

STUDY = """
from rlhf_jax.kinds import (
    DPO, PPO, SFT, BestOfN, Compare, Ensemble, Evaluate, Feedback, Pretrain, Prompting, Reward, TaskConfig,
)
from rlhf_jax.study import CorpusConfig, ModelConfig, OptimConfig
from rlhf_jax.study.config import from_json
from rlhf_jax.study import Study

CORPUS = from_json(CorpusConfig, THE_CORPUS)
GOLD = "tiny_rewards:longest_word"


def study(tiny):
    small = dict(layers=1, width=16, heads=2, vocab=CORPUS.vocab, max_positions=128)
    T = CORPUS.seq_len
    model, other = ModelConfig(**small), ModelConfig(**small | dict(ff=24))
    steady = OptimConfig(lr=1e-3, weight_decay=0.0, eps=1e-5)
    task = TaskConfig(prompt_len=6, response_len=6)
    length = TaskConfig(prompt_len=6, response_len=6, gold=GOLD)
    asked = dict(policy="sft", prompts=12, heldout_prompts=6, k=4, task=length)
    edited = dict(policy="longer", prompts=20, heldout_prompts=12, k=2, task=task, min_gold=0.05)
    ppo = dict(policy="sft", reward="reward", iterations=2, batch=8, task=length, optim=steady)
    alone = dict(samples=4, epochs=1, **ppo)
    ranked = dict(base="sft", comparisons="compare", batch=4, optim=steady)
    cells = (
        Pretrain("base", model=model, batch=8, tokens=8 * T * 60, optim=OptimConfig(lr=2e-2)),
        Pretrain("longer", model=model, batch=8, tokens=8 * T * 66, continues="base"),
        *(Pretrain(f"member-{i}", model=model, batch=4, tokens=4 * T * 5, seed=i % 2,
                   optim=OptimConfig(lr=1e-2 / (i + 1), weight_decay=0.2 * i)) for i in range(3)),
        SFT("sft", base="longer", examples=64, batch=4, task=task, optim=steady, min_gold=-1.0),
        Compare("compare", **asked),
        Feedback("corrections", gives="corrections", **edited),
        Feedback("critiques", gives="critiques", **edited),
        SFT("edited", base="sft", records="corrections", task=task, batch=2, optim=steady),
        SFT("judge", base="sft", records="critiques", task=task, batch=2, optim=steady),
        Reward("reward", **ranked),
        Reward("listwise", loss="plackett_luce", seed=1, **ranked),
        Reward("best", loss="best_of_n", normalise="demonstrations", seed=2,
               **ranked | dict(comparisons="ranked")),
        Compare("ranked", **asked | dict(task=task)),
        Ensemble("worst", members=("reward", "listwise"), combine="worst"),
        PPO("ppo", minibatches=2, epochs=2, kl_target=1.0, **ppo),
        PPO("shared", critic="shared", epochs=1, score_at="after", whiten_rewards=True, **ppo),
        PPO("trunk", critic="policy", critic_lr=1e-3, epochs=1, whiten_advantages="minibatch",
            bessel=True, **ppo),
        PPO("averaged", ema=0.5, epochs=1, no_eos="subtract", value_clip=None, **ppo),
        PPO("text", ptx_coef=0.5, ptx_batch=4, epochs=1, no_eos="keep", **ppo),
        PPO("in-loss", kl_in="loss", epochs=1, gamma=0.9, whiten_advantages="no", **ppo),
        PPO("grpo", algorithm="grpo", kl_in="loss", **alone),
        PPO("rloo", algorithm="rloo", **alone),
        PPO("reinforce", algorithm="reinforce", **alone),
        PPO("by-texts", epochs=1, **ppo | dict(reward=GOLD)),
        PPO("by-ensemble", epochs=1, **ppo | dict(reward="worst")),
        PPO("by-judge", epochs=1, **ppo | dict(reward="judge")),
        DPO("dpo", policy="sft", comparisons="compare", batch=4, optim=steady),
        DPO("ipo", policy="sft", comparisons="compare", batch=4, optim=steady, loss="ipo"),
        BestOfN("best-of-n", policy="sft", reward="reward", prompts=24, n=4, task=length),
        SFT("rejection", base="sft", records="best-of-n", batch=2, task=task, optim=steady),
        Evaluate("evaluate", before="sft", after="ppo", reward="reward", prompts=6, task=length,
                 modes="tiny_rewards:length_class"),
        Prompting("prompting", policy="sft", tasks="tiny_rewards:questions", items=3, shots=(0, 1)),
    )
    return Study("kinds", cells, CORPUS)
"""

# A few cells in which a mesh matters in different ways, for every run of the tests.
SOME = ("sft", "compare", "reward")
OTHERS = ("data=2", "fsdp=2,tensor=2")
# Of float32 results of two optimizer steps and more: rounding differs between meshes.
RELATIVE, ABSOLUTE = 2e-3, 2e-4
NOT_RESULTS = (
    "seconds",
    "tokens_per_second",
    "mfu",
    "max_logprob_gap",
    "max_ratio_error",
    "approx_kl_before",
)


class World:
    """The study, its corpus, and runs folders, one a mesh."""

    def __init__(self, root: Path) -> None:
        corpus: CorpusConfig = tiny_corpus_config(root)
        corpus = CorpusConfig(**{**vars(corpus), "seq_len": 96})
        self.root, self.path = root, root / "study.py"
        self.path.write_text(STUDY.replace("THE_CORPUS", repr(to_json(corpus))))
        (root / "tiny_rewards.py").write_text(
            (Path(__file__).parent / "tiny_rewards.py").read_text()
        )
        self.study = load_study(self.path)

    def run(self, mesh: str, lines: tuple[str, ...], accumulate: int = 1, devices: int = 1) -> dict:
        """Results of cells by name, file and key, after a worker ran them; cells on one line
        together."""
        runs = self.root / f"{mesh or 'one'}-{accumulate}-{devices}"
        corpus = prepare(self.study.corpus, runs, lambda _: None)
        for part in filter(None, mesh.split(",")):
            devices *= int(part.partition("=")[2])
        names = " ".join(lines).split()
        flags = (
            f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        )
        command = [
            sys.executable,
            "-m",
            "rlhf_jax.worker",
            str(self.path),
            "--runs",
            str(runs),
            "--mesh",
            mesh,
            "--accumulate",
            str(accumulate),
            "--threads",
            "1",
        ]
        here = str(Path(__file__).parents[1])
        env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": here}
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        with (
            open(runs / "worker.log", "w+") as log,
            subprocess.Popen(command, **pipes, stderr=log, env=env, text=True) as worker,
        ):
            worker.stdin.write("".join(f"{line}\n" for line in lines))
            worker.stdin.flush()
            answers = [json.loads(worker.stdout.readline() or "{}") for _ in names]
            worker.stdin.close()
            failed = {a.get("cell"): a.get("reason") for a in answers if a.get("outcome") != "done"}
            log.seek(0)
            assert not failed, (mesh, failed, log.read()[-3000:])
        folders = Runs(runs).folders(self.study, corpus.content_hash)
        return {
            name: {p.name: json.loads(p.read_text()) for p in folders[name].results.glob("*.json")}
            | {"metrics": folders[name].metrics()}
            for name in names
        }


def differences(one, other, path=""):
    """Where two results differ by more than rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{path}: keys {sorted(set(one) ^ set(other))}"]
        keys = [k for k in one if k not in NOT_RESULTS]
        return [d for k in keys for d in differences(one[k], other[k], f"{path}/{k}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            d
            for i, pair in enumerate(zip(one, other, strict=True))
            for d in differences(*pair, f"{path}[{i}]")
        ]
    if isinstance(one, float) and isinstance(other, float):
        close = math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        return (
            [] if close or (math.isnan(one) and math.isnan(other)) else [f"{path}: {one} {other}"]
        )
    return [] if one == other else [f"{path}: {one!r} {other!r}"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("kinds"))


def test_the_study_has_every_kind_of_cell_and_every_choice_of_ppo(world):
    assert {c.KIND for c in world.study.cells} == set(KINDS)
    cells = [c for c in world.study.cells if c.KIND == "ppo"]
    assert {c.algorithm for c in cells} == {"ppo", "grpo", "rloo", "reinforce"}
    assert {c.critic for c in cells} == {"reward", "policy", "shared"}
    assert {c.kl_in for c in cells} == {"reward", "loss"}
    assert {c.no_eos for c in cells} == {"replace", "subtract", "keep"}


def test_what_is_trained_and_sampled_on_a_mesh_equals_one_device(world):
    names = tuple(c.name for c in world.study.order() if c.name in needed(world.study, SOME))
    one = world.run("", names)
    assert differences(one, world.run("fsdp=2,tensor=2", names, accumulate=2)) == []


def test_a_population_with_the_real_step_equals_its_members_alone(world):
    """Over two devices, which do not divide three members; with the losses on held-out text."""
    names = ("member-0", "member-1", "member-2")
    assert set(populations(world.study)["member-0"]) == set(names)
    alone, together = world.run("", names), world.run("", (" ".join(names),), devices=2)
    assert differences(alone, together) == []
    losses = [alone[name]["heldout.json"]["loss"] for name in names]
    assert min(abs(a - b) for a, b in itertools.pairwise(losses)) > 10 * ABSOLUTE


def needed(study, names):
    """The cells and all that they start from."""
    found = set(names)
    for cell in reversed(study.order()):
        if cell.name in found:
            found |= set(cell.parents())
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kind_of_cell_and_every_option_of_ppo_on_a_mesh_equals_one_device(world):
    names = tuple(c.name for c in world.study.order())
    one = world.run("", names)
    assert differences(one, world.run("", names, accumulate=2)) == []
    for mesh in OTHERS:
        assert differences(one, world.run(mesh, names)) == [], mesh
