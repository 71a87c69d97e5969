"""What a user's callables give is checked in one place, and said with their file and line."""

from __future__ import annotations

import functools
import itertools
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models  # noqa: F401 (before jax starts: the devices of all tests)

from rlhf_jax import cli
from rlhf_jax.data.sources import documents
from rlhf_jax.evals.prompting import Item
from rlhf_jax.model.scoring import Sequences
from rlhf_jax.rl.scores import callable_reward, cause
from rlhf_jax.study.callables import call_for_list, call_for_scores, call_for_texts
from rlhf_jax.study.config import ConfigError

HERE, TEXTS = __name__, ["one", "two", "three"]
RESULT = None  # what `gives` gives


def gives(*arguments):
    return RESULT


def raises(*arguments):
    return [1 / 0 for _ in arguments]


def exits(*arguments):
    sys.exit(3)


def raises_half_a_letter(*arguments):
    raise ValueError("\ud800")


def empties(prompts, responses):
    n = len(responses)
    prompts.clear(), responses.clear()
    return [0.0] * n


def prints(prompts, responses):
    print("noise")
    return [len(r) for r in responses]


def scores(monkeypatch, result, responses=TEXTS):
    monkeypatch.setattr(sys.modules[HERE], "RESULT", result)
    return call_for_scores(f"{HERE}:gives", "ppo.reward", ["p"] * len(responses), responses)


@pytest.mark.parametrize(
    "result",
    [
        [1, 2.5, -3],
        (1, 2.5, -3),
        np.array([1, 2.5, -3]),
        np.array([1, 2.5, -3], np.float16),
        jnp.array([1, 2.5, -3]),
        jnp.array([1, 2.5, -3], jnp.bfloat16),
        [np.float32(1), jnp.float32(2.5), np.int64(-3)],
    ],
    ids=lambda x: type(x).__name__,
)
def test_numbers_in_a_list_or_an_array_are_scores(monkeypatch, result):
    found = scores(monkeypatch, result)
    assert found.dtype == np.float64 and found.tolist() == [1, 2.5, -3]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "gave None; expected 3 numbers"),
        (1.0, "gave 1.0; expected 3 numbers"),
        (True, "gave True; expected 3 numbers"),
        (np.float32(1), "gave np.float32(1.0); expected 3 numbers"),
        ("123", "gave '123'; expected 3 numbers"),
        ([1, 2], "gave 2 numbers; expected 3 numbers"),
        ([1, 2, 3, 4], "gave 4 numbers; expected 3 numbers"),
        ([], "gave 0 numbers; expected 3 numbers"),
        (["1", "2", "3"], "(1 is '1'); expected 3 numbers"),
        ([1, None, 3], "(2 is None); expected 3 numbers"),
        ([1, [2], 3], "(2 is [2]); expected 3 numbers"),
        ([1, Fraction(1, 2), 3], "(2 is Fraction(1, 2)); expected 3 numbers"),
        ([1j, 2, 3], "(1 is 1j); expected 3 numbers"),
        (np.ones((3, 1)), "gave an array of shape (3, 1); expected 3 numbers"),
        (np.array(["a", "b", "c"]), "expected 3 numbers"),
        ((x for x in (1, 2, 3)), "gave <generator"),
        ({"a": 1}, "gave {'a': 1}; expected 3 numbers"),
        ([1, float("nan"), 3], "gave nan for response 2 of 3, 'two'; expected finite numbers"),
        ([1, 2, -float("inf")], "gave -inf for response 3 of 3"),
        (
            [1e39, 2, 3],
            "gave 1e+39 for response 1 of 3, 'one'; expected finite numbers from -1e+15 to 1e+15",
        ),
    ],
    ids=lambda x: str(x)[:25],
)
def test_other_scores_are_refused_with_field_function_file_and_line(monkeypatch, result, said):
    with pytest.raises(ConfigError) as e:
        scores(monkeypatch, result)
    line = gives.__code__.co_firstlineno
    assert str(e.value).startswith(f"ppo.reward = '{HERE}:gives' ({__file__}, line {line}) gave")
    assert said in str(e.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "raised ZeroDivisionError: division by zero"),
        ("exits", "raised it calls sys.exit(3)"),
    ],
)
def test_a_callable_that_fails_is_named_with_the_line_that_failed(name, said):
    function = globals()[name]
    with pytest.raises(ConfigError) as e:
        call_for_scores(f"{HERE}:{name}", "bon.task.gold", ["p"], ["r"])
    line = function.__code__.co_firstlineno
    assert f"bon.task.gold = '{HERE}:{name}'" in str(e.value) and said in str(e.value)
    assert str(e.value).endswith(f"(in {__file__}, line {line + 1})")


