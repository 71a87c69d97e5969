"""Settings of a study, each known to be right or wrong by what its field means.

Written from the meaning of the fields and not from the product's own ranges, so that the two can
disagree.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

from hypothesis import strategies as st

from rlhf_jax.kinds import (
    DPO,
    PPO,
    SFT,
    BestOfN,
    Compare,
    Ensemble,
    Evaluate,
    Feedback,
    Pretrain,
    Prompting,
    Reward,
    TaskConfig,
)
from rlhf_jax.study import Study
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import CorpusConfig, ModelConfig, from_json, override, to_json

MODEL = ModelConfig(layers=2, width=16, heads=2, vocab=300, max_positions=64)
CORPUS = CorpusConfig(vocab=300, seq_len=32, heldout_tokens=256)
TASK = TaskConfig(prompt_len=8, response_len=8)


def study_of_every_kind() -> Study:
    """One cell of each kind, in one graph."""
    cells: tuple[Cell, ...] = (
        Pretrain("base", model=MODEL, tokens=20_000, batch=8),
        Pretrain("longer", model=MODEL, tokens=40_000, batch=8, continues="base"),
        SFT("sft", base="base", task=TASK, examples=64, batch=8),
        Compare("compare", policy="sft", task=TASK, prompts=32, heldout_prompts=16, k=4),
        Feedback("feedback", policy="sft", task=TASK, prompts=32, heldout_prompts=16),
        Reward("reward", base="sft", comparisons="compare", batch=8),
        Reward("reward-2", base="sft", comparisons="compare", batch=8, seed=1),
        Ensemble("ensemble", members=("reward", "reward-2")),
        PPO(
            "ppo", policy="sft", reward="reward", task=TASK, iterations=2, batch=8, prompt_batches=2
        ),
        DPO("dpo", policy="sft", comparisons="compare", batch=8),
        BestOfN("best", policy="sft", reward="reward", task=TASK, prompts=16, n=4),
        Evaluate("evaluate", before="sft", after="ppo", reward="reward", task=TASK, prompts=16),
        Prompting("prompting", policy="sft", tasks="rlhf_jax.evals.prompting:Item", items=4),
    )
    return Study("fuzz", cells, CORPUS)


NOT_NUMBERS = ("x", "", [1], {"a": 1}, math.nan, math.inf, -math.inf, 1e400)
COUNTS = {
    "layers",
    "width",
    "heads",
    "kv_heads",
    "head_width",
    "ff",
    "max_positions",
    "vocab",
    "tokens",
    "batch",
    "unique_tokens",
    "examples",
    "epochs",
    "prompts",
    "heldout_prompts",
    "k",
    "annotators",
    "iterations",
    "minibatches",
    "samples",
    "ptx_batch",
    "prompt_batches",
    "n",
    "items",
    "answer_len",
    "prompt_len",
    "response_len",
    "seq_len",
    "heldout_tokens",
    "members",
}
SHARES = {"warmup", "final", "decay", "validation", "test", "gamma", "lam", "ema"}
BELOW_ONE = {"b1", "b2"}
POSITIVE = {"lr", "critic_lr", "eps", "rope_base", "beta", "kl_horizon", "kl_target"}
AT_LEAST_0 = {
    "weight_decay",
    "noise",
    "disagreement",
    "temperature",
    "kl_coef",
    "value_coef",
    "ptx_coef",
    "centre",
    "variance_coef",
}
ABOVE_0 = {"value_clip", "optim.clip"}
SWITCHES = {"qk_norm", "tied", "dedup", "repeat", "whiten_rewards", "bessel"}
CHOICES = {
    "positions",
    "norm",
    "activation",
    "compute",
    "remat",
    "schedule",
    "adam",
    "template",
    "gives",
    "loss",
    "normalise",
    "combine",
    "no_eos",
    "algorithm",
    "critic",
    "kl_in",
    "score_at",
    "whiten_advantages",
    "split",
}
LISTS = {"sources", "members of an ensemble", "shots", "earlier"}


def wrong_values(owner: Any, name: str) -> tuple[Any, ...]:
    """Values that no field of this meaning can have."""
    if isinstance(getattr(owner, name), str) and name == "prompts":  # MODULE:FUNCTION of a task
        return (1, None, [1], {"a": 1})
    if name in COUNTS and not (name == "members" and isinstance(owner, Ensemble)):
        return (0, -1, -4, 2.5, True, *NOT_NUMBERS)
    if name == "seed":
        return (-1, 2**32, 0.5, True, *NOT_NUMBERS)
    if name in SHARES:
        return (-0.1, 1.5, -1, 2, True, *NOT_NUMBERS)
    if name in BELOW_ONE:
        return (-0.1, 1.0, 1.5, True, *NOT_NUMBERS)
    if name in POSITIVE:
        return (0, -1e-3, -1, True, *NOT_NUMBERS)
    if name in AT_LEAST_0:
        return (-1e-3, -1, True, *NOT_NUMBERS)
    if name == "clip":
        return (-1, -0.2, 0 if isinstance(owner, PPO) else -2, True, *NOT_NUMBERS)
    if name == "value_clip":
        return (-1, 0, True, *NOT_NUMBERS)
    if name in SWITCHES:
        return (1, 0, "yes", "True", None, [True], 0.5)
    if name in CHOICES:
        return ("nonsense", "", 1, None, True, ["rope"])
    if name in ("sources", "shots", "earlier") or (
        name == "members" and isinstance(owner, Ensemble)
    ):
        return ("a string", 3, None, {"a": 1}, [None], [[1]])
    return ()


def right_values(owner: Any, name: str) -> tuple[Any, ...]:
    """Values that are right by themselves (another field may forbid them)."""
    if name == "seed":
        return (0, 1, 2**32 - 1, 7.0)
    if name in SHARES | BELOW_ONE:
        return (0, 0.5, 0.0)
    if name in ("lr", "eps", "rope_base", "beta", "kl_horizon"):
        return (1, 0.5, 10)
    if name in ("weight_decay", "noise", "disagreement"):
        return (0, 0.5, 1)
    if name in SWITCHES:
        return (True, False)
    if name in ("epochs", "iterations", "samples", "prompt_batches"):
        return (2, 3, 4.0)
    return ()


def places(study: Study) -> list[tuple[str, str, Any, str]]:
    """(cell or "corpus", dotted path, the object that has the field, the field) of every field."""
    found = []

    def walk(head: str, path: str, obj: Any) -> None:
        for f in fields(obj):
            value = getattr(obj, f.name)
            dotted = f"{path}.{f.name}" if path else f.name
            if is_dataclass(value):
                walk(head, dotted, value)
            else:
                found.append((head, dotted, obj, f.name))

    for cell in study.cells:
        walk(cell.name, "", cell)
    walk("corpus", "", study.corpus)
    return found


ROUTES = ("constructor", "json", "override")


def with_value(study: Study, head: str, dotted: str, value: Any, route: str) -> Study:
    """The study with one field set, as a study file, JSON or a command line would set it."""
    obj = study.corpus if head == "corpus" else study[head]
    if route == "override":
        text = value if isinstance(value, str) else json.dumps(value)
        new = override(obj, [f"{dotted}={text}"], head)
    elif route == "json":
        data = to_json(obj)
        inner, *_ = (data, None)
        *parents, last = dotted.split(".")
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        new = from_json(type(obj), data, head)
    else:
        new = _replaced(obj, dotted.split("."), value)
    if head == "corpus":
        return replace(study, corpus=new)
    return replace(study, cells=tuple(new if c.name == head else c for c in study.cells))


def _replaced(obj: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    return replace(obj, **{head: _replaced(getattr(obj, head), rest, value) if rest else value})


BASE = study_of_every_kind()
PLACES = places(BASE)
OPTIONAL = {
    "kv_heads",
    "head_width",
    "ff",
    "unique_tokens",
    "prompts",
    "kl_target",
    "value_clip",
    "critic_lr",
    "ema",
}
WRONG = [(*p, v) for p in PLACES for v in wrong_values(p[2], p[3])]
RIGHT = [(*p, v) for p in PLACES for v in right_values(p[2], p[3])]

wrong_settings = st.tuples(st.sampled_from(WRONG), st.sampled_from(ROUTES))
right_settings = st.lists(
    st.tuples(st.sampled_from(RIGHT), st.sampled_from(ROUTES)), min_size=1, max_size=4
)
