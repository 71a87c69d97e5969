"""Every number of a configuration has a range, which constructors, overrides, JSON and commands
share."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import typing

import numpy as np
import pytest

import rlhf_jax.cost.presets
from rlhf_jax import cli
from rlhf_jax.kinds import (
    KINDS,
    PPO,
    SFT,
    Compare,
    Ensemble,
    Pretrain,
    Prompting,
    Reward,
    TaskConfig,
)
from rlhf_jax.rl.presets import ppo_preset
from rlhf_jax.study import Analysis, Study, load_study
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import (
    Checked,
    ConfigError,
    CorpusConfig,
    ModelConfig,
    OptimConfig,
    argument,
    from_json,
    override,
)
from rlhf_jax.study.ranges import Count, Name, Range, Seed, Temperature

CLASSES = [
    ModelConfig,
    CorpusConfig,
    OptimConfig,
    TaskConfig,
    Analysis,
    Study,
    *KINDS.values(),
    rlhf_jax.cost.presets.Preset,
    rlhf_jax.cost.presets.Training,
]
NEEDED = {
    "name": "x",
    "tasks": "m:f",
    "members": ("a", "b"),
    "params": 1e9,
    "seq_len": 64,
    "source": "paper",
    "kind": "isoflop",
    "cells": ("*",),
    "tokens": 1e6,
    "model": ModelConfig(),
}


def bare_numbers(hint) -> list:
    """The types int and float in a hint that no Range goes with."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return [] if any(isinstance(a, Range) for a in args[1:]) else bare_numbers(args[0])
    return [hint] if hint in (int, float) else [x for a in args for x in bare_numbers(a)]


def needed(cls):
    given = (dataclasses.MISSING, ())
    missing = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default in given and f.default_factory is dataclasses.MISSING
    }
    return {k: v for k, v in NEEDED.items() if k in missing or (k, cls) == ("tasks", Prompting)}


def made(cls, **values):
    """An object of a class with what it needs, and these values."""
    return cls(**needed(cls) | values)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_number_of_every_configuration_has_a_range(cls):
    assert issubclass(cls, Checked)
    hints = typing.get_type_hints(cls, include_extras=True)
    bare = {f.name for f in dataclasses.fields(cls) if bare_numbers(hints[f.name])}
    assert bare == set()


def test_every_configuration_class_is_among_those():
    def below(cls):
        return {cls}.union(*map(below, cls.__subclasses__()))

    ours = {c for c in below(Checked) if c.__module__.startswith("rlhf_jax.")}
    ours -= {c for c in ours if issubclass(c, Cell) and "KIND" not in vars(c)}  # bases of kinds
    assert {c.__name__ for c in ours} - {"Checked", "Cell"} == {c.__name__ for c in CLASSES}


def test_a_bare_number_is_found():
    @dataclasses.dataclass(frozen=True)
    class Mine(Checked):
        n: int = 1
        many: tuple[float | None, ...] = ()
        good: tuple[Count, ...] = ()

    hints = typing.get_type_hints(Mine, include_extras=True)
    assert [bool(bare_numbers(hints[n])) for n in ("n", "many", "good")] == [True, True, False]


