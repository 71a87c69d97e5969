"""Commands that look at a study take work in proportion to its cells."""

from __future__ import annotations

import cProfile
import os
import pstats
import resource

import pytest

from rlhf_jax.cli import main
from rlhf_jax.kinds import Pretrain
from rlhf_jax.study import Study
from rlhf_jax.study.config import ConfigError, CorpusConfig, ModelConfig
from rlhf_jax.study.plan import make_plan, remaining_paths, wall_seconds
from rlhf_jax.study.runs import Runs
from rlhf_jax.study.selection import clear, needed
from rlhf_jax.tools.bench.scale_study import finish_cells, write_study

SIZES = (30, 60, 120)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Study files whose cells are all finished."""
    paths = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for cells in SIZES:
            folder = tmp_path_factory.mktemp(f"cells-{cells}")
            paths.append(write_study(folder, cells, fits=False))
            finish_cells(paths[-1], folder / "runs")
    return paths


@pytest.mark.parametrize("words", [["plan"], ["status"], ["run", "--dry-run"], ["report"]])
def test_calls_grow_in_proportion_to_the_cells(studies, words, capsys):
    made = []
    main([*words, str(studies[0]), "--runs", str(studies[0].parent / "runs")])  # imports, caches
    for path in studies:
        profile = cProfile.Profile()
        code = profile.runcall(main, [*words, str(path), "--runs", str(path.parent / "runs")])
        assert code == 0
        made.append(pstats.Stats(profile).total_calls)
    capsys.readouterr()
    first, second = made[1] - made[0], made[2] - made[1]
    assert second < 2.6 * first, made  # 2 where linear, 4 where quadratic


def chain(cells: int) -> Study:
    """Cells that continue each other."""
    model = ModelConfig(layers=1, width=8, heads=1, vocab=300, max_positions=8)
    corpus = CorpusConfig(vocab=300, seq_len=8)
    names = [f"c{i}" for i in range(cells)]
    made = [
        Pretrain(n, model=model, batch=1, tokens=8 * (i + 1), continues=names[i - 1] if i else None)
        for i, n in enumerate(names)
    ]
    return Study("chain", tuple(made), corpus)


def test_a_chain_of_thousands_of_cells_is_planned(tmp_path):
    study = chain(3000)
    assert needed(study, {"c9"}) == {c.name for c in study.cells} - {"c9"}
    seconds = {c.name: 1.0 for c in study.cells}
    parents = {c.name: c.parents() for c in study.cells}
    assert remaining_paths(seconds, parents)["c10"] == 2990.0
    assert wall_seconds(seconds, parents, 2) == 3000.0
    assert len(make_plan(study, Runs(tmp_path)).cells) == 3000


def test_clearing_more_cells_than_there_may_be_open_files(tmp_path, monkeypatch):
    study, runs = chain(80), Runs(tmp_path)
    folders = runs.folders(study, "hash")
    for folder in folders.values():
        folder.path.mkdir(parents=True)
        folder.finish()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (70, before[1]))
    try:
        assert clear(study, folders, ["*"]) == [c.name for c in study.order()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not any(f.done() for f in folders.values())
    monkeypatch.setattr(resource, "getrlimit", lambda which: (70, 70))
    with pytest.raises(ConfigError, match="name fewer cells at a time"):
        clear(study, folders, ["*"])
