"""A callable enters run ids by everything that it computes with, the same way in every process."""

from __future__ import annotations

import importlib
import itertools
import linecache
import os
import subprocess
import sys

import pytest

from rlhf_jax.study.callables import is_callable, load_callable, source_hash
from rlhf_jax.study.config import ConfigError

numbers = itertools.count()

# What is used, before and after an edit. The source of the function `score` itself never changes.
EDITS = {
    "closure": ("score = weighted({})", 2.0, 3.0),
    "default of a variable": ("W = {}\ndef score(p, r, w=W): return [w for _ in r]", 2.0, 3.0),
    "keyword-only default": ("W = {}\ndef score(p, r, *, w=W): return [w for _ in r]", 2.0, 3.0),
    "default that was replaced": (
        "def score(p, r, w=2.0): return [w for _ in r]\nscore.__defaults__ = ({},)",
        2.0,
        3.0,
    ),
    "partial": ("score = functools.partial(plain, weight={})", 2.0, 3.0),
    "partial of a closure": ("score = functools.partial(weighted({}), [])", 2.0, 3.0),
    "callable instance": ("score = Scorer({})", 2.0, 3.0),
    "bound method": ("score = Scorer({}).method", 2.0, 3.0),
    "lambda": ("W = {}\nscore = lambda p, r: [W for _ in r]", 2.0, 3.0),
    "lambdas on one line": (
        "score, other = {}",
        "lambda p, r: 1, lambda p, r: 2",
        "lambda p, r: 3, lambda p, r: 2",
    ),
    "the other lambda": ("both = (lambda p, r: 1, lambda p, r: 2); score = both[{}]", 0, 1),
    "decorated": ("@scaled({})\ndef inner(p, r): return r\nscore = inner", 2.0, 3.0),
    "decorated by a variable": ("W = {}\n@scaled(W)\ndef score(p, r): return r", 2.0, 3.0),
    "decorator of a method": (
        "class C:\n    @scaled{}\n    def w(self): return 1\ndef score(p, r): return C().w()",
        "(1)",
        "(2)",
    ),
    "body of a method's decorator": (
        "def twice(f):\n    @functools.wraps(f)\n    def g(*a): return f(*a) * {}\n    return g\n"
        "class C:\n    @twice\n    def w(self): return 1\ndef score(p, r): return C().w()",
        2,
        3,
    ),
    "cached closure": ("score = functools.lru_cache(weighted({}))", 2.0, 3.0),
    "pattern": (
        "P = re.compile({!r})\ndef score(p, r): return [len(P.findall(x)) for x in r]",
        "a",
        "b",
    ),
    "flags of a pattern": ("P = re.compile('a', {})\ndef score(p, r): return P", "re.I", "re.M"),
    "method of a pattern": ("F = re.compile({!r}).findall\ndef score(p, r): return F", "a", "b"),
    "array": ("A = np.array([1.0, {}])\ndef score(p, r): return A", 2.0, 3.0),
    "dtype": ("A = np.zeros(2, {!r})\ndef score(p, r): return A", "int32", "float32"),
    "shape": ("A = np.zeros({})\ndef score(p, r): return A", (2, 3), (3, 2)),
    "array of objects": ("A = np.array(['x', {}], object)\ndef score(p, r): return A", 2.0, 3.0),
    "instance of a class": ("S = Scorer({})\ndef score(p, r): return S(p, r)", 2.0, 3.0),
    "instance with slots": ("S = Slotted({})\ndef score(p, r): return S", 2.0, 3.0),
    "instance of a dataclass": ("S = Options({})\ndef score(p, r): return S", 2.0, 3.0),
    "member of an enumeration": ("M = Mode({})\ndef score(p, r): return M", 1, 2),
    "values of an enumeration": (
        "class E(enum.Enum):\n    A = {}\ndef score(p, r): return E.A",
        1,
        2,
    ),
    "named tuple": ("N = Named({})\ndef score(p, r): return N", 2.0, 3.0),
    "dictionary of functions": (
        "T = {{'a': weighted({})}}\ndef score(p, r): return T['a'](p, r)",
        2.0,
        3.0,
    ),
    "order of a dictionary": (
        "T = {{{}}}\ndef score(p, r): return list(T)",
        "'a': plain, 'b': re",
        "'b': re, 'a': plain",
    ),
    "list of functions": ("T = [plain, {}]\ndef score(p, r): return T", "other", "weighted"),
    "alias of a function": ("f = {}\ndef score(p, r): return f(p, r)", "plain", "other"),
    "alias of an installed one": (
        "from math import {} as f\ndef score(p, r): return f(1)",
        "sin",
        "cos",
    ),
    "attribute of a class": ("W = {}\nclass C:\n    w = W\ndef score(p, r): return C.w", 2.0, 3.0),
    "base of a class": ("class C(Base{}): pass\ndef score(p, r): return C().w", 1, 2),
    "property": (
        "W = {}\nclass C:\n    @property\n    def w(self): return W\ndef score(p, r): return C().w",
        1,
        2,
    ),
    "class method": (
        "W = {}\nclass C:\n    @classmethod\n    def w(cls): return W\ndef score(p, r): return "
        "C.w()",
        1,
        2,
    ),
    "set in a tuple": ("T = ({{'a', {!r}}}, 1)\ndef score(p, r): return T", "b", "c"),
    "counter": ("T = collections.Counter(a={})\ndef score(p, r): return T", 1, 2),
    "object of an installed class": (
        "T = fractions.Fraction(1, {})\ndef score(p, r): return T",
        2,
        3,
    ),
    "random state": ("T = random.Random({})\ndef score(p, r): return T", 1, 2),
    "itself": ("def score(p, r): return LOOP\nLOOP = [score, {}]", 1, 2),
}

