"""What cells need of data and of each other is found out before any cell begins, by the functions
that jobs use: whoever passes `plan` is not refused by a job for its data."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from rlhf_jax import cli
from rlhf_jax.data.corpus import prepare
from rlhf_jax.kinds import (
    DPO,
    PPO,
    SFT,
    BestOfN,
    Compare,
    Ensemble,
    Evaluate,
    Feedback,
    Pretrain,
    Prompting,
    Reward,
    TaskConfig,
)
from rlhf_jax.kinds.between_cells import check_cells, remarks
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.needs import check_data
from rlhf_jax.kinds.prompting.job import asked
from rlhf_jax.kinds.rankings import rankings, training_steps
from rlhf_jax.kinds.sft.job import packed_rows, taught
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, CorpusConfig, ModelConfig

WORDS = [
    "so",
    "we",
    "go",
    "on",
    "to",
    "a",
    "red",
    "sea",
    "in",
    "the",
    "old",
    "sun",
    "by",
    "it",
    "and",
    "all",
    "day",
    "sad",
    "bad",
    "good",
    "love",
    "hate",
]
MODEL = ModelConfig(layers=1, width=16, heads=2, vocab=300, max_positions=64)
TASK = TaskConfig(prompt_len=6, response_len=24)
TASKS = """
from rlhf_jax.evals.prompting import Item


def few(split, n, seed):
    return [f"Ask {i}" for i in range(min(n, 5))]


def scores(prompts, responses):
    return [0.0] * len(responses)


def long(split, n, seed):
    return ["a long question " * 5 for _ in range(n)]


def items(split, n, seed):
    return [Item("t", "g", f"{split} {i}", "a", ("b",)) for i in range(min(n, 3))]


