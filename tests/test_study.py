"""The graph of a study, its run ids and its refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_jax.kinds import PPO, SFT, Compare, Evaluate, Pretrain, Reward
from rlhf_jax.study import Analysis, Study, load_study
from rlhf_jax.study.config import ConfigError, CorpusConfig, ModelConfig

MODEL = ModelConfig(layers=1, width=32, heads=2, vocab=64)
CORPUS = CorpusConfig(vocab=64, seq_len=32)
BASE = Pretrain("base", model=MODEL, tokens=1024, batch=2)
STUDIES = sorted(
    path
    for path in (Path(__file__).parents[1] / "experiments").glob("*.py")
    if "def study(" in path.read_text()
)


def study(*cells, **kw):
    return Study("s", cells, CORPUS, **kw)


def ids(*cells, corpus="c"):
    return study(*cells).run_ids(corpus)


def test_run_ids_are_those_of_the_first_release():
    """Golden: changing it orphans every finished run."""
    assert ids(BASE, SFT("sft", base="base")) == {"base": "17ae2bb008", "sft": "9178030d4a"}


def test_an_option_of_later_leaves_old_run_ids_alone_until_it_is_used():
    assert ids(replace(BASE, unique_tokens=None)) == ids(BASE)
    assert ids(replace(BASE, unique_tokens=512, repeat=True)) != ids(replace(BASE, repeat=True))


def test_run_ids_do_not_depend_on_names_or_order():
    one = ids(BASE, SFT("sft", base="base"))
    other = ids(SFT("tuned", base="trunk"), replace(BASE, name="trunk"))
    assert (one["base"], one["sft"]) == (other["trunk"], other["tuned"])


def test_run_ids_depend_on_science_parents_and_corpus():
    sft = SFT("sft", base="base")
    first = ids(BASE, sft)
    assert ids(replace(BASE, seed=1), sft)["sft"] != first["sft"]
    assert ids(BASE, replace(sft, epochs=2))["base"] == first["base"]
    assert ids(BASE, replace(sft, epochs=2))["sft"] != first["sft"]
    assert ids(BASE, sft, corpus="d")["base"] != first["base"]
    two = ids(BASE, replace(BASE, name="twin"))
    assert two["base"] == two["twin"]


def test_cells_of_different_kinds_never_share_an_id():
    made = ids(
        BASE,
        SFT("sft", base="base"),
        Compare("c", policy="sft"),
        Reward("r", base="sft", comparisons="c"),
    )
    assert len(set(made.values())) == 4


REWARD = """
import functools

WORDS = {{"good", {word!r}}}
UNUSED = {unused}


@functools.cache
def score_of(text):
    return {bonus} + sum(w in WORDS for w in text.split())


def score(prompts, responses):
    return [score_of(r) for r in responses]
