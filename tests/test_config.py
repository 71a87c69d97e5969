"""Configuration: strict in, stable out."""

from __future__ import annotations

import json

import pytest

from rlhf_jax.cells import PPO, Compare, Pretrain
from rlhf_jax.config import (
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
        ({"layers": 0}, "model.layers is 0; it must be at least 1"),
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
        ("optim.lr=-1", "optim.lr is -1.0; it must be positive"),
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
        (lambda: OptimConfig(warmup=1.5), "it is a share"),
        (
            lambda: PPO("p", batch=10, minibatches=3),
            "minibatches = 3 does not divide batch x samples = 10 x 1",
        ),
        (lambda: Compare("c", k=10), "rankings hold 2 to 9"),
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
