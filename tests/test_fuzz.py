"""Random inputs: whatever is given, the product runs it or refuses it in words."""

from __future__ import annotations

import math

import pytest
from fuzz_commands import outcome, random_commands
from fuzz_studies import BASE, PLACES, right_settings, with_value, wrong_settings, wrong_values
from hypothesis import HealthCheck, given, settings

from rlhf_jax.study.config import ConfigError, from_json, to_json
from rlhf_jax.study.plan import make_plan
from rlhf_jax.study.runs import Runs

FEW = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
MANY = settings(FEW, max_examples=4000, derandomize=False)


def refused(case) -> None:
    (head, dotted, _, name, value), route = case
    said = None
    try:
        with_value(BASE, head, dotted, value, route)
    except ConfigError as e:
        said = str(e)
    assert said is not None, f"{head}.{dotted} = {value!r} was accepted by {route}"
    assert name in said, f"{said} does not name {head}.{dotted}"


def accepted(case, root) -> None:
    """What is accepted can be planned, named and written; what is not is refused in words."""
    study = BASE
    for (head, dotted, _, _, value), route in case:
        try:
            study = with_value(study, head, dotted, value, route)
        except ConfigError:
            return
    for cell in study.cells:
        assert from_json(type(cell), to_json(cell)) == cell
    plan = make_plan(study, Runs(root))
    assert all(math.isfinite(c.flops) and c.flops >= 0 and c.memory > 0 for c in plan.cells)
    assert len(plan.cells) == len(study.cells)


@FEW
@given(wrong_settings)
def test_a_value_that_makes_no_sense_is_refused_however_it_comes(case):
    refused(case)


@FEW
@given(right_settings)
def test_settings_that_make_sense_are_planned(tmp_path, case):
    accepted(case, tmp_path)


@pytest.mark.slow
@MANY
@given(wrong_settings)
def test_thousands_of_values_that_make_no_sense_are_refused(case):
    refused(case)


@pytest.mark.slow
@MANY
@given(right_settings)
def test_thousands_of_settings_that_make_sense_are_planned(tmp_path, case):
    accepted(case, tmp_path)


def test_every_number_of_every_cell_has_values_that_are_tried():
    """A new field with a number belongs into `fuzz_studies`."""
    free = {"name", "min_gold", "no_eos_score", "length_bias", "margin"}
    untried = {
        f"{head}.{dotted}"
        for head, dotted, obj, name in PLACES
        if not wrong_values(obj, name)
        and isinstance(getattr(obj, name), int | float)
        and name not in free
    }
    assert untried == set()


@pytest.mark.parametrize(
    ("seed", "n"),
    [*((part, 40) for part in range(6)), pytest.param(1000, 2000, marks=pytest.mark.slow)],
)
def test_random_command_lines_end_in_words(tmp_path, seed, n):
    for argv, wrong in random_commands(seed, n, tmp_path):
        code, said = outcome(argv)
        assert "Traceback" not in said and code in (0, 1, 2), f"{argv}: {code}: {said[-3000:]}"
        assert not wrong or code == 2, f"{argv} was accepted: {said[-500:]}"
        assert code != 2 or said.strip(), f"{argv} was refused without a word"
