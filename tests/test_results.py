"""Results are read as what they are: every kept one loads, and what is not a result of its kind is
refused by the name of the field."""

import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from test_report import write_cell, write_study
from tiny_results import whole

from rlhf_jax.kinds import KINDS
from rlhf_jax.report.html import build
from rlhf_jax.report.study_results import read_study
from rlhf_jax.study import load_study
from rlhf_jax.study.cell import KNOWN
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.results import (
    Interval,
    Mismatch,
    as_json,
    flat,
    from_json,
    renamed,
    rest,
)

RESULTS = Path(__file__).parent.parent / "experiments" / "results"
KEPT = sorted(RESULTS.glob("*/results.json"))


@dataclass(frozen=True)
class Part:
    low: float = renamed("from")
    words: tuple[str, ...]
    ends: Interval | None = None


@dataclass(frozen=True)
class Whole:
    parts: dict[str, Part]
    before: Part = flat("_before")
    count: int
    right: bool
    others: dict[str, float] = rest()


GIVEN = {
    "parts": {"a": {"from": 1.5, "words": ["x"], "ends": [0, 1.0]}},
    "from_before": 2,
    "words_before": [],
    "count": 3,
    "right": True,
    "loss": 0.5,
}


def test_json_and_dataclasses_are_each_others_inverse():
    made = from_json(Whole, GIVEN)
    assert made.parts["a"].ends == (0, 1.0) and made.before == Part(2, ())
    assert made.others == {"loss": 0.5} and as_json(made) == GIVEN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": None}, "count: expected int, found None"),
        ({"count": True}, "count: expected int, found True"),
        ({"right": 1}, "right: expected bool"),
        ({"loss": "high"}, "loss: expected float, found 'high'"),
        ({"from_before": "2"}, "from_before: expected float"),
        ({"parts": [1]}, "parts: expected dict"),
        ({"parts": {"a": 1}}, "parts.a: expected an object, found 1"),
        ({"parts": {"a": {"from": 1.0}}}, "parts.a.words is missing"),
        ({"parts": {"a": {"from": 1, "words": [1]}}}, r"parts.a.words\[0\]: expected str"),
        ({"parts": {"a": {"from": 1, "words": [], "ends": [1.0]}}}, "parts.a.ends: expected tuple"),
        ({"parts": {"a": {"from": 1, "words": [], "end": 1}}}, "parts.a.end is unknown.*'ends'"),
    ],
)
def test_what_is_no_result_is_refused_by_the_name_of_the_field(change, message):
    with pytest.raises(Mismatch, match=f"^{message}"):
        from_json(Whole, GIVEN | change)
    gone = {k: v for k, v in GIVEN.items() if k != "words_before"}
    with pytest.raises(Mismatch, match="words_before is missing"):
        from_json(Whole, gone)


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.parent.name)
def test_every_kept_result_loads_and_is_written_back_as_it_was(path):
    study = RESULTS.parent / f"{path.parent.name}.py"
    if study.exists():
        load_study(study)  # it may define a kind of its own
    for cell in json.loads(path.read_text())["cells"]:
        kept, cls = cell["results"], KNOWN[cell["kind"]].RESULT
        again = as_json(made := from_json(cls, kept))
        assert from_json(cls, again) == made
        for content in kept.values():
            content.pop("gold", None) if content.get("gold") == {} else None
        assert again == kept


def _required(cls, where=()):
    """The path of every key that a result must have, as far as lists."""
    for f in fields(cls):
        hint, suffix = get_type_hints(cls)[f.name], f.metadata.get("suffix")
        inner = next((a for a in (hint, *get_args(hint)) if is_dataclass(a)), None)
        if suffix is not None:
            yield from ((*where, f"{key}{suffix}") for (key, *_) in _required(hint))
        elif f.name in as_json_keys(cls):
            yield (*where, f.metadata.get("key", f.name))
            if inner is hint:
                yield from _required(hint, (*where, f.name))


def as_json_keys(cls):
    return {k for k in whole(cls, {}) if k in {f.name for f in fields(cls)}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_is_gone_or_renamed_is_an_error_that_names_file_and_key(kind, tmp_path):
    cls = KINDS[kind].RESULT
    paths = [p for p in _required(cls) if len(p) > 1]
    assert len(paths) >= 4
    for i, path in enumerate(paths):
        cell = write_cell(tmp_path / str(i), kind, "cell", **{path[0]: {}})
        file = tmp_path / str(i) / cell["folder"] / "results" / f"{path[0]}.json"
        content = json.loads(file.read_text())
        holder = content
        for key in path[1:-1]:
            holder = holder[key]
        holder[f"{path[-1]}x"] = holder.pop(path[-1])
        file.write_text(json.dumps(content))
        study = read_study(write_study(tmp_path / str(i), [cell]), tmp_path / str(i))
        with pytest.raises(ConfigError, match=f"{path[0]}.json is damaged: .*{path[-1]}"):
            study.check()


def test_a_report_ends_with_a_result_that_is_not_its_kinds(tmp_path):
    cell = write_cell(tmp_path, "evaluate", "eval", evaluation={})
    path = tmp_path / cell["folder"] / "results" / "evaluation.json"
    path.write_text(path.read_text().replace('"gain"', '"gains"'))
    with pytest.raises(ConfigError, match=r"evaluation.gain is missing.*--force eval"):
        build(write_study(tmp_path, [cell]), tmp_path)