"""


def test_a_reward_enters_the_id_by_its_source_and_by_what_it_uses(tmp_path, monkeypatch):
    import linecache
    import sys

    monkeypatch.syspath_prepend(str(tmp_path))
    sft, ppo = SFT("sft", base="base"), PPO("p", policy="sft", reward="my_reward_module:score")

    def made(word="fine", bonus=1, unused=0):
        text = REWARD.format(word=word, bonus=bonus, unused=unused)
        (tmp_path / "my_reward_module.py").write_text(text)
        sys.modules.pop("my_reward_module", None)
        linecache.clearcache()
        return ids(BASE, sft, ppo)["p"]

    first = made()
    assert made() == made(unused=1) == first
    assert len({first, made(word="bad"), made(bonus=2)}) == 3
    with pytest.raises(ConfigError, match="cannot be imported"):
        ids(BASE, sft, replace(ppo, reward="no_such_module:score"))


def test_records_enter_the_id_by_content_not_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("a.jsonl", "folder/b.jsonl", "export-10:30:00.jsonl", "pairs:old"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "other.jsonl").write_text("[]")

    def made(path):
        cells = (
            SFT("sft", base="base", records=path),
            Reward("r", base="base", comparisons=path),
            Compare("c", policy="base"),
            Reward("more", base="base", comparisons="c", earlier=(path,)),
        )
        return ids(BASE, *cells)

    first = made("a.jsonl")
    for path in (
        "./a.jsonl",
        str(tmp_path / "a.jsonl"),
        "folder/../a.jsonl",
        "folder/b.jsonl",
        "export-10:30:00.jsonl",
        "pairs:old",
        Path("a.jsonl"),
    ):
        assert made(path) == first, path
    assert all(made("other.jsonl")[n] != first[n] for n in ("sft", "r", "more"))


def test_a_study_keeps_its_ids_while_what_it_names_changes(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    s = study(BASE, SFT("sft", base="base", records=str(tmp_path / "a.jsonl")))
    first = s.run_ids("c")
    (tmp_path / "a.jsonl").write_text("[]")
    assert s.run_ids("c") == first
    assert study(*s.cells).run_ids("c") != first


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cells": BASE}, "study.cells: expected a list, got Pretrain"),
        ({"cells": (BASE, "sft")}, r"study.cells\[1\]: expected Cell, got 'sft'"),
        ({"cells": (BASE, CORPUS)}, r"study.cells\[1\]: expected Cell, got CorpusConfig"),
        ({"cells": (BASE,), "analyses": ("isoflop",)}, r"study.analyses\[0\]: expected Analysis"),
        (
            {"cells": (BASE,), "analyses": (("isoflop", "*"),)},
            r"study.analyses\[0\]: expected Analysis",
        ),
        ({"cells": (BASE,), "members": 1.5}, "study.members: expected int, got 1.5"),
        ({"cells": (BASE,), "corpus": MODEL}, "study.corpus: expected CorpusConfig"),
        ({"cells": (SFT("s", base="my base"),)}, "s.base = 'my base'; expected the name of a cell"),
        ({"cells": (SFT("s", base="m:f"),)}, "s.base = 'm:f'; expected the name of a cell"),
    ],
    ids=str,
)
def test_wrong_types_in_a_study_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        Study("s", **{"corpus": CORPUS, **values})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "    return Study('s', (Pretrain('a', OptimConfig()),))",
            r"s.py, line 6: a.model: expected ModelConfig",
        ),
        (
            "    return Study('s', (Pretrain('a', bacth=3),))",
            r"line 6: unknown key 'bacth'.*Did you mean 'batch'",
        ),
        ("    return Study('s')", r"s.py, line 6: TypeError: .*missing 1 required"),
        ("    return Study('s', 3", r"s.py, line 6: SyntaxError"),
        ("    return nonsense", r"s.py, line 6: NameError"),
        ("    return [Pretrain('a')]", r"study\(\) returns list; expected a Study"),
        (
            "    return Study('s', (Pretrain('a'),), CorpusConfig(sources=('a.txt')))",
            "s.py, line 6: corpus.sources: expected a list",
        ),
    ],
)
def test_a_mistake_in_a_study_file_is_named_with_its_line(tmp_path, body, said):
    head = (
        "from rlhf_jax.kinds import Pretrain\nfrom rlhf_jax.study import *\n"
        "from rlhf_jax.study import Study\n\ndef study(tiny):\n"
    )
    (tmp_path / "s.py").write_text(head + body + "\n")
    with pytest.raises(ConfigError, match=said):
        load_study(tmp_path / "s.py")


def test_order_puts_parents_first():
    order = [c.name for c in study(SFT("sft", base="base"), BASE).order()]
    assert order == ["base", "sft"]


def test_cycles_are_refused():
    with pytest.raises(ConfigError, match=r"in a circle: (a -> b -> a|b -> a -> b)"):
        study(SFT("a", base="b"), SFT("b", base="a"))


def test_unknown_parents_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"'sft' starts from 'bsae'.*Did you mean 'base'"):
        study(BASE, SFT("sft", base="bsae"))


def test_duplicate_and_unusable_names_are_refused():
    with pytest.raises(ConfigError, match="two cells are named base"):
        study(BASE, BASE)
    with pytest.raises(ConfigError, match="use letters, digits"):
        study(replace(BASE, name="../base"))


def test_parents_of_the_wrong_kind_are_refused():
    with pytest.raises(ConfigError, match=r"r.comparisons = 'base' is a pretrain cell"):
        study(BASE, Reward("r", base="base", comparisons="base"))
    with pytest.raises(ConfigError, match=r"e.reward = 'base' is a pretrain cell"):
        study(BASE, Evaluate("e", before="base", after="base", reward="base"))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (replace(BASE, model=replace(MODEL, vocab=65)), "they must be equal"),
        (replace(BASE, model=replace(MODEL, max_positions=16)), "model.max_positions = 16"),
        (replace(BASE, tokens=10), "less than one batch"),
    ],
)
def test_cells_that_do_not_fit_the_corpus_are_refused(cell, message):
    with pytest.raises(ConfigError, match=message):
        study(cell)


def test_continuing_needs_the_same_model_and_more_tokens():
    longer = replace(BASE, name="longer", tokens=2048, continues="base")
    study(BASE, longer)
    with pytest.raises(ConfigError, match="must be larger"):
        study(BASE, replace(longer, tokens=1024))
    with pytest.raises(
        ConfigError, match=r"longer\.batch = 4, but 'base', which it continues, has "
    ):
        study(BASE, replace(longer, batch=4))
    with pytest.raises(ConfigError, match=r"longer\.model\.qk_norm = True, but 'base'"):
        study(BASE, replace(longer, model=replace(MODEL, qk_norm=True)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, r"longer.seed = 1, but it continues 'base', which has 0.*Set seed = 0"),
        (
            {"unique_tokens": 512},
            "longer.unique_tokens = 512, but it continues 'base', which has None",
        ),
    ],
)
def test_continuing_in_another_order_of_text_is_refused_unless_it_may_repeat(changes, said):
    longer = replace(BASE, name="longer", tokens=2048, continues="base", **changes)
    with pytest.raises(ConfigError, match=said):
        study(BASE, longer)
    study(BASE, replace(longer, repeat=True))
    study(replace(BASE, **changes), longer)


def test_repeated_text_is_refused_unless_asked_for():
    with pytest.raises(ConfigError, match=r"tokens = 1,024, but there are 1,000 unique"):
        study(BASE).check_corpus(1000)
    study(BASE).check_corpus(1024)
    study(replace(BASE, repeat=True)).check_corpus(10)
    few = replace(BASE, unique_tokens=512)
    with pytest.raises(ConfigError, match=r"tokens = 1,024, but there are 512 unique"):
        study(few).check_corpus(10_000)
    study(replace(few, repeat=True)).check_corpus(10_000)
    with pytest.raises(ConfigError, match=r"unique_tokens = 512, but the corpus has 100"):
        study(replace(few, repeat=True)).check_corpus(100)
    with pytest.raises(ConfigError, match="less than one row"):
        study(replace(BASE, unique_tokens=3))


def test_globs_select_cells():
    s = study(BASE, SFT("sft-0", base="base"), SFT("sft-1", base="base", seed=1))
    assert [c.name for c in s.select(["sft-*"])] == ["sft-0", "sft-1"]
    with pytest.raises(ConfigError, match="no cell matches 'sftt'"):
        s.select(["sftt"])
    with pytest.raises(ConfigError, match="no cell matches 'x-\\*'"):
        study(BASE, analyses=(Analysis("isoflop", ("x-*",)),))
    with pytest.raises(ConfigError, match="Did you mean 'isoflop'"):
        Analysis("isoflops", ("*",))


def test_study_files_load_with_overrides(fake):
    loaded = load_study(fake.path, False, ["*-child.epochs=3", "corpus.seed=7", "a.optim.lr=0.5"])
    assert loaded["a-child"].epochs == loaded["b-child"].epochs == 3
    assert loaded["a-grandchild"].epochs == 1
    assert loaded.corpus.seed == 7 and loaded["a"].optim.lr == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs=3", "expected CELL.field=value"),
        ("zzz.epochs=3", "no cell matches 'zzz'"),
        ("a-child.epoch=3", "Did you mean 'epochs'"),
        ("corpus.vocb=3", "Did you mean 'vocab'"),
        ("corpus.vocab=65", "they must be equal"),
    ],
)
def test_wrong_study_overrides_are_refused(fake, text, message):
    with pytest.raises(ConfigError, match=message):
        load_study(fake.path, False, [text])


def test_files_that_are_no_study_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no study file"):
        load_study(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="has no function study"):
        load_study(tmp_path / "empty.py")


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
@pytest.mark.parametrize("tiny", [False, True])
def test_every_study_of_the_repository_is_sound_and_small_in_its_tiny_form(path, tiny):
    found = load_study(path, tiny=tiny)
    whole = load_study(path)
    assert found.name.endswith("-tiny") is tiny
    assert len(found.cells) <= len(whole.cells)
    spent = sum(train_tokens(c) for c in found.cells)
    assert spent <= sum(train_tokens(c) for c in whole.cells) * (0.35 if tiny else 1)


def train_tokens(cell) -> int:
    return cell.tokens if isinstance(cell, Pretrain) else 0


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            "SFT('s', base='base', records='no/such.jsonl')",
            "no/such.jsonl.*expected a cell of the study",
        ),
        (
            "PPO('p', policy='base', reward='no_such_module:score')",
            "no_such_module.*cannot be imported",
        ),
    ],
)
def test_what_lies_outside_and_is_not_there_is_refused_when_the_study_is_loaded(
    tmp_path, cell, said
):
    (tmp_path / "s.py").write_text(
        "from rlhf_jax.kinds import PPO, SFT, Pretrain\nfrom rlhf_jax.study import *\n"
        "from rlhf_jax.study import Study\n\n\ndef study(tiny):\n"
        "    base = Pretrain('base', model=ModelConfig(vocab=1024), tokens=65536)\n"
        f"    return Study('s', (base, {cell}))\n"
    )
    with pytest.raises(ConfigError, match=said):
        load_study(tmp_path / "s.py")


def test_records_that_change_while_a_study_runs_are_refused(tmp_path):
    path = str(tmp_path / "a.jsonl")
    Path(path).write_text("{}")
    s = study(BASE, SFT("sft", base="base", records=path))
    s.run_ids("c")
    assert s.unchanged(path) == path
    Path(path).write_text("[]")
    with pytest.raises(ConfigError, match="has changed since this run began"):
        s.unchanged(path)
