"""Files to records: CSV with any separator and encoding, JSON lines, JSON, parquet, also with
gzip."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.data import files
from rlhf_jax.laws.tables.columns import FitError
from rlhf_jax.laws.tables.json_tables import Table, add_rows, json_lines, json_table
from rlhf_jax.laws.tables.numbers import number_in
from rlhf_jax.study.config import ConfigError

SEPARATORS = (",", ";", "\t", "|")
READERS = (".csv", ".tsv", ".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet")
UNCLOSED = "a quote is opened and not closed in its row: it takes the rows below with it"
RULE = re.compile(r"[ |+:=-]*--[ |+:=-]*")  # between a header and its rows


def read_file(path: Path) -> Table:
    """The records of a file; `.gz` is unpacked first.

    Raises:
      FitError: it is not such a file, is damaged, or holds no rows.
    """
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if not path.is_file():
        raise FitError(f"{path} is not a file")
    if kind not in READERS:
        raise FitError(
            f"{path.name}: expected a .csv, .tsv, .txt, .md, .jsonl, .json or .parquet file, or "
            f"one of them with .gz; save it as CSV"
        )
    try:
        table = _table(path, kind)
    except ConfigError as e:
        raise FitError(str(e)) from None
    if not table.records:
        first = f" that can be read: {' '.join(table.left_out[0])}" if table.left_out else ""
        raise FitError(f"{path.name} has no rows{first}")
    return table


def _table(path: Path, kind: str) -> Table:
    data = files.content(path)
    if kind == ".parquet":
        return add_rows(path.name, files.parquet_rows(path, io.BytesIO(data)))
    text, notes = _text(path.name, data)
    if not text.strip():
        raise FitError(f"{path.name} is empty: a header line and a row for each run are needed")
    readers = {".jsonl": json_lines, ".ndjson": json_lines, ".json": json_table}
    table = readers.get(kind, _csv)(path.name, text)
    table.notes[:0] = notes
    return table


def _text(name: str, data: bytes) -> tuple[str, list[str]]:
    """(text, notes): UTF-16 or UTF-32 where it looks like that, else UTF-8, else Windows-1252."""
    wide, notes = files.wide_encoding(data[:1000]), []
    try:
        text = data.decode(wide or "utf-8-sig")
    except UnicodeDecodeError:
        if wide:
            raise FitError(f"{name} is not whole {wide}: save it as CSV in UTF-8") from None
        text = data.decode("cp1252", errors="replace")
        notes = [f"{name} is not UTF-8; read as Windows-1252"]
    if re.match(r"\s*(<!doctype html|<html)", text, re.IGNORECASE):
        raise FitError(f"{name} is a web page: download the file itself")
    control = sum(text.count(chr(i)) for i in (*range(9), 14, 15, 16, 127))
    if "\0" in text or control > 0.01 * len(text) or text.count("\ufffd") > 0.05 * len(text):
        raise FitError(f"{name} is not text: save it as CSV in UTF-8")
    return text, notes


# --- separated values ------------------------------------------------------------------------


def _csv(name: str, text: str) -> Table:
    text = re.sub(r"\r\n?", "\n", text)
    lines, skipped, comment = ["" if RULE.fullmatch(li) else li for li in text.split("\n")], 0, ""
    prose = name.casefold().endswith((".md", ".md.gz")) and any("|" in line for line in lines)
    while skipped < len(lines) and (
        _no_header(lines[skipped]) or (prose and "|" not in lines[skipped])
    ):
        comment = lines[skipped].strip().lstrip("#").strip() or comment
        skipped += 1
    if skipped == len(lines):
        raise FitError(f"{name} has no rows, only comments")
    separator = _separator(lines[skipped], lines[skipped + 1 : skipped + 20])
    if separator not in lines[skipped] and _spaced(lines[skipped:]):
        separator = " "  # as numpy writes them
        lines = [" ".join(line.split()) for line in lines]
    rows = _fields(name, "\n".join(lines[skipped:]), separator, skipped)
    first, header = rows[0]
    if all(_is_number(cell) for cell in header if cell.strip()):
        by = separator if separator in comment else None
        named = [cell.strip() for cell in comment.split(by)]
        if len(named) != len(header) or any(map(_is_number, named)):
            raise FitError(
                f"{name}: the first line, {lines[skipped][:200]!r}, is not a header; put the names "
                f"of the columns above it"
            )
        header = named
    else:
        rows = rows[1:]
    header = [re.sub(r"\s+", " ", cell.strip()) for cell in header]
    header[0] = header[0].lstrip("#").strip()
    if separator == "|":  # Markdown: stars for bold
        rows = [(line, [_unmarked(cell) for cell in cells]) for line, cells in rows]
        header = [_unmarked(cell) for cell in header]
    if len([cell for cell in header if cell]) < 2 and not any(len(cells) > 1 for _, cells in rows):
        raise FitError(
            f"{name}:{first} has one column, {header[0][:80]!r}; the separators , ; tab and | are "
            "known"
        )
    return _records(name, header, rows, separator)


def _no_header(line: str) -> bool:
    """Blank, a comment, or Excel's `sep=;`."""
    line = line.strip()
    return not line or line.startswith("#") or line.casefold().startswith("sep=")