def test_what_a_callable_raises_can_be_written_as_utf8():
    """A lone surrogate in it ended the whole process, inside jax."""
    with pytest.raises(ConfigError, match=r"raised ValueError: .ud800") as e:
        call_for_scores(f"{HERE}:raises_half_a_letter", "p.reward", ["p"], ["r"])
    assert str(e.value).encode()


def test_a_callable_may_change_the_lists_that_it_is_given():
    given = list(TEXTS)
    assert call_for_scores(f"{HERE}:empties", "p.reward", given, given).tolist() == [0, 0, 0]
    assert given == TEXTS


def test_what_a_callable_prints_is_not_a_commands_output(capsys):
    assert call_for_scores(f"{HERE}:prints", "p.reward", ["p"], ["abc"]).tolist() == [3]
    out, err = capsys.readouterr()
    assert (out, err) == ("", "noise\n")


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("text", "gave 'text'; expected a list of texts"),
        (None, "gave None; expected a list of texts"),
        (5, "gave 5; expected a list of texts"),
        ({"a": 1}, "expected a list of texts"),
        (["a"], "gave 1 for the train split; expected 2 texts"),
        (["a", "b", "c"], "gave more than 2 for the train split; expected 2 texts"),
        (itertools.repeat("a"), "gave more than 2 for the train split; expected 2 texts"),
        (["a", 3], "gave 3 for the train split; expected texts (number 2 is of type int)"),
        (["a", None], "gave None for the train split"),
        (["a", b"b"], "gave b'b' for the train split"),
        (["a", "b\ud800"], "text 2, 'b\\ud800', holds what UTF-8 cannot write"),
        ((1 / 0 for _ in "ab"), "raised ZeroDivisionError"),
    ],
    ids=lambda x: ascii(x)[:25],
)
def test_texts_that_are_none_are_refused(monkeypatch, result, said):
    monkeypatch.setattr(sys.modules[HERE], "RESULT", result)
    with pytest.raises(ConfigError) as e:
        call_for_texts(f"{HERE}:gives", "cmp.task.prompts", "train", 2, 0, count=2)
    assert f"cmp.task.prompts = '{HERE}:gives'" in str(e.value) and said in str(e.value)


def test_texts_come_as_a_list_or_one_after_the_other(monkeypatch):
    for result in (["a", "b"], ("a", "b"), iter(["a", "b"]), np.array(["a", "b"])):
        monkeypatch.setattr(sys.modules[HERE], "RESULT", result)
        assert call_for_texts(f"{HERE}:gives", "c.task.prompts", "train", 2, 0) == ["a", "b"]


def test_objects_are_of_their_kind(monkeypatch):
    monkeypatch.setattr(sys.modules[HERE], "RESULT", ["no item"])
    with pytest.raises(ConfigError, match="gave 'no item' for the test split; expected items"):
        call_for_list(f"{HERE}:gives", "p.tasks", ("test", 1, 0), Item, "items")


def test_a_source_gives_texts(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules[HERE], "RESULT", ["a", 2])
    with pytest.raises(ConfigError, match=r"corpus.sources = .*gave 2; expected texts"):
        list(documents(f"{HERE}:gives", tmp_path))


def test_what_a_reward_raises_inside_a_compiled_program_is_found_again():
    reward = callable_reward(
        functools.partial(call_for_scores, f"{HERE}:raises", "ppo.reward"), lambda ids: "text"
    )
    tokens = jnp.ones((2, 4), jnp.int32)
    with pytest.raises(Exception, match="ZeroDivisionError") as e:
        jax.block_until_ready(
            jax.jit(reward.score)((), Sequences(tokens, tokens, tokens), jnp.ones((2, 2)))
        )
    found = cause(e.value)
    assert isinstance(found, ConfigError) and str(found).startswith("ppo.reward = ")
    assert len(str(found)) < 500 and "Traceback" not in str(found)
    other = RuntimeError("of something else")
    assert cause(other) is other


@pytest.mark.parametrize("result", [[1.0], [1.0, float("nan")], "ab"], ids=repr)
def test_a_reward_that_is_given_as_a_function_is_checked_too(result):
    reward = callable_reward(lambda prompts, responses: result, lambda ids: "text")
    tokens = jnp.ones((2, 4), jnp.int32)
    with pytest.raises(Exception, match="the reward gave"):
        jax.block_until_ready(reward.score((), Sequences(tokens, tokens, tokens), jnp.ones((2, 2))))


# --- what can be seen without calling it is refused by plan
# --------------------------------------------