def records(split, n, seed):
    from rlhf_jax.data.feedback import Demonstration
    return [Demonstration(f"Ask {i}", " well") for i in range(min(n, 4))]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Our own text, records and callables, and a corpus prepared of the text."""
    folder = tmp_path_factory.mktemp("needs")
    r = random.Random(0)
    sentence = lambda: f"The {' '.join(r.choices(WORDS, k=r.randint(5, 9)))}."  # noqa: E731
    texts = [json.dumps({"text": " ".join(sentence() for _ in range(6))}) for _ in range(150)]
    (folder / "texts.jsonl").write_text("\n".join(texts))
    pairs = [{"prompt": f"Ask {i}", "chosen": " a good one", "rejected": " bad"} for i in range(12)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    shown = [{"prompt": f"Ask {i}", "completion": " well " * (i + 1)} for i in range(12)]
    (folder / "shown.jsonl").write_text("\n".join(map(json.dumps, shown)))
    (folder / "needs_tasks.py").write_text(TASKS)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def cfg(folder):
    return CorpusConfig(
        (str(folder / "texts.jsonl"),),
        300,
        32,
        validation=0.2,
        test=0.2,
        heldout_tokens=300,
        dedup=False,
    )


@pytest.fixture(scope="module")
def corpus(folder, cfg):
    return prepare(cfg, folder / "runs", lambda text: None)


@pytest.fixture
def base():
    return Pretrain("base", model=MODEL, tokens=256, batch=4)


def check(folder, corpus, *cells, cfg=None):
    study = Study("s", cells, cfg or corpus.cfg)
    check_cells(study)
    return check_data(study, {c.name for c in cells}, corpus, folder / "other")


def cases(folder):
    """(cells after the base, what the refusal says)."""
    few = replace(TASK, prompts="needs_tasks:few")
    long = replace(TASK, prompts="needs_tasks:long")
    pairs, shown = str(folder / "pairs.jsonl"), str(folder / "shown.jsonl")
    compare = Compare("cmp", policy="base", task=TASK, prompts=8, heldout_prompts=4, k=2)
    judge = SFT("judge", base="base", records=shown, batch=1)
    near = replace(TASK, prompt_len=32, response_len=32)
    return {
        "records fewer than a batch": ([SFT("sft", base="base", records=shown, batch=40)], "sft: "),
        "examples of a callable": (
            [SFT("sft", base="base", records="needs_tasks:records", batch=5)],
            "less than one batch",
        ),
        "fewer openings than examples": (
            [SFT("sft", base="base", task=TASK, examples=9999)],
            "sft: asked for 9999",
        ),
        "no continuation approved": (
            [SFT("sft", base="base", task=TASK, examples=20, min_gold=2.0)],
            "none of 20 continuations",
        ),
        "training prompts of comparisons": (
            [replace(compare, prompts=9999)],
            "cmp: asked for 9999",
        ),
        "held-out prompts of comparisons": (
            [replace(compare, heldout_prompts=999)],
            "validation split",
        ),
        "prompts of one cell of three": (
            [replace(compare, name=f"c{n}", prompts=n) for n in (5, 9999, 6)],
            "c9999: asked for 9999",
        ),
        "prompts of feedback": (
            [Feedback("f", policy="base", task=TASK, prompts=9999)],
            "f: asked for",
        ),
        "prompts of a callable": ([replace(compare, task=few)], "expected 8 texts"),
        "prompts too long": ([replace(compare, task=long)], "expected 1 to 6"),
        "prompts of PPO": (
            [
                PPO(
                    "ppo",
                    policy="base",
                    reward="needs_tasks:scores",
                    task=few,
                    iterations=2,
                    batch=4,
                )
            ],
            "expected 8 texts",
        ),
        "prompts of best-of-n": (
            [BestOfN("b", policy="base", reward="needs_tasks:scores", task=TASK, prompts=999)],
            "the test split",
        ),
        "prompts of an evaluation": (
            [
                Evaluate(
                    "e",
                    before="base",
                    after="base",
                    reward="needs_tasks:scores",
                    task=TASK,
                    prompts=999,
                )
            ],
            "e: asked for 999 prompts of 6 tokens, but the test split",
        ),
        "comparisons fewer than a batch": (
            [Reward("rm", base="base", comparisons=pairs, batch=12)],
            "less than one batch of 12",
        ),
        "comparisons of DPO": (
            [DPO("dpo", policy="base", comparisons=pairs, batch=12)],
            "less than one batch",
        ),
        "a limit below a batch": (
            [Reward("rm", base="base", comparisons=pairs, prompts=3, batch=4)],
            "rm.batch = 4, but rm takes 3",
        ),
        "comparisons of a cell": (
            [compare, Reward("rm", base="base", comparisons="cmp", batch=9)],
            "'cmp' gives 8",
        ),
        "records of a cell": (
            [compare, SFT("sft", base="base", records="cmp", batch=40)],
            "sft.batch = 40, but 'cmp' gives",
        ),
        "greedy comparisons": (
            [
                replace(compare, temperature=0.0),
                Reward("rm", base="base", comparisons="cmp", batch=2),
            ],
            "set cmp.temperature above 0",
        ),
        "verdicts that no record has": (
            [judge, PPO("ppo", policy="base", reward="judge", task=TASK, iterations=1, batch=4)],
            "critiques with verdicts",
        ),
        "verdicts of continuations": (
            [
                SFT("s", base="base", task=TASK, examples=64, batch=1),
                BestOfN("b", policy="base", reward="s", task=TASK),
            ],
            "hold no verdicts",
        ),
        "positions of the judge": (
            [
                Feedback(
                    "f", policy="base", task=TASK, gives="critiques", prompts=8, heldout_prompts=8
                ),
                SFT("judge", base="base", records="f", batch=1),
                BestOfN("b", policy="base", reward="judge", task=near, prompts=1),
            ],
            "max_positions = 64",
        ),
        "few-shot items": (
            [Prompting("p", policy="base", tasks="needs_tasks:items", items=3)],
            "lower shots",
        ),
        "positions of a reward model": (
            [
                Pretrain("short", model=replace(MODEL, max_positions=32), tokens=256, batch=4),
                replace(compare, policy="short"),
                Reward("rm", base="short", comparisons="cmp", batch=2),
                PPO("ppo", policy="base", reward="rm", task=replace(TASK, prompt_len=30), batch=4),
            ],
            "'rm' scores them",
        ),
        "positions of comparisons": (
            [
                Pretrain("short", model=replace(MODEL, max_positions=32), tokens=256, batch=4),
                replace(compare, task=replace(TASK, prompt_len=30)),
                Reward("rm", base="short", comparisons="cmp", batch=2),
            ],
            "rm: the comparisons of 'cmp'",
        ),
        "true continuations of records": (
            [Reward("rm", base="base", comparisons=pairs, batch=2, normalise="demonstrations")],
            "Use 'samples'",
        ),
    }


NAMES = list(cases(__import__("pathlib").Path(".")))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_data_cannot_give_is_refused_before_anything_runs(folder, corpus, base, name):
    cells, said = cases(folder)[name]
    with pytest.raises(ConfigError) as e:
        check(folder, corpus, base, *cells)
    assert said in str(e.value)


def test_a_held_out_set_that_was_asked_for_is_not_made_smaller(folder, corpus, base):
    have = corpus.tokens("validation")
    for wanted, right in ((have, True), (have + 1, False), (10**6, False), (65_536, True)):
        cfg = replace(corpus.cfg, heldout_tokens=wanted)
        of = replace(corpus, cfg=cfg)
        if right:
            said = check(folder, of, base, cfg=cfg)
            assert sum(int(b["weights"].sum()) for b in of.heldout()) == min(wanted, have)
            assert len(said) == (wanted == 65_536) and all(
                f"all {have:,} targets" in s for s in said
            )
        else:
            with pytest.raises(
                ConfigError, match=f"holds {have} targets; set corpus.heldout_tokens"
            ):
                check(folder, of, base, cfg=cfg)


def test_a_held_out_set_of_a_row_is_said_to_have_no_error(folder, corpus, base):
    for wanted, rows in ((63, 1), (64, 0)):
        cfg = replace(corpus.cfg, heldout_tokens=wanted)
        said = check(folder, replace(corpus, cfg=cfg), base, cfg=cfg)
        assert len(said) == rows and all("63 targets, less than two rows" in s for s in said)


def test_without_validation_text_there_is_nothing_to_hold_out(folder, cfg, base):
    cfg = replace(cfg, validation=0.0, heldout_tokens=65_536)
    of = prepare(cfg, folder / "runs", lambda text: None)
    with pytest.raises(ConfigError, match=r"base: .*raise corpus\.validation"):
        check_data(Study("s", (base,), cfg), {"base"}, of, folder / "other")
    task = [Compare("cmp", policy="base", task=TASK, prompts=4, heldout_prompts=2)]
    with pytest.raises(ConfigError, match="the validation split has 0"):
        check_data(Study("s", (base, *task), cfg), {"cmp"}, of, folder / "other")


def test_a_split_without_a_share_is_refused_before_there_is_a_corpus(cfg, base):
    best = BestOfN("b", policy="base", reward="m:f", task=TASK)
    eval_ = Evaluate("e", before="base", after="base", reward="m:f", task=TASK)
    own = replace(TASK, prompts="needs_tasks:few")
    for cells, changes, said in (
        (
            (),
            {"validation": 0.0},
            "base needs text of the validation split, but corpus.validation = 0",
        ),
        ((eval_,), {"test": 0.0}, "e needs text of the test split, but corpus.test = 0"),
        ((best,), {"test": 0.0}, "b needs text of the test split"),
        ((replace(best, split="train"),), {"test": 0.0}, None),
        ((replace(best, task=own),), {"test": 0.0}, None),
    ):
        study = Study("s", (base, *cells), replace(cfg, **changes))
        if said:
            with pytest.raises(ConfigError, match=said):
                check_cells(study)
        else:
            check_cells(study)


# --- plan and run ------------------------------------------------------------------------------

STUDY = """
from rlhf_jax.kinds import *
from rlhf_jax.study import CorpusConfig, ModelConfig
from rlhf_jax.study import Study

