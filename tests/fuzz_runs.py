"""Random settings of a study of every kind of cell, extreme ones among them, and what comes of
running them.

What `plan` accepts has to run: a cell may fail only because its training diverged, and says so.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from fuzz_studies import places
from test_kinds_on_meshes import STUDY
from tiny_models import tiny_corpus_config

from rlhf_jax.data.corpus import find
from rlhf_jax.study import Study, load_study
from rlhf_jax.study.config import CorpusConfig, to_json
from rlhf_jax.study.runs import Runs

# By the name of a field: what it may hold, the least and the strangest first.
VALUES: dict[str, tuple[Any, ...]] = {
    "layers": (1, 2, 3),
    "width": (2, 4, 8, 32),
    "heads": (1, 2, 4),
    "kv_heads": (1, 2),
    "head_width": (2, 6),
    "ff": (1, 3, 8),
    "vocab": (340, 341, 400),
    "positions": ("learned",),
    "max_positions": (8, 12, 96, 128),
    "rope_base": (1.001, 2, 1e6),
    "norm": ("layer",),
    "activation": ("swiglu", "relu2"),
    "qk_norm": (True,),
    "tied": (False,),
    "compute": ("bfloat16",),
    "remat": ("dots", "full", "offload"),
    "lr": (1e-30, 1.0, 1e3, 1e30),
    "schedule": ("wsd", "linear", "constant"),
    "warmup": (0, 1, 0.5),
    "final": (0, 1),
    "decay": (0, 1),
    "weight_decay": (0, 10, 1e6),
    "b1": (0, 0.999),
    "b2": (0, 0.9999),
    "eps": (1e-30, 1, 1e6),
    "clip": (1e-30, 1e-6, 1e9, 1e30),
    "adam": ("tensorflow",),
    "tokens": (1, 95, 96, 768, 770, 5000),
    "batch": (1, 2, 3, 5, 7, 8, 16),
    "seed": (1, 2**31, 2**32 - 1),
    "unique_tokens": (1, 96, 768, 1000, 20_000),
    "repeat": (True,),
    "continues": (None,),
    "examples": (1, 2, 3, 64, 5000),
    "min_gold": (-1e6, -1, 0.01, 1, 1e6),
    "epochs": (1, 2, 3),
    "prompt_len": (1, 2, 3, 20, 100),
    "response_len": (1, 2, 3, 20, 100),
    "template": ("chat",),
    "gold": ("tiny_rewards:longest_word", "rlhf_jax.data.annotators:sentiment"),
    "prompts": (1, 2, 3, 30),
    "heldout_prompts": (1, 2, 30),
    "k": (1, 2, 3, 9),
    "temperature": (0, 1e-4, 0.1, 2, 1e4),
    "annotators": (1, 2, 500),
    "noise": (0, 1e6),
    "disagreement": (1, 1e6),
    "length_bias": (-1e6, 1, 1e6),
    "gives": ("corrections", "critiques"),
    "records": ("corrections", "critiques", "best-of-n", "compare", None),
    "comparisons": ("compare", "ranked", "corrections", "critiques"),
    "earlier": (["ranked"], ["corrections", "critiques"]),
    "loss": ("kwise", "plackett_luce", "best_of_n", "dpo", "ipo"),
    "margin": (0.1, 1e6),
    "centre": (0.1, 1e6),
    "normalise": ("samples", "demonstrations"),
    "combine": ("mean", "worst", "mean_minus_variance"),
    "variance_coef": (0, 2, 1e6),
    "beta": (1e-30, 1e-6, 1, 1e30),
    "reward": ("reward", "listwise", "worst", "judge", "tiny_rewards:longest_word"),
    "iterations": (1, 2, 3),
    "minibatches": (1, 2, 4, 8),
    "kl_coef": (0, 1, 1e6),
    "kl_target": (1e-30, 1, 1e30, None),
    "kl_horizon": (1e-30, 1, 1e30),
    "gamma": (0, 0.5),
    "lam": (0, 1),
    "value_clip": (None, 1e-30, 1e9),
    "value_coef": (0, 1, 1e6),
    "whiten_rewards": (True,),
    "no_eos": ("replace", "subtract", "keep"),
    "no_eos_score": (-1e6, 0, 1e6),
    "algorithm": ("ppo", "grpo", "rloo", "reinforce"),
    "samples": (1, 2, 3),
    "critic": ("reward", "policy", "shared"),
    "critic_lr": (None, 1e-30, 1e3),
    "kl_in": ("reward", "loss"),
    "score_at": ("last", "after"),
    "whiten_advantages": ("batch", "minibatch", "no"),
    "bessel": (True,),
    "ptx_coef": (0, 1, 1e6),
    "ptx_batch": (1, 3),
    "ema": (0, 0.999, None),
    "prompt_batches": (1, 2, 16),
    "split": ("train", "validation", "test"),
    "n": (1, 2, 3, 7),
    "base": ("base", "sft", "edited", "dpo", "averaged"),
    "policy": ("base", "sft", "judge", "shared"),
    "before": ("base", "sft"),
    "after": ("sft", "dpo", "ppo"),
    "modes": ("", "tiny_rewards:length_class"),
    "shots": ([0], [3], [0, 1, 2, 5]),
    "items": (1, 2, 5),
    "answer_len": (2, 3, 50),
    "seq_len": (8, 16, 96, 200),
    "validation": (0.01, 0.5),
    "test": (0.01, 0.5),
    "heldout_tokens": (1, 7, 32, 100_000),
    "dedup": (True,),
}
ELSEWHERE = {  # fields of another meaning with the same name
    "members": (["reward", "listwise"], ["reward", "listwise", "best"]),
    "task.prompts": ("", "tiny_rewards:texts"),
}
PLAIN = ("ConfigError", "Diverged")  # kinds of reasons that say in words why a cell failed


def write_study(root: Path) -> Path:
    """The study, its text and its callables."""
    corpus = CorpusConfig(**{**vars(tiny_corpus_config(root)), "seq_len": 96})
    text = STUDY.replace("THE_CORPUS", repr(to_json(corpus)))
    text = text.replace("T * 60", "T * 4").replace("T * 66", "T * 6")
    (root / "study.py").write_text(
        text.replace('"corrections", task=task, batch=2', '"corrections", task=task, batch=1')
    )
    (root / "tiny_rewards.py").write_text((Path(__file__).parent / "tiny_rewards.py").read_text())
    return root / "study.py"


def random_settings(random: Random, study: Study) -> tuple[str, list[str]]:
    """A cell, or "corpus", and one to four overrides of it."""
    everything = {(p[0], p[1]): ELSEWHERE.get(p[1], VALUES.get(p[3], ())) for p in places(study)}
    head = random.choice(sorted({head for head, _ in everything}))
    mine = [(dotted, some) for (of, dotted), some in everything.items() if of == head and some]
    chosen = random.sample(mine, min(len(mine), random.randint(1, 4)))
    return head, [f"{head}.{path}={json.dumps(random.choice(some))}" for path, some in chosen]


def command(verb: str, path: Path, overrides: list[str], *options: str) -> tuple[int, str]:
    """Exit code and all that was said."""
    here = str(Path(__file__).parents[1])
    env = os.environ | {
        "PYTHONPATH": here,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rlhf_jax.cli",
            verb,
            str(path),
            *overrides,
            "--runs",
            str(path.parent / "runs"),
            *options,
        ],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=path.parent,
    )
    return done.returncode, done.stdout


def not_finite(value: Any, path: str = "") -> Iterator[str]:
    """Where a result holds NaN or infinity."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from not_finite(inner, f"{path}/{key}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path


