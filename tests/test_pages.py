"""What README.md and docs/ say is there: files, links, tests and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
NAMED = re.compile(
    r"`((?:rlhf_jax|launch|tests|experiments|docs)/[\w./-]+\.(?:py|md|json|txt|csv|svg))(?:::(\w+))?"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_test_and_link_of_a_page_is_there(page):
    text = page.read_text()
    for path, test in NAMED.findall(text):
        assert (ROOT / path).is_file(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), (path, test)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    for link in (x for x in links if "://" not in x):
        assert (page.parent / link).exists(), link


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size < 10_000


def test_the_tour_is_short():
    tour = re.findall(r"^\d+\. \[`([\w./]+)`\]", (ROOT / "README.md").read_text(), re.M)
    assert 12 <= len(tour) <= 18
    assert sum((ROOT / path).read_text().count("\n") for path in tour) <= 4_500


def test_commands_of_the_pages_can_be_parsed(monkeypatch):
    from rlhf_jax import cli

    monkeypatch.chdir(ROOT)
    commands = [
        line.split("  #")[0].strip()
        for page in PAGES
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S)
        for line in block.splitlines()
        if line.startswith("rlhf-jax ")
    ]
    assert len(commands) > 10
    for command in commands:
        name, *words = shlex.split(command)[1:]
        args = cli.parser_of(name).parse_intermixed_args(words)
        study = getattr(args, "study", None)
        if study and study.startswith("experiments/"):
            assert Path(study).is_file(), command