WHOLE, NUMBER = "expected a whole number", "expected a number"
BAD = [
    (ModelConfig, "layers", 0, f"model.layers = 0; {WHOLE} from 1 to 10,000"),
    (ModelConfig, "width", -64, f"model.width = -64; {WHOLE} of at least 1"),
    (ModelConfig, "heads", 0, f"model.heads = 0; {WHOLE} of at least 1"),
    (ModelConfig, "kv_heads", -2, f"model.kv_heads = -2; {WHOLE} of at least 1"),
    (ModelConfig, "kv_heads", 0, f"model.kv_heads = 0; {WHOLE} of at least 1"),
    (ModelConfig, "head_width", 0, f"model.head_width = 0; {WHOLE} of at least 1"),
    (ModelConfig, "ff", -1, f"model.ff = -1; {WHOLE} of at least 1"),
    (ModelConfig, "vocab", 2**24 + 1, f"model.vocab = 16777217; {WHOLE} of at most 16,777,216"),
    (ModelConfig, "max_positions", 0, f"model.max_positions = 0; {WHOLE} of at least 1"),
    (ModelConfig, "rope_base", 1.0, f"model.rope_base = 1.0; {NUMBER} above 1"),
    (CorpusConfig, "vocab", 0, f"corpus.vocab = 0; {WHOLE} of at least 1"),
    (CorpusConfig, "seq_len", 0, f"corpus.seq_len = 0; {WHOLE} of at least 1"),
    (CorpusConfig, "heldout_tokens", 0, f"corpus.heldout_tokens = 0; {WHOLE} of at least 1"),
    (CorpusConfig, "validation", 10.0, f"corpus.validation = 10.0; {NUMBER} from 0 to below 1"),
    (CorpusConfig, "validation", 0.99, "0.99 + 0.02 leave no text to train on"),
    (CorpusConfig, "validation", 0.98, "0.98 + 0.02 leave no text to train on"),
    (SFT, "min_gold", -1e7, f"x.min_gold = -10000000.0; {NUMBER} from -1,000,000 to 1,000,000"),
    (CorpusConfig, "test", 1.0, f"corpus.test = 1.0; {NUMBER} from 0 to below 1"),
    (CorpusConfig, "test", -0.1, f"corpus.test = -0.1; {NUMBER} from 0 to below 1"),
    (CorpusConfig, "seed", -1, f"corpus.seed = -1; {WHOLE} of at least 0"),
    (CorpusConfig, "sources", (), "corpus.sources = (); expected at least 1"),
    (CorpusConfig, "sources", ("",), "corpus.sources = ('',); expected at least 1"),
    (CorpusConfig, "sources", ("a", "b", "a"), "corpus.sources has 'a' twice"),
    (OptimConfig, "lr", 0.0, f"optim.lr = 0.0; {NUMBER} above 0"),
    (OptimConfig, "lr", 1e39, f"optim.lr = 1e+39; {NUMBER} that float32 can hold"),
    (OptimConfig, "eps", 0.0, f"optim.eps = 0.0; {NUMBER} above 0"),
    (OptimConfig, "eps", 1e-60, f"optim.eps = 1e-60; {NUMBER} that float32 can hold"),
    (OptimConfig, "b1", 1.0, f"optim.b1 = 1.0; {NUMBER} from 0 to below 1"),
    (OptimConfig, "b2", -0.5, f"optim.b2 = -0.5; {NUMBER} from 0 to below 1"),
    (OptimConfig, "b2", 1 - 1e-9, f"optim.b2 = 0.999999999; {NUMBER} from 0 to below 1"),
    (OptimConfig, "clip", 0.0, f"optim.clip = 0.0; {NUMBER} above 0 (1e9 clips nothing)"),
    (OptimConfig, "weight_decay", -0.1, f"optim.weight_decay = -0.1; {NUMBER} from 0 to 1,000,000"),
    (OptimConfig, "warmup", 1.5, f"optim.warmup = 1.5; {NUMBER} from 0 to 1"),
    (OptimConfig, "final", -0.1, f"optim.final = -0.1; {NUMBER} from 0 to 1"),
    (OptimConfig, "decay", 2.0, f"optim.decay = 2.0; {NUMBER} from 0 to 1"),
    (TaskConfig, "prompt_len", 0, f"task.prompt_len = 0; {WHOLE} of at least 1"),
    (TaskConfig, "response_len", -8, f"task.response_len = -8; {WHOLE} of at least 1"),
    (Pretrain, "batch", 0, f"x.batch = 0; {WHOLE} of at least 1"),
    (Pretrain, "tokens", 10**16, f"x.tokens = 10000000000000000; {WHOLE} of at most 1,000,000,000"),
    (Pretrain, "unique_tokens", 0, f"x.unique_tokens = 0; {WHOLE} of at least 1"),
    (Pretrain, "seed", 2**32, f"x.seed = 4294967296; {WHOLE} of at most 4,294,967,295"),
    (SFT, "epochs", 0, f"x.epochs = 0; {WHOLE} from 1 to 100,000"),
    (SFT, "examples", 0, f"x.examples = 0; {WHOLE} of at least 1"),
    (Compare, "prompts", 0, f"x.prompts = 0; {WHOLE} of at least 1"),
    (Compare, "k", 1, f"x.k = 1; {WHOLE} from 2 to 9"),
    (Compare, "annotators", 0, f"x.annotators = 0; {WHOLE} from 1 to 10,000"),
    (Compare, "noise", -0.1, f"x.noise = -0.1; {NUMBER} from 0 to 1,000,000"),
    (Compare, "temperature", -1.0, f"x.temperature = -1.0; {NUMBER} from 0.0001 to 10,000, or 0"),
    (Compare, "temperature", 1e-9, f"x.temperature = 1e-09; {NUMBER} from 0.0001 to 10,000, or 0"),
    (Reward, "earlier", ("c", "c"), "x.comparisons and earlier has 'c' twice"),
    (Reward, "earlier", ("compare",), "x.comparisons and earlier has 'compare' twice"),
    (Reward, "prompts", 0, f"x.prompts = 0; {WHOLE} of at least 1"),
    (Ensemble, "members", ("a",), "x.members = ('a',); expected at least 2"),
    (Ensemble, "members", ("a", "a"), "x.members has 'a' twice"),
    (Ensemble, "variance_coef", -1.0, f"x.variance_coef = -1.0; {NUMBER} from 0 to 1,000,000"),
    (PPO, "iterations", 0, f"x.iterations = 0; {WHOLE} of at least 1"),
    (PPO, "minibatches", 0, f"x.minibatches = 0; {WHOLE} of at least 1"),
    (PPO, "clip", -1.0, f"x.clip = -1.0; {NUMBER} above 0"),
    (PPO, "value_clip", 0.0, f"x.value_clip = 0.0; {NUMBER} above 0"),
    (PPO, "gamma", 1.5, f"x.gamma = 1.5; {NUMBER} from 0 to 1"),
    (PPO, "lam", -0.5, f"x.lam = -0.5; {NUMBER} from 0 to 1"),
    (PPO, "ema", 1.0, f"x.ema = 1.0; {NUMBER} from 0 to below 1"),
    (PPO, "temperature", 0.0, f"x.temperature = 0.0; {NUMBER} from 0.0001 to 10,000"),
    (PPO, "samples", 0, f"x.samples = 0; {WHOLE} of at least 1"),
    (Prompting, "shots", (), "x.shots = (); expected different numbers of examples from 0"),
    (Prompting, "shots", (1, 1), "x.shots = (1, 1); expected different numbers"),
    (Prompting, "shots", (-1,), f"x.shots[0] = -1; {WHOLE} from 0 to 1,000"),
    (Prompting, "answer_len", 1, f"x.answer_len = 1; {WHOLE} of at least 2"),
    (Study, "members", 0, f"study.members = 0; {WHOLE} of at least 1"),
]


