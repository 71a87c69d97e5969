"""The pages of the studies say what is exported, and nothing that is not."""

import json
import shutil
from pathlib import Path

import pytest
from report_tables import Made
from test_report import EVIL, write_study

from rlhf_jax.report.export import export
from rlhf_jax.report.readme import docstring, write_index, write_readme
from rlhf_jax.study.cell import KNOWN
from rlhf_jax.study.results import from_json

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
KEPT = sorted(EXPERIMENTS.glob("results/*/results.json"))


def source_of(kept: Path) -> Path:
    """The study file that the command of an export names."""
    words = json.loads(kept.read_text())["command"].split()
    return EXPERIMENTS / next(Path(word).name for word in words if word.endswith(".py"))


def test_a_small_page_is_what_is_written_from_its_results(tmp_path):
    kept = EXPERIMENTS / "results" / "instruction-tuning"
    to = tmp_path / "kept"
    shutil.copytree(kept, to)
    (to / "README.md").unlink()
    write_readme(to, source_of(kept / "results.json"))
    assert (to / "README.md").read_text() == (kept / "README.md").read_text()
    assert {p.name for p in to.rglob("*")} == {p.name for p in kept.rglob("*")}


@pytest.mark.parametrize("path", KEPT, ids=lambda p: p.parent.name)
def test_every_page_has_the_findings_the_numbers_and_the_figures_of_its_study(path):
    page = (path.parent / "README.md").read_text()
    kept = json.loads(path.read_text())
    assert docstring(source_of(path)) in page
    assert f"    {kept['command']}\n" in page
    for name in {p.stem for p in (path.parent / "figures").glob("*.svg")}:
        assert f"figures/{name}.svg" in page
    linked = {word.split(")")[0].split('"')[0] for word in page.split("figures/")[1:]}
    assert all((path.parent / "figures" / name).exists() for name in linked)
    for cell in kept["cells"]:
        if cell["kind"] == "evaluate" and len(kept["cells"]) < 50:
            found = from_json(KNOWN["evaluate"].RESULT, cell["results"]).evaluation
            assert f"{found.gain:.3f}" in page and f"{found.after.gold:.3f}" in page
        assert cell["provenance"]["commit"][:10] in page


def test_the_index_lists_every_study(tmp_path):
    before = (EXPERIMENTS / "README.md").read_text()
    shutil.copytree(
        EXPERIMENTS, tmp_path / "e", ignore=shutil.ignore_patterns("figures", "fits", "*.csv")
    )
    assert write_index(tmp_path / "e").read_text() == before
    for path in EXPERIMENTS.glob("*.py"):
        assert (f"]({path.name})" in before) == ("\ndef study(" in path.read_text())


def test_an_export_writes_a_page_without_texts_and_keeps_what_came_from_an_export(tmp_path):
    made = Made(tmp_path / "runs")
    samples = [{"prompt": "a secret", "before": "b", "after": "a"}]
    words = {side: {"a secret": [["word", 0.5]]} for side in ("before", "after")}
    found = {"samples": samples, "next_words": words, "gain": 0.125}
    made.add("evaluate", "eval", "sft", "ppo", evaluation=found)
    to = export(write_study(tmp_path / "runs", made.cells), tmp_path / "runs", tmp_path / "to")
    page = (to / "README.md").read_text()
    assert "0.125" in page and "secret" not in page and "<script" not in page
    assert "&lt;script&gt;" in page.splitlines()[1] and EVIL not in page
