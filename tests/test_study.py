"""The graph of a study, its run ids and its refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_jax.cells import PPO, SFT, Compare, Evaluate, Pretrain, Reward
from rlhf_jax.config import ConfigError, CorpusConfig, ModelConfig
from rlhf_jax.study import Analysis, Study, load_study

MODEL = ModelConfig(layers=1, width=32, heads=2, vocab=64)
CORPUS = CorpusConfig(vocab=64, seq_len=32)
BASE = Pretrain("base", model=MODEL, tokens=1024, batch=2)
STUDIES = sorted(
    path for path in (Path(__file__).parents[1] / "experiments").glob("*.py")
    if "def study(" in path.read_text()
)  # fmt: skip


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
    made = ids(BASE, SFT("sft", base="base"), Compare("c", policy="sft"),
               Reward("r", base="sft", comparisons="c"))  # fmt: skip
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
    with pytest.raises(ConfigError, match="model and batch must agree"):
        study(BASE, replace(longer, batch=4))


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
        ("SFT('s', base='base', records='no/such.jsonl')", "no/such.jsonl.*expected a cell of the study"),
        ("PPO('p', policy='base', reward='no_such_module:score')", "no_such_module.*cannot be imported"),
    ],
)  # fmt: skip
def test_what_lies_outside_and_is_not_there_is_refused_when_the_study_is_loaded(
    tmp_path, cell, said
):
    (tmp_path / "s.py").write_text(
        "from rlhf_jax.cells import PPO, SFT, Pretrain\nfrom rlhf_jax.config import *\n"
        "from rlhf_jax.study import Study\n\n\ndef study(tiny):\n"
        "    base = Pretrain('base', model=ModelConfig(vocab=1024), tokens=65536)\n"
        f"    return Study('s', (base, {cell}))\n"
    )
    with pytest.raises(ConfigError, match=said):
        load_study(tmp_path / "s.py")