def refusal(make) -> str:
    with pytest.raises(ConfigError) as e:
        make()
    return str(e.value)


@pytest.mark.parametrize(("cls", "field", "value", "said"), BAD, ids=lambda x: str(x)[:30])
def test_a_number_out_of_range_is_refused_alike_by_constructor_override_and_json(
    cls, field, value, said
):
    given = {field: value}
    if cls is Study:
        assert said in refusal(lambda: Study("s", (Pretrain("a"),), **given))
        return
    message = refusal(lambda: made(cls, **given))
    assert said in message
    plain = json.loads(json.dumps(given))
    assert refusal(lambda: from_json(cls, {**needed(cls), **plain})) == message
    again = refusal(lambda: override(made(cls), [f"{field}={json.dumps(value)}"]))
    assert again.removeprefix("x: ").removeprefix(f"{cls.LABEL}: ") == message


@pytest.mark.parametrize("cls", [c for c in CLASSES if c is not Study], ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, 10**400, np.float32("nan")], ids=repr
)
def test_no_number_is_infinite_or_nan(cls, value):
    hints = typing.get_type_hints(cls, include_extras=True)
    for f in dataclasses.fields(cls):
        if "Range" in str(hints[f.name]):
            values = (value,) if "tuple" in str(hints[f.name]) else value
            with pytest.raises(ConfigError, match="expected"):
                made(cls, **{f.name: values})