MODEL = ModelConfig(layers=1, width=16, heads=2, vocab=300, max_positions=64)


def study(tiny):
    return Study("mine", (
        Pretrain("base", model=MODEL, tokens=256, batch=4),
        Evaluate("last", before="base", after="base", reward="needs_tasks:scores",
                 task=TaskConfig(prompt_len=6, response_len=24), prompts=8),
    ), CorpusConfig(("TEXTS",), 300, 32, validation=0.2, test=0.2, dedup=False))
"""


@pytest.fixture
def mine(folder, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(STUDY.replace("TEXTS", str(folder / "texts.jsonl")))

    def call(name, *words):
        return cli.main([name, str(path), "--runs", str(tmp_path / "runs"), *words])

    return SimpleNamespace(path=path, call=call, root=tmp_path / "runs")


CALLED = """
def scores(prompts, responses): return [0.0] * len(responses)
def strings(prompts, responses): return ["good"] * len(responses)
def one(prompts, responses): return [1.0]
def nan(prompts, responses): return [float("nan")] * len(responses)
def huge(prompts, responses): return [1e30] * len(responses)
def raises(prompts, responses): return 1 / 0
"""


@pytest.mark.parametrize("field", ["reward", "task.gold", "modes"])
@pytest.mark.parametrize("name", ["strings", "one", "nan", "huge", "raises", "scores"])
def test_callables_are_called_before_anything_is_trained(
    mine, tmp_path, monkeypatch, capsys, field, name
):
    module = f"called_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(CALLED)
    monkeypatch.syspath_prepend(str(tmp_path))
    setting = f"last.{field}={module}:{name}"
    taken = name == "scores" or (field == "modes" and name in ("strings", "nan", "huge"))
    if taken:
        assert mine.call("run", "--dry-run", setting) == 0
        return
    assert mine.call("run", setting) == 2
    err = capsys.readouterr().err
    assert f"last.{field} = '{module}:{name}' (" in err and f"{module}.py, line " in err
    assert "Traceback" not in err and not (mine.root / "cells").exists()
    assert mine.call("plan", setting) == 2


def test_cells_that_need_no_failing_callable_run(mine, tmp_path, monkeypatch, capsys):
    module = f"failing_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(CALLED)
    monkeypatch.syspath_prepend(str(tmp_path))
    other = 'Pretrain("other", model=MODEL, tokens=256, batch=4, seed=1),\n        Evaluate('
    mine.path.write_text(
        mine.path.read_text().replace("Evaluate(", other, 1).replace("import other,", "import ")
    )
    asked = []
    monkeypatch.setattr("launch.local.Local.run", lambda it: asked.append(it.launch.only) or 0)
    monkeypatch.setattr("rlhf_jax.placement.cli.build_report", lambda *given: None)
    assert mine.call("run", f"last.reward={module}:nan") == 2
    assert asked == [["other"]]  # neither the cell, nor the base that serves it alone
    assert capsys.readouterr().err.count(f"{module}.py, line ") == 2  # before, and at the end
    assert mine.call("run", f"last.reward={module}:nan", "--only", "last") == 2 and len(asked) == 1


def test_run_refuses_the_last_cell_before_the_first_begins(mine, capsys):
    assert mine.call("plan", "last.prompts=999") == 0  # there is no corpus yet to look at
    assert mine.call("run", "last.prompts=999") == 2
    err = capsys.readouterr().err
    assert "last: asked for 999 prompts" in err and "Traceback" not in err
    assert not (mine.root / "cells").exists()
    for name in (["plan"], ["run", "--dry-run"], ["plan", "--json"]):
        assert mine.call(*name, "last.prompts=999") == 2
        err = capsys.readouterr().err
        assert err.startswith("rlhf-jax: last: asked for 999") and err.count("\n") == 1
    assert mine.call("run", "--dry-run", "--only", "base", "last.prompts=999") == 0
    for name in ("status", "plan"):
        assert mine.call(name) == 0
    assert "held-out losses are of all" in capsys.readouterr().err


def test_a_check_that_passed_is_not_made_again_and_a_larger_one_is(mine, monkeypatch, capsys):
    mine.call("run", "last.prompts=999")
    count = []
    real = Context.prompts
    monkeypatch.setattr(Context, "prompts", lambda *a: count.append(a) or real(*a))
    # Of the prompts, and two of them to call the reward with.
    for words, calls in (([], 2), ([], 0), (["last.prompts=5"], 0), (["last.prompts=9"], 1)):
        assert mine.call("plan", *words) == 0
        assert len(count) == calls, words
        count.clear()
    assert mine.call("plan", "last.prompts=999") == 2
    assert mine.call("plan", "last.prompts=999") == 2 and len(count) == 2


def test_checks_of_data_import_no_jax(mine, folder, capsys):
    mine.call("run", "last.prompts=999")
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from rlhf_jax import cli;"
        f"assert cli.main(['plan', {str(mine.path)!r}, '--runs', {str(mine.root)!r}]) == 0;"
        "bad = {'jax', 'tensorflow'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- plan and jobs agree -------------------------------------------------------------------------


def drawn(r, folder):
    """A random study of one cell of each of some kinds, valid or not."""
    task = (
        TaskConfig(
            prompt_len=r.choice([2, 4, 6, 12]),
            response_len=r.choice([2, 8, 16]),
            prompts=r.choice(["", "", "needs_tasks:few"]),
            template=r.choice(["plain", "chat"]),
        )
        if r.random() < 0.5
        else TaskConfig(prompt_len=6, response_len=24)
    )
    n = lambda: r.choice([1, 2, 5, 9, 20, 400])  # noqa: E731
    files = [str(folder / "pairs.jsonl"), str(folder / "shown.jsonl"), "needs_tasks:records", None]
    batch = lambda: r.choice([1, 2, 5, 12])  # noqa: E731
    records = r.choice(files)
    return [
        lambda: SFT(
            "c",
            base="base",
            task=task,
            examples=n(),
            batch=batch(),
            records=records,
            min_gold=r.choice([-1.0, 0.0, 0.9]),
        ),
        lambda: Compare("c", policy="base", task=task, prompts=n(), heldout_prompts=n(), k=2),
        lambda: BestOfN(
            "c",
            policy="base",
            reward="needs_tasks:scores",
            task=task,
            prompts=n(),
            split=r.choice(["train", "validation", "test"]),
        ),
        lambda: PPO(
            "c",
            policy="base",
            reward="needs_tasks:scores",
            task=task,
            batch=n(),
            iterations=r.choice([1, 3, 40]),
        ),
        lambda: Reward(
            "c", base="base", comparisons=files[0], batch=batch(), prompts=r.choice([None, 1, 7])
        ),
        lambda: Prompting(
            "c",
            policy="base",
            tasks="needs_tasks:items",
            items=r.choice([1, 3]),
            shots=(0, r.choice([1, 2, 3])),
            answer_len=r.choice([2, 3, 8]),
        ),
    ][r.randrange(6)]()


def data_of(ctx, cell):
    """What the cell's job takes from the data, as it takes it."""
    if isinstance(cell, SFT):
        packed_rows(ctx, cell, taught(ctx, cell)[2])
    elif isinstance(cell, Compare):
        for split, n in (("train", cell.prompts), ("validation", cell.heldout_prompts)):
            ctx.prompts(cell.task, split, n, cell.seed)
    elif isinstance(cell, BestOfN):
        ctx.prompts(cell.task, cell.split, cell.prompts, cell.seed)
    elif isinstance(cell, PPO):
        n = cell.batch * min(cell.iterations, cell.prompt_batches)
        ctx.prompts(cell.task, "train", n, cell.seed)
    elif isinstance(cell, Reward):
        training_steps(cell, len(rankings(ctx, cell)["train"]["ranks"]))
    else:
        list(asked(ctx, cell))


