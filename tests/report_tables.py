"""What a page of the report shows, read back from its markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path

from test_report import write_cell, write_study

from rlhf_jax.report.blocks import Block, html
from rlhf_jax.report.study_results import StudyResults, read_study


def tables(text: str) -> list[list[list[str]]]:
    """Rows of cells of every table, the header first, as plain text."""
    return [
        [
            [
                unescape(re.sub(r"<[^>]*>", "", c))
                for c in re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", row, re.S)
            ]
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)
        ]
        for table in re.findall(r"<table>(.*?)</table>", text, re.S)
    ]


def rows_under(shown: str | Sequence[Block], *header: str) -> list[list[str]]:
    """The rows of the one table with this header, on a page or among blocks."""
    text = shown if isinstance(shown, str) else html(shown)
    (found,) = (rows for head, *rows in tables(text) if head == list(header))
    return found


class Made:
    """A study that is written cell by cell, with every cell's parents and results as given."""

    def __init__(self, root: Path) -> None:
        self.root, self.cells = root, []

    def add(self, kind: str, name: str, *parents: str, config=None, metrics=(), **results) -> None:
        cell = write_cell(self.root, kind, name, config, metrics, **results)
        self.cells.append(cell | {"parents": list(parents)})

    def study(self, *analyses: dict) -> StudyResults:
        return read_study(write_study(self.root, self.cells, analyses), self.root)
