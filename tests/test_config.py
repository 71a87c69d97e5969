"""Configuration: strict in, stable out."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.kinds import KINDS, PPO, SFT, Compare, Ensemble, Pretrain, Prompting, TaskConfig
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import (
    Checked,
    ConfigError,
    CorpusConfig,
    ModelConfig,
    OptimConfig,
    content_id,
    from_json,
    override,
    to_json,
)


def test_json_round_trip_is_exact():
    cell = Pretrain("base", model=ModelConfig(kv_heads=2, ff=96), optim=OptimConfig(lr=1e-3))
    assert from_json(Pretrain, json.loads(json.dumps(to_json(cell)))) == cell
    corpus = CorpusConfig(sources=("a", "b"))
    assert from_json(CorpusConfig, to_json(corpus)) == corpus


def test_unknown_keys_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown key 'widht' for ModelConfig. Did you mean 'wi"):
        from_json(ModelConfig, {"widht": 64})
    with pytest.raises(ConfigError, match=r"unknown key 'optim\.learning' .*Known: adam, b1, b2"):
        from_json(Pretrain, {"name": "x", "optim": {"learning": 1.0}})
    with pytest.raises(ConfigError, match="Did you mean 'weight_decay'"):
        override(Pretrain("x"), ["optim.weigth_decay=0"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"layers": "two"}, "layers: expected int, got 'two'"),
        ({"layers": 2.5}, "layers: expected int, got 2.5"),
        ({"layers": True}, "layers: expected int, got True"),
        ({"tied": 1}, "tied: expected bool, got 1"),
        ({"norm": "batch"}, "norm = 'batch'"),
        ({"layers": 0}, "model.layers = 0; expected a whole number from 1 to 10,000"),
        ([], "expected an object"),
    ],
)
def test_wrong_values_are_refused_with_their_path(data, message):
    with pytest.raises(ConfigError, match=message):
        from_json(ModelConfig, data)


def test_whole_floats_are_ints_and_ints_are_floats():
    assert from_json(Pretrain, {"name": "x", "tokens": 1e6}).tokens == 1_000_000
    lr = from_json(OptimConfig, {"lr": 1}).lr
    assert lr == 1.0 and isinstance(lr, float)


def test_a_missing_key_without_default_is_an_error():
    with pytest.raises(ConfigError, match="name"):
        from_json(Pretrain, {"tokens": 5000})


def test_overrides_reach_nested_fields():
    cell = override(Pretrain("x"), ["optim.lr=1e-2", "model.norm=layer", "model.kv_heads=2"])
    assert (cell.optim.lr, cell.model.norm, cell.model.kv_heads) == (1e-2, "layer", 2)
    assert override(cell, ["model.kv_heads=null"]).model.kv_heads is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lr", "expected PATH=VALUE"),
        ("=3", "expected PATH=VALUE"),
        ("optim.lr=fast", "expected float, got 'fast'"),
        ("batch.size=3", "has no field 'size'"),
        ("optim.lr=-1", "x.optim.lr = -1.0; expected a number above 0"),
        ("model.heads=3", "does not divide model.width"),
    ],
)
def test_wrong_overrides_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        override(Pretrain("x"), [text])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(width=64, heads=5), "5 does not divide model.width = 64"),
        (lambda: ModelConfig(heads=4, kv_heads=3), "kv_heads = 3 does not divide"),
        (lambda: ModelConfig(width=12, heads=4), "head width is 3; .* must be even"),
        (lambda: OptimConfig(warmup=1.5), "optim.warmup = 1.5; expected a number from 0 to 1"),
        (
            lambda: PPO("p", batch=10, minibatches=3),
            "minibatches = 3 does not divide batch x samples = 10 x 1",
        ),
        (lambda: Compare("c", k=10), "c.k = 10; expected a whole number from 2 to 9"),
    ],
)
def test_impossible_shapes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_derived_widths():
    assert ModelConfig(width=64, heads=4).C == 16
    assert ModelConfig(width=64, heads=4, head_width=32).C == 32
    assert ModelConfig(width=64, activation="swiglu").F == 176  # 8/3 x 64 = 170.7
    assert ModelConfig(width=64).F == 256


def test_content_id_is_stable():
    """Golden: changing it orphans every finished run."""
    assert content_id({"b": 1e-3, "a": (1, None, "x"), "c": True}) == "d150d1c3f7"
    assert content_id({"c": True, "a": [1, None, "x"], "b": 0.001}) == "d150d1c3f7"
    assert content_id(OptimConfig()) == content_id(to_json(OptimConfig()))
    with pytest.raises(ValueError, match="JSON compliant"):
        content_id(float("nan"))


# --- constructors, overrides and JSON check alike
# ----------------------------------------------------

WRONG = [
    (ModelConfig, {"activation": "relu"}, "activation = 'relu'.*Did you mean 'relu2'"),
    (ModelConfig, {"norm": "layernorm"}, "norm = 'layernorm'.*Did you mean 'layer'"),
    (ModelConfig, {"positions": "alibi"}, "positions = 'alibi'. Known: learned, rope"),
    (ModelConfig, {"tied": "yes"}, "tied: expected bool, got 'yes'"),
    (OptimConfig, {"schedule": "cosin"}, "schedule = 'cosin'. Did you mean 'cosine'"),
    (OptimConfig, {"lr": float("nan")}, "lr: expected a finite number, got nan"),
    (OptimConfig, {"clip": float("inf")}, "clip: expected a finite number, got inf"),
    (OptimConfig, {"eps": 10**400}, "eps: expected a finite number"),
    (CorpusConfig, {"sources": "a.txt"}, "sources: expected a list, got 'a.txt' .a comma after it"),
    (CorpusConfig, {"sources": ("a.txt", 3)}, r"sources\[1\]: expected str, got 3"),
    (CorpusConfig, {"sources": {"a.txt"}}, "sources: expected a list"),
    (TaskConfig, {"template": "Chat"}, "template = 'Chat'. Did you mean 'chat'"),
    (Pretrain, {"name": "base", "batch": 8.5}, "base.batch: expected int, got 8.5"),
    (Pretrain, {"name": "base", "seed": 0.5}, "base.seed: expected int, got 0.5"),
    (Pretrain, {"name": "base", "seed": True}, "base.seed: expected int, got True"),
    (Pretrain, {"name": "base", "repeat": 1}, "base.repeat: expected bool, got 1"),
    (Pretrain, {"name": "base", "tokens": "2e4"}, "base.tokens: expected int, got '2e4'"),
    (Pretrain, {"name": "base", "optim": 1e-3}, "base.optim: expected OptimConfig, got 0.001"),
    (Pretrain, {"name": "base", "optim": {"schedule": "cosin"}}, "base.optim.schedule = 'cosin'"),
    (Pretrain, {"name": "base", "batches": 3}, "unknown key 'batches'.*Did you mean 'batch'"),
    (SFT, {"name": "sft", "min_gold": "0"}, "sft.min_gold: expected float, got '0'"),
    (PPO, {"name": "p", "kl_in": "los"}, "p.kl_in = 'los'. Did you mean 'loss'"),
    (PPO, {"name": "p", "ema": True}, "p.ema: expected float, got True"),
    (Ensemble, {"name": "e", "members": "ab"}, "e.members: expected a list, got 'ab'"),
    (
        Prompting,
        {"name": "p", "tasks": "m:f", "shots": (0, 1.5)},
        r"p.shots\[1\]: expected int, got 1.5",
    ),
]


@pytest.mark.parametrize(("cls", "values", "said"), WRONG, ids=str)
def test_a_wrong_value_is_refused_by_constructor_override_and_json_alike(cls, values, said):
    with pytest.raises(ConfigError, match=said):
        cls(**values)
    name = {"name": values["name"]} if "name" in values else {}
    plain = said.removeprefix(f"{values.get('name')}.")
    with pytest.raises(ConfigError, match=plain):
        from_json(cls, values)
    extra = (
        {"tasks": "m:f"} if cls is Prompting else {"members": ("a", "b")} if cls is Ensemble else {}
    )
    good = cls(**name, **extra)
    (key,) = [k for k in values if k not in ("name", "tasks")]
    with pytest.raises(ConfigError):
        dataclasses.replace(good, **{key: values[key]})
    if not isinstance(values[key], set | dict) and values[key] not in ("2e4", "0"):
        with pytest.raises(ConfigError):
            override(good, [f"{key}={json.dumps(values[key])}"])


def test_an_object_of_another_configuration_is_refused():
    with pytest.raises(ConfigError, match=r"base.optim: expected OptimConfig, got ModelConfig"):
        Pretrain("base", optim=ModelConfig())
    with pytest.raises(ConfigError, match=r"base.model: expected ModelConfig, got <class"):
        Pretrain("base", model=ModelConfig)


def test_values_that_mean_the_same_are_the_same():
    """Whole floats, integers for floats, numpy's scalars, lists and paths."""
    given = Pretrain(
        "x",
        tokens=2e4,
        batch=np.int64(8),
        seed=np.float32(3),
        repeat=np.bool_(True),
        optim=OptimConfig(lr=np.float64(0.5), clip=1, schedule=np.str_("wsd")),
    )
    plain = Pretrain(
        "x",
        tokens=20_000,
        batch=8,
        seed=3,
        repeat=True,
        optim=OptimConfig(lr=0.5, clip=1.0, schedule="wsd"),
    )
    assert given == plain and content_id(given) == content_id(plain)
    assert json.dumps(to_json(given)) == json.dumps(to_json(plain))
    assert CorpusConfig(sources=["a", Path("b")]) == CorpusConfig(sources=("a", "b"))
    assert SFT("s", records=Path("a") / "b.jsonl").records == "a/b.jsonl"
    assert content_id(OptimConfig(clip=1)) == content_id(OptimConfig())


def test_a_dictionary_is_a_nested_configuration():
    assert Pretrain("x", optim={"lr": 1}) == Pretrain("x", optim=OptimConfig(lr=1.0))


def test_every_configuration_is_checked_and_a_new_kind_cannot_forget_it():
    for cls in (ModelConfig, CorpusConfig, OptimConfig, TaskConfig, *KINDS.values()):
        assert issubclass(cls, Checked) and cls.__post_init__ is Checked.__post_init__

    @dataclasses.dataclass(frozen=True)
    class Mine(Cell):
        how: typing.Literal["a", "b"] = "a"
        pair: tuple[int, ...] = ()

    assert Mine("x", pair=[1, 2.0]).pair == (1, 2)
    with pytest.raises(ConfigError, match=r"x.how = 'c'"):
        Mine("x", how="c")
    with pytest.raises(ConfigError, match="name it check"):

        class Forgetful(Cell):
            def __post_init__(self):
                pass
