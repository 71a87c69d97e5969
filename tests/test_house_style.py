"""The house style that the linter does not know: sizes of files and functions, where the formatter
may be off, and which modules stand at the root."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE_LINES, FUNCTION_LINES = 400, 60
# Larger for now. Whoever makes one smaller takes it out; none is put in.
LARGE_FILES: set[str] = set()
LARGE_FUNCTIONS: set[str] = set()


def files(*rooms: str) -> Iterator[tuple[str, str]]:
    """(path, text) of the Python files of rooms."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *(f"{room}/*.py" for room in rooms)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    found = listed or [
        p.relative_to(ROOT).as_posix() for room in rooms for p in (ROOT / room).rglob("*.py")
    ]
    for path in sorted(found):
        if (ROOT / path).exists():
            yield path, (ROOT / path).read_text()


def test_files_have_about_400_lines_at_most():
    large = {p for p, text in files("rlhf_jax", "launch") if text.count("\n") > FILE_LINES}
    assert large - LARGE_FILES == set()


def test_functions_fit_on_a_screen():
    large = set()
    for path, text in files("rlhf_jax", "launch"):
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.end_lineno - node.lineno >= FUNCTION_LINES:
                large.add(f"{path}:{node.name}")
    assert large - LARGE_FUNCTIONS == set()


def table_of_numbers(statement: ast.AST) -> bool:
    values = [n.value for n in ast.walk(statement) if isinstance(n, ast.Constant)]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) >= 12 and 2 * len(numbers) >= len(values)


def formatter_off(path: str, text: str) -> Iterator[str]:
    """Where the formatter is off outside a table of numbers."""
    lines = text.splitlines()
    statements = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Assign | ast.AnnAssign)]
    tables = [range(n.lineno, n.end_lineno + 1) for n in statements if table_of_numbers(n)]
    for number, line in enumerate(lines, 1):
        skips = line.rstrip().endswith("# fmt: " + "skip") or "# fmt: " + "off" in line
        if skips and not any(number in table for table in tables):
            yield f"{path}:{number}"


def test_the_formatter_is_off_in_tables_of_numbers_alone():
    rooms = ("rlhf_jax", "launch", "experiments", "tests")
    assert [at for p, text in files(*rooms) for at in formatter_off(p, text)] == []
    row = "{'a': (1, 2, 3, 4), 'b': (5, 6, 7, 8), 'c': (9, 10, 11, 12)}"
    assert list(formatter_off("x.py", f"x = {row}  # fmt: {'skip'}\n")) == []
    assert list(formatter_off("x.py", f"y = f('a', 'b')  # fmt: {'skip'}\n")) == ["x.py:1"]


def test_what_stands_at_the_root_of_the_package():
    modules = {p.name for p in (ROOT / "rlhf_jax").glob("*.py")}
    assert modules == {
        "__init__.py",
        "__main__.py",
        "cells.py",
        "cli.py",
        "config.py",
        "load.py",
        "worker.py",
    }


def test_tools_are_imported_by_nothing_else():
    for path, text in files("rlhf_jax", "launch"):
        if not path.startswith("rlhf_jax/tools/"):
            for node in ast.walk(ast.parse(text)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not [n for n in names if n.startswith("rlhf_jax.tools")], path
