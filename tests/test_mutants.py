"""The table of faults fits the product, and its harness tells what a test noticed from what
broke."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import mutants
import pytest
from mutants import Fault


def test_every_fault_of_the_table_can_still_be_put_in_and_names_tests_that_exist():
    assert mutants.problems(mutants.listed()) == []


def test_the_table_is_long_enough_and_spread_over_the_product():
    areas = Counter(fault.area for fault in mutants.listed())
    assert areas.total() >= mutants.LEAST
    assert {area: areas[area] for area in mutants.AREAS if areas[area] < 5} == {}


PRODUCT = "def double(x):\n    return 2 * x\n"
TEST = "from product import double\n\n\ndef test_double():\n    assert double(3) == 6\n"


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "product.py").write_text(PRODUCT)
    (tmp_path / "test_product.py").write_text(TEST)
    return tmp_path


def fault(old: str, new: str, test: str = "test_product.py::test_double") -> Fault:
    return Fault("area", "product.py", old, new, (test,))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (fault("3 * x", "x"), "occurs 0 times"),
        (fault("x", "y"), "occurs 2 times"),
        (fault("2 * x", "2 *"), "invalid syntax"),
        (fault("2 * x", "(2 * x)"), "changes nothing"),
        (fault("2 * x", "x", "test_other.py"), "does not exist"),
        (fault("2 * x", "x", "test_product.py::test_other"), "does not exist"),
    ],
)
def test_a_fault_that_does_not_fit_is_named(tree, made, message):
    (said,) = mutants.problems([made], tree)
    assert message in said


@pytest.mark.parametrize(
    ("new", "expected"),
    [("3 * x", "noticed"), ("x + x", "survived"), ("3 * y", "broken")],
)
def test_what_a_test_notices_is_told_from_what_passes_and_what_breaks(tree, new, expected):
    assert mutants.tried(fault("2 * x", new), tree)[0] == expected
    assert (tree / "product.py").read_text() == PRODUCT


def test_tests_that_cannot_be_collected_or_do_not_end_have_noticed_nothing(tree):
    assert mutants.tried(fault("def double", "def triple"), tree)[0] == "broken"
    (tree / "product.py").write_text("def double(x):\n    while True:\n        pass\n")
    assert mutants.outcome(*mutants.pytest(tree, ["test_product.py"], 1)) == "timeout"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sample_of_the_faults_is_noticed():
    command = [sys.executable, mutants.__file__, "--sample", "12", "--seed", "0", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