def faults(path: Path, overrides: list[str], only: list[str]) -> tuple[str, list[str]]:
    """Runs cells with some settings. Returns what came of it and what is wrong with that."""
    code, said = command("plan", path, overrides)
    wrong = ["a traceback of plan: " + said[-3000:]] if "Traceback" in said else []
    if code:
        return "refused: " + said.strip().splitlines()[-1], wrong
    code, said = command(
        "run", path, overrides, "--only", *only, "--display", "none", "--workers", "1"
    )
    if "Traceback" in said:
        wrong.append("a traceback of run: " + said[-3000:])
    if code == 2:  # plan knows as much once the corpus is there, if it can be prepared
        again, _ = command("plan", path, overrides)
        again = again or "prepared corpus" not in said
        return "refused: " + said.strip().splitlines()[-1], wrong + ["plan accepts it"] * (
            not again
        )
    if "Report: " not in said:
        wrong.append("no report: " + said[-3000:])
    study = load_study(path, False, overrides, path.parent / "runs")
    corpus = find(study.corpus, path.parent / "runs")
    assert corpus is not None
    reasons = []
    for name, folder in Runs(path.parent / "runs").folders(study, corpus.content_hash).items():
        state = folder.state()
        if state["state"] == "failed":
            reasons.append(f"{name}: {state.get('reason')}")
            if not str(state.get("reason")).startswith(PLAIN):
                wrong.append(f"not in words: {name}: {state.get('reason')}")
        elif state["state"] == "done":
            for file in sorted(folder.results.glob("*.json")):
                bad = list(not_finite(json.loads(file.read_text()), f"{name}/{file.name}"))
                wrong += [f"not finite: {', '.join(bad[:5])}"] * bool(bad)
    return f"{code}: {'; '.join(reasons)}", wrong