MODULE = """
import functools

CONSTANT = 3
def none(): return []
def one(x): return []
def two(x, y): return [0.0] * len(y)
def three(x, y, z): return ["text"] * y
def named(*, prompts, responses): return []
def anything(*arguments): return []
def defaults(x, y, z=0): return [0.0] * len(y)
async def later(x, y): return []
class Class:
    def __init__(self, x, y): pass
    def __call__(self, x, y): return [0.0] * len(y)
    def method(self, x, y): return []
instance = Class(1, 2)
partial = functools.partial(three, 1)
"""
STUDY = """
from rlhf_jax.kinds import PPO, SFT, Evaluate, Pretrain, Prompting, TaskConfig
from rlhf_jax.study import *
from rlhf_jax.study import Study


def study(tiny):
    base = Pretrain("base", model=ModelConfig(layers=1, width=32, heads=2, vocab=320), tokens=65536)
    return Study("callables", (base, {cell}), CorpusConfig(vocab=320, sources={sources}))
"""


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)

    def call(cell="SFT('sft', base='base')", sources="('shakespeare',)"):
        text = STUDY.replace("{cell}", cell).replace("{sources}", sources)
        (tmp_path / "s.py").write_text(text.replace("MINE", name))
        code = cli.main(["plan", str(tmp_path / "s.py"), "--runs", str(tmp_path / "runs")])
        return code, capsys.readouterr().err

    return call


FIELDS = {
    "PPO('x', policy='base', reward='MINE:{}')": ("x.reward", 2),
    "PPO('x', policy='base', reward='MINE:two', task=TaskConfig(gold='MINE:{}'))": (
        "x.task.gold",
        2,
    ),
    "PPO('x', policy='base', reward='MINE:two', task=TaskConfig(prompts='MINE:{}'))": (
        "x.task.prompts",
        3,
    ),
    "SFT('x', base='base', records='MINE:{}')": ("x.records", 3),
    "Prompting('x', policy='base', tasks='MINE:{}')": ("x.tasks", 3),
    "Evaluate('x', before='base', after='base', reward='MINE:two', modes='MINE:{}')": (
        "x.modes",
        2,
    ),
}


@pytest.mark.parametrize("cell", FIELDS)
def test_a_signature_that_cannot_take_the_arguments_is_refused_by_plan(plan, cell):
    where, count = FIELDS[cell]
    for name, takes in {"none": 0, "one": 1, "two": 2, "three": 3}.items():
        code, err = plan(cell.format(name))
        if takes == count:
            assert code == 0, err
        else:
            assert (
                code == 2
                and f"rlhf-jax: {where} = 'mine_" in err
                and "expected a function of" in err
            )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CONSTANT", "is int; expected a callable"),
        ("missing", "cannot be imported (AttributeError"),
        ("named", "takes (*, prompts, responses)"),
        ("later", "is async"),
        ("Class", "is class Class; expected a function of (prompts, responses)"),
        ("Class.method", "takes (self, x, y)"),
        ("partial", "takes (y, z)"),
    ],
)
def test_what_is_no_function_of_prompts_and_responses_is_refused_by_plan(plan, name, said):
    code, err = plan(f"PPO('x', policy='base', reward='MINE:{name}')")
    if name == "partial":  # of two arguments that are left
        assert code == 0
        return
    assert code == 2 and said in err and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize("name", ["anything", "defaults", "instance", "instance.method"])
def test_everything_that_takes_the_arguments_is_accepted(plan, name):
    code, err = plan(f"PPO('x', policy='base', reward='MINE:{name}')")
    assert code == 0, err


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("builtins:len", "takes (obj, /)"),
        ("builtins:max", "builtins:max"),
        ("math:hypot", "is built-in code"),
        ("builtins:int", "is class int"),
        ("no_such_module_here:score", "cannot be imported (ModuleNotFoundError"),
    ],
)
def test_built_in_code_is_no_reward(plan, path, said):
    code, err = plan(f"PPO('x', policy='base', reward='{path}')")
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("PPO('x', policy='base', reward='')", "x.reward = ''; expected"),
        ("SFT('x', base='base', records='')", "x.records = ''; expected"),
        (
            "PPO('x', policy='base', reward='MINE:two', task=TaskConfig(gold=''))",
            "task.gold = ''; expected",
        ),
        ("PPO('x', policy='base', reward='MINE:')", "x.reward: 'mine_"),
        ("PPO('x', policy='base', reward='a/b')", "x.reward: 'a/b' cannot be imported"),
        ("SFT('x', base='base', records='none.jsonl')", "x.records: 'none.jsonl'"),
    ],
)
def test_what_names_nothing_is_refused_with_its_field(plan, cell, said):
    code, err = plan(cell)
    assert code == 2 and said in err and err.count("\n") == 1


def test_a_source_that_takes_arguments_is_refused_by_plan(plan):
    code, err = plan(sources="('MINE:one',)")
    assert code == 2 and "corpus.sources = 'mine_" in err and "expected a function of ()" in err