PRELUDE = """
import collections, dataclasses, enum, fractions, functools, random, re
from typing import NamedTuple
import numpy as np


def weighted(weight):
    def reward(prompts, responses):
        return [weight * len(r) for r in responses]
    return reward


def plain(prompts, responses, weight=1.0):
    return [weight for _ in responses]


def other(prompts, responses):
    return [0.0 for _ in responses]


def scaled(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args):
            return [factor * x for x in function(*args)]
        return wrapper
    return decorate


class Scorer:
    def __init__(self, weight):
        self.weight = weight
    def __call__(self, prompts, responses):
        return [self.weight for _ in responses]
    method = __call__


class Slotted:
    __slots__ = ("weight",)
    def __init__(self, weight):
        self.weight = weight


@dataclasses.dataclass(frozen=True)
class Options:
    weight: float


class Named(NamedTuple):
    weight: float


class Mode(enum.Enum):
    ONE = 1
    TWO = 2


class Base1:
    w = 1


class Base2:
    w = 2

"""


def written(folder, text: str) -> str:
    """The import path of `score` in a new module."""
    name = f"outside_case_{next(numbers)}"
    (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    return f"{name}:score"


def hash_of(folder, text: str, name: str = "outside_module") -> str:
    """Of `score` in a module of that name, whatever it was before."""
    (folder / f"{name}.py").write_text(text)
    sys.modules.pop(name, None)
    linecache.clearcache()
    importlib.invalidate_caches()
    for compiled in folder.glob(f"__pycache__/{name}.*"):
        compiled.unlink()
    return source_hash(f"{name}:score")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("case", EDITS)
def test_what_a_callable_computes_with_enters_its_hash(case, folder):
    template, before, after = EDITS[case]
    first, again, edited = (
        hash_of(folder, PRELUDE + template.format(x)) for x in (before, before, after)
    )
    assert first == again != edited


def test_hashes_are_equal_in_every_process(folder):
    """Sets, dictionaries made from them and addresses in reprs differ between processes."""
    unordered = {
        "set": "T = {'a', 'b', 'c', 'd'}\ndef score(p, r): return T",
        "dictionary of a set": "T = {w: 1 for w in {'a', 'b', 'c'}}\ndef score(p, r): return T",
        "sets in a list": "T = [{'a', 'b', 'c', 'd'}]\ndef score(p, r): return T",
        "frozenset of tuples": "T = frozenset({('a', 1), ('b', 2)})\ndef score(p, r): return T",
        "functions in a set": "T = {plain, other, weighted}\ndef score(p, r): return T",
        "functions in a set that use one": (
            "P = re.compile('a')\ndef f(): return P\ndef a(): return f()\ndef b(): return f()\n"
            "def c(): return a() + b()\nT = {a, b, c}\ndef score(p, r): return T"
        ),
        "closures in a set": "T = {weighted(x) for x in range(4)}\ndef score(p, r): return T",
        "sentinel": "T = object()\ndef score(p, r): return T",
        "lock": "import threading\nT = threading.Lock()\ndef score(p, r): return T",
        "logger": "import logging\nT = logging.getLogger('x')\ndef score(p, r): return T",
    }
    for i, text in enumerate([*unordered.values(), *(t.format(a) for t, a, _ in EDITS.values())]):
        (folder / f"case_{i:02}.py").write_text(PRELUDE + text)
    code = (
        "import sys, pathlib; from rlhf_jax.study.callables import source_hash; sys.path.insert(0, "
        "sys.argv[1])\nfor p in sorted(pathlib.Path(sys.argv[1]).glob('case_*.py')):\n"
        "    print(p.stem, source_hash(p.stem + ':score'))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == len(unordered) + len(EDITS)


def test_helpers_in_neighbouring_files_are_content(folder):
    def made(words: str, text: str) -> str:
        sys.modules.pop("outside_helper", None)
        (folder / "outside_helper.py").write_text(words)
        return hash_of(folder, text)

    good, bad = "GOOD = ['fine']\nUNUSED = 1\ndef f(x): return x in GOOD\n", None
    bad = good.replace("fine", "nice")
    ways = (
        "from outside_helper import f\ndef score(p, r): return [f(x) for x in r]",
        "import outside_helper\ndef score(p, r): return [outside_helper.f(x) for x in r]",
        "import outside_helper as h\ndef score(p, r): return [h.f(x) for x in r]",
        "def score(p, r):\n    from outside_helper import f\n    return [f(x) for x in r]",
        "from outside_helper import GOOD\ndef score(p, r): return [x in GOOD for x in r]",
    )
    for way in ways:
        first = made(good, way)
        assert made(bad, way) != first, way
        assert made(good.replace("UNUSED = 1", "UNUSED = 2"), way) == first, way


def test_what_a_callable_does_not_use_is_no_content(folder):
    text = PRELUDE + "P = re.compile('a')\ndef score(p, r): return P\n"
    first = hash_of(folder, text)
    assert (
        hash_of(folder, text + "# a comment\nQ = re.compile('b')\ndef unused(): return Q\n")
        == first
    )


def test_objects_of_installed_packages_are_content_that_can_be_read(folder):
    text = (
        "from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer\n"
        "A = SentimentIntensityAnalyzer()\n"
        "def score(p, r): return [A.polarity_scores(x)['compound'] for x in r]\n"
    )
    assert hash_of(folder, text) == hash_of(folder, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "T = open(__file__)\ndef score(p, r): return T",
            "content cannot be read.*make it in a func",
        ),
        (
            "T = (x for x in 'ab')\ndef score(p, r): return T",
            "'outside_module:score' uses an object of",
        ),
        ("exec('def score(p, r): return r')", "source of 'score' cannot be read"),
        ("score = 3", "is int; expected a callable"),
        ("score = ", "cannot be imported .SyntaxError"),
        ("1 / 0", "cannot be imported .ZeroDivisionError"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(text, said, folder):
    with pytest.raises(ConfigError, match=said):
        hash_of(folder, text)


def test_built_in_functions_and_attributes_of_classes_can_be_named(folder):
    text = PRELUDE + "from math import {} as score\n"
    assert hash_of(folder, text.format("sin")) != hash_of(folder, text.format("cos"))
    name = written(folder, PRELUDE).replace(":score", ":Scorer.method")
    assert load_callable(name).__name__ == "__call__" and source_hash(name)


def test_hashes_of_the_first_release_stay_where_nothing_is_new(folder):
    """Of functions, classes, constants and cached functions in one module: made by that release."""
    text = (
        "import functools\n\nWORDS = {'good', 'fine'}\nTABLE = {'b': 1, 'a': [2, (3,)]}\n\n\n"
        "class Scale:\n    factor = 2\n\n    def of(self, x, shift=0.5):\n        return x * "
        "self.factor\n\n\n@functools.cache\ndef one(text, more=(1, 'a')):\n    return "
        "TABLE.get(text, 0) + (text in WORDS)\n\n\ndef score(prompts, responses, *, scale=1.0):\n"
        "    return [Scale().of(one(r)) for r in responses]\n"
    )
    assert hash_of(folder, text) == "151456c89cf01e4f"


def test_names_of_files_and_callables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_callable("module:function") and is_callable("a.b:C.f")
    assert not is_callable("records.jsonl") and not is_callable("C:\\data\\records.jsonl")
    (tmp_path / "export:records").write_text("")
    assert not is_callable("export:records")