def _spaced(lines: Sequence[str]) -> bool:
    """Whether all lines have the same number of words, at least two."""
    counts = {len(line.split()) for line in lines if line.strip() and not line.startswith("#")}
    return len(counts) == 1 and counts.pop() > 1


def _separator(header: str, below: Sequence[str]) -> str:
    """The separator that cuts the header into most fields, and that the lines below share."""
    bare = re.sub(r'"[^"]*"', "", header)
    counts = {mark: bare.count(mark) for mark in SEPARATORS}

    def fit(mark: str) -> tuple[bool, int, int]:
        agree = sum(line.count(mark) >= counts[mark] for line in below if line.strip())
        return counts[mark] > 0, agree if counts[mark] else 0, counts[mark]

    return max(SEPARATORS, key=fit)


def _fields(name: str, text: str, separator: str, skipped: int) -> list[tuple[int, list[str]]]:
    """[(line, cells)], the header first; comments and blank lines left out."""
    rows: list[tuple[int, list[str]]] = []
    limit = csv.field_size_limit(sys.maxsize)
    reader, begun = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 0
    try:
        while True:
            begun = skipped + reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error as e:
                if "unexpected end" in str(e):
                    raise FitError(f"{name}:{begun}: a quote is opened and never closed") from None
                if skipped + reader.line_num > begun:
                    raise FitError(f"{name}:{begun}: {UNCLOSED}") from None
                rows.append((begun, []))  # such as `"a"b`: said where the row is left out
                continue
            _swallowed(name, begun, cells, len(rows[0][1]) if rows else 0, separator)
            comment = bool(cells) and cells[0].lstrip().startswith("#")
            if not rows or (any(cell.strip() for cell in cells) and not comment):
                rows.append((begun, cells))
    finally:
        csv.field_size_limit(limit)
    return rows


def _swallowed(name: str, line: int, cells: Sequence[str], width: int, separator: str) -> None:
    """Refuses a cell that holds whole rows, because its quote closes in a later row."""
    for cell in cells:
        if "\n" not in cell or len(cell) > 10**6 or not width:
            continue
        for i, inner in enumerate(cell.split("\n")):
            parts = inner.split(separator)
            if i and len(parts) >= max(width - 1, 2) and sum(map(_is_number, parts)) >= 2:
                raise FitError(f"{name}:{line}: {UNCLOSED}")


def _records(
    name: str, header: list[str], rows: Sequence[tuple[int, list[str]]], separator: str
) -> Table:
    width = len(header)
    while width and not header[width - 1]:
        width -= 1
    named = _row_names(header[:width], rows)
    columns = ([""] if named else []) + header[:width]
    kept = [i for i, column in enumerate(columns) if column and column not in columns[:i]]
    table = Table([columns[i] for i in kept], [], separator)
    table.twice = {column for column in columns if column and columns.count(column) > 1}
    for line, cells in rows:
        where = f"{name}:{line}"
        while len(cells) > len(columns) and not cells[-1].strip():
            cells = cells[:-1]
        if not cells:
            table.left_out.append((where, "its quotes are not those of CSV"))
        elif len(cells) != len(columns):
            more = len(cells) > len(columns) and separator == ","
            hint = " (numbers such as 1,000 need quotes)" if more else ""
            reason = (
                f"does not have {len(columns)} fields as the header does, but {len(cells)}{hint}"
            )
            table.left_out.append((where, reason))
        else:
            table.records.append((where, {columns[i]: cells[i] for i in kept}))
    return table


def _row_names(header: Sequence[str], rows: Sequence[tuple[int, list[str]]]) -> bool:
    """Whether rows have names under no header, as R writes them: one cell more, in front."""
    if len(rows) < 2 or any(
        len(cells) != len(header) + 1 or not cells[-1].strip() for _, cells in rows
    ):
        return False
    first = [cells[0].strip() for _, cells in rows]
    return first == [str(i + 1) for i in range(len(first))] or not any(map(_is_number, first))


def _is_number(cell: str) -> bool:
    return number_in(cell) is not None


def _unmarked(cell: str) -> str:
    return re.sub(r"^(\*\*|__|`)(.*)\1$", r"\2", cell.strip())