def test_what_is_at_the_end_of_a_range_is_accepted():
    OptimConfig(b1=0, warmup=1, final=0, weight_decay=0, lr=1e38)
    assert Pretrain("x", seed=2**32 - 1).seed == 2**32 - 1
    assert Compare("x", temperature=0, k=9).temperature == 0
    assert PPO("x", temperature=1e-4).temperature == 1e-4  # of which float32 holds a little less
    assert PPO("x", gamma=0, lam=1, value_clip=None, ema=0).value_clip is None
    assert CorpusConfig(validation=0, test=0).test == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Reward("r", loss="best_of_n", margin=1),
            "r.margin = 1.0 would do nothing: it needs loss = 'kwise'",
        ),
        (
            lambda: Ensemble("e", ("a", "b"), variance_coef=2),
            "it needs combine = 'mean_minus_variance'",
        ),
        (lambda: PPO("p", kl_coef=0, kl_target=6), "p.kl_target = 6.0 would do nothing"),
        (
            lambda: PPO("p", kl_horizon=5),
            "p.kl_horizon = 5.0 would do nothing: it needs a kl_target",
        ),
        (lambda: PPO("p", algorithm="rloo", samples=2, lam=0.5), "p.lam = 0.5 would do nothing"),
        (
            lambda: PPO("p", algorithm="reinforce", value_coef=1),
            "p.value_coef = 1.0 would do nothing",
        ),
        (lambda: PPO("p", whiten_advantages="no", bessel=True), "p.bessel = True would do nothing"),
        (
            lambda: OptimConfig(schedule="constant", final=0.5),
            "optim.final = 0.5 would do nothing: it needs a schedule that falls",
        ),
        (
            lambda: ModelConfig(positions="learned", rope_base=500),
            "model.rope_base = 500.0 would do nothing",
        ),
        (
            lambda: Analysis("lr_check", ("*",), loss="ends"),
            "analysis.loss = 'ends' would do nothing",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(make, said):
    assert said in refusal(make)


def test_options_that_go_together_are_accepted():
    Reward("r", margin=1)
    Ensemble("e", ("a", "b"), combine="mean_minus_variance", variance_coef=2)
    PPO("p", kl_target=6, kl_horizon=5)
    OptimConfig(schedule="constant", final=0.0)
    PPO("p", whiten_advantages="no", whiten_rewards=True, bessel=True)
    ModelConfig(rope_base=500)
    Analysis("isoflop", ("*",), loss="ends")


@pytest.mark.parametrize("iterations", [0, -1, "many", 1e400])
def test_a_preset_of_ppo_refuses_iterations_that_cannot_be(iterations):
    assert "iterations" in refusal(lambda: ppo_preset("instructgpt2022", iterations=iterations))


# --- names
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a b",
        "-a",
        "a\n",
        "a\0",
        "x" * 101,
        "é" * 101,
        "漢" * 70,
        "e\u0301",
        "*",
        "a.b",
    ],
)
def test_names_that_no_folder_can_have_are_refused(name):
    assert Name().problem(name)
    assert "expected a name" in refusal(lambda: Study(name, (Pretrain("a"),)))
    assert "study.cells[0].name" in refusal(lambda: Study("s", (Pretrain(name),)))


def test_names_that_folders_can_have_are_accepted():
    for name in ("a", "x" * 100, "lr-3e-4_b", "größe", "опыт", "_a"):
        assert Study(name, (Pretrain(name),)).name == name


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "has no cells"),
        (("a", "a"), "two cells are named a;"),
        (("a", "b", "A"), "two cells are named A and a;"),
        (("corpus",), "as overrides call the corpus"),
    ],
)
def test_cells_that_cannot_be_told_apart_are_refused(names, said):
    assert said in refusal(lambda: Study("s", tuple(Pretrain(n) for n in names)))


@pytest.mark.parametrize("title", ["a\nb", "x" * 201, "\ud800"])
def test_a_title_is_one_line_of_text(title):
    assert "study.title" in refusal(lambda: Study("s", (Pretrain("a"),), title=title))
    assert "analysis.label" in refusal(lambda: Analysis("isoflop", ("a",), label=title))


# --- overrides of one command are applied together
# -------------------------------------------------


