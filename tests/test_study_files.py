"""A study file that is wrong ends in one message on one screen, with its line; `--debug` shows the
rest."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax import cli

HEAD = "from rlhf_jax.kinds import *\nfrom rlhf_jax.study import *\nfrom rlhf_jax.study import Study\n\n"
GOOD = "    return Study('s', (Pretrain('a', tokens=65536),))\n"


@pytest.fixture
def plan(tmp_path, capsys):
    def call(text, *words, name="mine.py", command="plan"):
        path = tmp_path / name
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        code = cli.main([command, str(path), "--runs", str(tmp_path / "runs"), *words])
        return code, *capsys.readouterr()

    return call


WRONG = {
    "raises": (
        HEAD + "def study(tiny):\n    raise KeyError('x')\n",
        "mine.py, line 6: KeyError: 'x'",
    ),
    "raises when imported": (HEAD + "x = 1 / 0\n", "line 5: ZeroDivisionError: division by zero"),
    "exits": (HEAD + "import sys\nsys.exit(3)\n", "line 6: it calls sys.exit(3)"),
    "exits well": (
        HEAD + "def study(tiny):\n    raise SystemExit(0)\n",
        "line 6: it calls sys.exit(0)",
    ),
    "raises what is no Exception": (
        HEAD + "def study(tiny):\n    raise GeneratorExit('no')\n",
        "line 6: GeneratorExit: no",
    ),
    "an error without text": (
        HEAD
        + "class E(Exception):\n    def __str__(self): 1 / 0\n\ndef study(tiny):\n    raise E\n",
        "line 9: E",
    ),
    "too deep": (HEAD + "def study(tiny):\n    return study(tiny)\n", "line 6: RecursionError"),
    "has none": (HEAD, "it has no function study(tiny: bool) -> Study"),
    "is one": (HEAD + "study = Study('s', (Pretrain('a', tokens=65536),))\n", "study is Study("),
    "is a class": (
        HEAD + "class study:\n    pass\n",
        "study is class study; expected a function of (tiny)",
    ),
    "without tiny": (HEAD + "def study():\n" + GOOD, "line 5) takes () "),
    "another name": (HEAD + "def study(small):\n" + GOOD, "line 5) takes (small) "),
    "more": (
        HEAD + "def study(tiny, more):\n" + GOOD,
        "takes (tiny, more) (missing a required argument: 'more')",
    ),
    "returns nothing": (
        HEAD + "def study(tiny):\n    Study('s', (Pretrain('a', tokens=65536),))\n",
        "line 5: study() returns NoneType (is `return` missing?)",
    ),
    "returns a list": (
        HEAD + "def study(tiny):\n    return [1]\n",
        "line 5: study() returns list; expected a Study",
    ),
    "yields": (HEAD + "def study(tiny):\n    yield 1\n", "study() returns generator"),
    "async": (HEAD + "async def study(tiny):\n" + GOOD, "is async"),
    "imports what is not there": (
        HEAD + "import no_such_package\n",
        "line 5: ModuleNotFoundError: No module named 'no_such_package'",
    ),
    "syntax": ("def study(tiny:\n  x\n", "line 1: SyntaxError"),
    "indentation": ("def study(tiny):\n\tx = 1\n        return x\n", "line 3: TabError"),
    "binary": (bytes(range(256)), "expected Python, saved as UTF-8 text"),
    "UTF-16": (
        (HEAD + "def study(tiny):\n" + GOOD).encode("utf-16"),
        "expected Python, saved as UTF-8 text",
    ),
    "Latin-1": (
        b"# caf\xe9\n" + (HEAD + "def study(tiny):\n" + GOOD).encode("latin-1") + b'x = "\xe9"\n',
        "SyntaxError",
    ),
    "a huge number": (
        HEAD + "def study(tiny):\n    return Study('s', (Pretrain('a', tokens=10**5000),))\n",
        "line 6: a.tokens = ",
    ),
    "a bad repr": (
        HEAD
        + "class X:\n    def __repr__(self): 1 / 0\n\ndef study(tiny):\n    return Study('s', (Pretrain('a', tokens=X()),))\n",
        "line 9: a.tokens: expected int, got <X instance",
    ),
    "a string for a list": (
        HEAD
        + "def study(tiny):\n    return Study('s', (Pretrain('a'),), CorpusConfig(sources=('a.txt')))\n",
        "line 6: corpus.sources: expected a list, got 'a.txt' (a comma after it",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_study_file_is_one_message_with_its_line(plan, case):
    text, said = WRONG[case]
    code, out, err = plan(text)
    assert code == 2 and out == "" and said in err, err
    assert err.startswith("rlhf-jax: ") and "Traceback" not in err and len(err) < 1500


@pytest.mark.parametrize("command", ["plan", "status", "run", "report", "fit"])
def test_every_command_says_the_same(plan, command):
    code, _, err = plan(WRONG["raises"][0], command=command)
    assert code == 2 and "mine.py, line 6: KeyError: 'x'" in err and "Traceback" not in err


@pytest.mark.parametrize("command", ["plan", "status", "run", "report", "fit"])
def test_debug_shows_the_traceback_of_the_file(plan, command):
    code, _, err = plan(WRONG["raises"][0], "--debug", command=command)
    assert code == 2 and "Traceback" in err and "raise KeyError('x')" in err
    assert err.splitlines()[-1].endswith("mine.py, line 6: KeyError: 'x'")


def test_a_long_message_is_cut_to_one_screen(plan):
    code, _, err = plan(HEAD + "def study(tiny):\n    raise ValueError('many lines\\n' * 5000)\n")
    assert code == 2 and err.count("\n") < 20 and "..." in err
    _, _, err = plan(HEAD + "def study(tiny):\n    raise ValueError('long ' * 5000)\n")
    assert len(err) < 2500


def test_an_error_in_a_neighbour_names_both_lines(plan, tmp_path):
    (tmp_path / "neighbour_that_fails.py").write_text("\nx = 1 / 0\n")
    code, _, err = plan(HEAD + "import neighbour_that_fails\n")
    assert code == 2 and "mine.py, line 5: ZeroDivisionError" in err
    assert f"(in {tmp_path / 'neighbour_that_fails.py'}, line 2)" in err


def test_what_a_study_prints_goes_to_standard_error(plan):
    code, out, err = plan(
        HEAD + "print('one')\n\ndef study(tiny):\n    print('two')\n" + GOOD, "--json"
    )
    assert code == 0 and json.loads(out)["cells"] and err == "one\ntwo\n"


@pytest.mark.parametrize(
    "name", ["none.py", "folder.py", "x" * 300 + ".py", "a\0b.py", "mine.txt", "mine"]
)
def test_what_is_no_python_file_is_refused(plan, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    code, _, err = plan("a = 1\n" if name.startswith("mine") else None, name=name)
    assert code == 2 and err.count("\n") == 1
    assert ("is not a Python file" if name.startswith("mine") else "no study file") in err
    assert "Known" not in err and ("which is a folder" in err) == (name == "folder.py")


def test_interrupting_a_study_that_loads_is_said(plan):
    code, _, err = plan(HEAD + "def study(tiny):\n    raise KeyboardInterrupt\n")
    assert code == 130 and "Traceback" not in err


def test_a_folder_that_cannot_be_written_is_one_message(plan, monkeypatch):
    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied", "runs/x")

    monkeypatch.setattr(cli, "_make_plan", denied)
    code, _, err = plan(HEAD + "def study(tiny):\n" + GOOD)
    assert code == 2 and err.startswith("rlhf-jax: runs/x: Permission denied: ")
    _, _, err = plan(None, "--debug")
    assert "Traceback" in err and "in denied" in err


# --- a machine without a TPU on which libtpu is installed
# ----------------------------------------------


def environment(tmp_path: Path, libtpu: bool, **given: str) -> dict[str, str]:
    """What `without_tpu` adds, in a fresh process with or without a package `libtpu`."""
    if libtpu:
        (tmp_path / "libtpu.py").write_text("raise SystemExit('imported')\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "TPU_"))} | given
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    code = "import json; from rlhf_jax.placement import cpu; cpu.tpu_here = lambda: False; print(json.dumps(cpu.without_tpu()))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_jax_does_not_look_for_a_tpu_that_is_not_there(tmp_path):
    found = environment(tmp_path, libtpu=True)
    assert found["JAX_PLATFORMS"].split(",")[-1] == "cpu" and "tpu" not in found["JAX_PLATFORMS"]
    assert environment(tmp_path, libtpu=True, JAX_PLATFORMS="tpu") == {}


def test_without_libtpu_jax_looks_as_it_likes(tmp_path):
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed here")
    assert environment(tmp_path, libtpu=False) == {}


def test_a_tpu_that_is_there_is_used(monkeypatch):
    from rlhf_jax.placement import cpu

    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda name: object())
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_FORCE_TPU_INIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpu, "tpu_here", lambda: True)
    assert cpu.without_tpu() == {}
    monkeypatch.setattr(cpu, "tpu_here", lambda: False)
    assert cpu.without_tpu()["TPU_SKIP_MDS_QUERY"] == "1"