def test_what_plan_accepts_the_job_accepts_and_the_other_way_round(folder, corpus, base):
    """Random cells against the functions that jobs call, one cell at a time and without what was
    found before."""
    r, seen = random.Random(14), {True: 0, False: 0}
    quiet = SimpleNamespace(log=lambda text: None)
    for i in range(90):
        try:
            study = Study("s", (base, drawn(r, folder)), corpus.cfg)
        except ConfigError:
            continue
        refused = []
        for how in ("plan", "job"):
            try:
                if how == "plan":
                    check_cells(study)
                    check_data(study, {"c"}, corpus, folder / f"none-{i}")
                else:
                    data_of(Context(study, study["c"], {}, corpus, quiet, None), study["c"])
            except ConfigError as e:
                refused.append((how, str(e)))
        assert len(refused) in (0, 2), (study["c"], refused)
        seen[not refused] += 1
    assert min(seen.values()) >= 20


# --- what is said
# ----------------------------------------------------------------------------------


def test_members_that_are_one_run_and_greedy_comparisons_are_named(base):
    compare = Compare("cmp", policy="base", task=TASK, k=4, temperature=0.0)
    warm = replace(compare, name="warm", temperature=1.0)
    rewards = [
        Reward(n, base="base", comparisons="warm", seed=s)
        for n, s in (("a", 0), ("b", 0), ("c", 1))
    ]
    study = Study(
        "s",
        (base, compare, warm, *rewards, Ensemble("e", members=("a", "b", "c"))),
        CorpusConfig(vocab=300, seq_len=32),
    )
    said = remarks(study)
    best = BestOfN("b", policy="base", reward="needs_tasks:scores", task=TASK, n=8, temperature=0.0)
    assert "8 samples of a prompt are one text" in remarks(replace(study, cells=(base, best)))[0]
    assert len(said) == 2 and "4 completions of a prompt are one text" in said[0]
    assert said[1].startswith("e.members: a, b are the same run")
    apart = replace(study, cells=(*study.cells[:-1], Ensemble("e", members=("a", "c"))))
    assert apart["e"].same_runs(apart) == ""