def test_overrides_that_are_right_only_together_are_right_in_every_order():
    pairs = ["heads=6", "width=96"]  # of 4 heads and a width of 64
    for order in (pairs, pairs[::-1]):
        model = override(ModelConfig(), order)
        assert (model.heads, model.width) == (6, 96)
    assert "does not divide" in refusal(lambda: override(ModelConfig(), pairs[:1]))


@pytest.mark.parametrize(
    "texts",
    [
        ["batch=8", "batch=16"],
        ["optim.lr=1", "optim.lr=2"],
        ['optim={"lr": 1}', "optim.clip=2"],
        ["repeat=true", "repeat=1"],
    ],
)
def test_two_values_for_one_field_are_refused_in_every_order(texts):
    for order in (texts, texts[::-1]):
        assert "are both given; give one of them" in refusal(
            lambda o=order: override(Pretrain("x"), o)
        )


def test_the_same_override_may_be_given_twice():
    assert override(Pretrain("x"), ["batch=8", "batch=8"]).batch == 8


def test_overrides_of_a_study_are_checked_together(fake):
    both = ["corpus.vocab=65", "*.model.vocab=65"]
    for cells in (["a.model.vocab=65", "b.model.vocab=65"],):
        loaded = load_study(fake.path, False, ["corpus.vocab=65", *cells])
        assert loaded.corpus.vocab == 65 and loaded["a"].model.vocab == 65
    assert "must be equal" in refusal(lambda: load_study(fake.path, False, both[:1]))
    twice = ["*-child.epochs=2", "a-child.epochs=3"]
    assert "a-child: epochs = 2 and epochs = 3" in refusal(
        lambda: load_study(fake.path, False, twice)
    )


@pytest.mark.parametrize("raw", ["9" * 5000, "[" * 100_000, "1e400", "NaN", "-Infinity", "nan", ""])
def test_values_that_json_cannot_read_are_refused_in_words(raw):
    assert "x.batch" in refusal(lambda: override(Pretrain("x"), [f"batch={raw}"]))
    assert "x.optim.lr" in refusal(lambda: override(Pretrain("x"), [f"optim.lr={raw}"]))


# --- commands
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "text", "said"),
    [
        (Count, "0", "'0': expected a whole number of at least 1"),
        (Count, "-3", "expected a whole number of at least 1"),
        (Count, "1.5", "'1.5': expected int, got 1.5"),
        (Count, "²", "expected int"),
        (Count, "", "expected int"),
        (Count, "9" * 5000, "expected int, got inf"),
        (Seed, "-1", "expected a whole number of at least 0"),
        (Seed, "4294967296", "of at most 4,294,967,295"),
        (Temperature, "-1", "expected a number from 0.0001 to 10,000, or 0"),
        (Temperature, "nan", "expected a finite number"),
        (Temperature, "warm", "expected float"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_an_option_of_a_command_has_the_range_of_a_field(hint, text, said):
    with pytest.raises(argparse.ArgumentTypeError) as e:
        argument(hint)(text)
    assert said in str(e.value) and len(str(e.value)) < 200


def test_an_option_in_its_range_is_a_number():
    assert argument(Count)("3") == 3 and argument(Count)("1e3") == 1000
    assert argument(Temperature)("0") == 0.0 and argument(Seed)("4294967295") == 2**32 - 1


@pytest.mark.parametrize(
    "words",
    [
        ["run", "STUDY", "--workers", "0"],
        ["run", "STUDY", "--threads", "-1"],
        ["run", "STUDY", "--accumulate", "0"],
        ["plan", "STUDY", "--mfu", "nan"],
        ["plan", "STUDY", "--mfu", "2"],
        ["plan", "STUDY", "a.batch=0"],
        ["status", "STUDY", "a.seed=-1"],
        ["generate", "a", "--prompt", "x", "--temperature", "-1"],
        ["generate", "a", "--prompt", "x", "--seed", "5e9"],
        ["aot", "llama-8b", "--topology", "v5e:4x4", "--seq-len", "0"],
    ],
    ids=" ".join,
)
def test_a_command_refuses_a_number_in_words_and_ends_with_2(fake, capsys, words):
    words = [str(fake.path) if w == "STUDY" else w for w in words]
    try:
        code = cli.main(words)
    except SystemExit as e:  # argparse
        code = e.code
    err = capsys.readouterr().err
    assert code == 2 and "expected a" in err and "Traceback" not in err
