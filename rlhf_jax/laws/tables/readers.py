"""Files to records: CSV by any separator and encoding, JSON lines, JSON, parquet, each also
gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_jax.laws.tables.columns import FitError
from rlhf_jax.laws.tables.json_tables import Table, add_row, json_lines, json_table
from rlhf_jax.laws.tables.numbers import parse

SEPARATORS = (",", ";", "\t", "|")
TAKES = "a quote is opened and not closed in its row: it takes the rows below with it"
RULE = re.compile(r"[ |+:=-]*--[ |+:=-]*")  # between a header and its rows
FOREIGN = re.compile(r"\s*(?:(<!doctype html|<html)|version https://git-lfs)", re.IGNORECASE)


def read_file(path: Path) -> Table:
    """The records of a file; `.gz` is unpacked first.

    Raises:
      FitError: it is not such a file, is damaged, or holds no rows.
    """
    kind = path.suffix.lower()
    if kind == ".gz":
        kind = Path(path.stem).suffix.lower()
    readers: dict[str, Callable[[str, str], Table]] = {
        ".csv": _csv,
        ".tsv": _csv,
        ".txt": _csv,
        ".md": _csv,
        ".jsonl": json_lines,
        ".ndjson": json_lines,
        ".json": json_table,
    }
    if not path.is_file():
        raise FitError(f"{path} is not a file")
    if kind not in (*readers, ".parquet"):
        raise FitError(
            f"{path.name}: expected a .csv, .tsv, .txt, .md, .jsonl, .json or .parquet file, or "
            f"one of them with .gz; save it as CSV"
        )
    data = _bytes(path)
    if kind == ".parquet":
        table = _parquet(path.name, data)
    else:
        text, note = _text(path.name, data)
        if not text.strip():
            raise FitError(f"{path.name} is empty: a header line and a row for each run are needed")
        table = readers[kind](path.name, text)
        table.notes[:0] = note
    if not table.records:
        first = f" that can be read: {' '.join(table.left_out[0])}" if table.left_out else ""
        raise FitError(f"{path.name} has no rows{first}")
    return table


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise FitError(f"{path.name} is not readable as gzip: {e}; make or copy it again") from None
    except OSError as e:
        raise FitError(f"{path} cannot be read: {e.strerror or e}") from None


def _text(name: str, data: bytes) -> tuple[str, list[str]]:
    """(text, notes) by the byte-order mark, else UTF-8, else Windows-1252."""
    if data[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise FitError(f"{name} is a spreadsheet or zip archive, not text: save it as CSV in UTF-8")
    marks = (
        (b"\xff\xfe\x00\x00", "utf-32"),
        (b"\x00\x00\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    )
    encoding = next((of for mark, of in marks if data.startswith(mark)), "utf-8-sig")
    head = data[:1000]
    if encoding == "utf-8-sig" and len(head) > 3 and b"\0" in head:  # UTF-16 without its mark
        odd, even = head[1::2].count(0), head[::2].count(0)
        if max(odd, even) > 0.8 * (len(head) // 2) and min(odd, even) == 0:
            encoding = "utf-16-le" if odd else "utf-16-be"
    notes = []
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise FitError(f"{name} is not whole {encoding}: save it as CSV in UTF-8") from None
        text = data.decode("cp1252", errors="replace")
        notes = [f"{name} is not UTF-8; read as Windows-1252"]
    if found := FOREIGN.match(text):
        what, do = (
            ("a web page", "download the file itself")
            if found[1]
            else ("a Git LFS pointer, not the file", "run `git lfs pull`")
        )
        raise FitError(f"{name} is {what}: {do}")
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
        named = [
            cell.strip() for cell in comment.split(separator if separator in comment else None)
        ]
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
    """Whether every line has as many words, two at least."""
    counts = {len(line.split()) for line in lines if line.strip() and not line.startswith("#")}
    return len(counts) == 1 and counts.pop() > 1


def _separator(header: str, below: Sequence[str]) -> str:
    """The one that cuts the header into most fields, the same in the lines below where that
    tells."""
    bare = re.sub(r'"[^"]*"', "", header)
    counts = {mark: bare.count(mark) for mark in SEPARATORS}
    agree = {
        mark: sum(line.count(mark) >= counts[mark] for line in below if line.strip())
        for mark in SEPARATORS
    }
    return max(
        SEPARATORS,
        key=lambda mark: (counts[mark] > 0, agree[mark] if counts[mark] else 0, counts[mark]),
    )


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
                    raise FitError(f"{name}:{begun}: {TAKES}") from None
                rows.append((begun, []))  # such as `"a"b`: said where the row is left out
                continue
            _swallowed(name, begun, cells, len(rows[0][1]) if rows else 0, separator)
            if (
                any(cell.strip() for cell in cells) and not cells[0].lstrip().startswith("#")
            ) or not rows:
                rows.append((begun, cells))
    finally:
        csv.field_size_limit(limit)
    return rows


def _swallowed(name: str, line: int, cells: Sequence[str], width: int, separator: str) -> None:
    """A quote that closes in a later row takes the rows between with it."""
    for cell in cells:
        if "\n" not in cell or len(cell) > 10**6 or not width:
            continue
        for i, inner in enumerate(cell.split("\n")):
            parts = inner.split(separator)
            if i and len(parts) >= max(width - 1, 2) and sum(map(_is_number, parts)) >= 2:
                raise FitError(f"{name}:{line}: {TAKES}")


def _records(
    name: str, header: list[str], rows: Sequence[tuple[int, list[str]]], separator: str
) -> Table:
    width = len(header)
    while width and not header[width - 1]:
        width -= 1
    named = _row_names(header[:width], rows)
    columns = ([""] if named else []) + header[:width]
    kept: list[int] = []
    for i, column in enumerate(columns):
        if column and column not in columns[:i]:
            kept.append(i)
    table = Table([columns[i] for i in kept], [], separator)
    table.twice = {column for i, column in enumerate(columns) if column and column in columns[:i]}
    for line, cells in rows:
        where = f"{name}:{line}"
        while len(cells) > len(columns) and not cells[-1].strip():
            cells = cells[:-1]
        if not cells:
            table.left_out.append((where, "its quotes are not those of CSV"))
        elif len(cells) != len(columns):
            hint = (
                " (numbers such as 1,000 need quotes)"
                if len(cells) > len(columns) and separator == ","
                else ""
            )
            table.left_out.append(
                (
                    where,
                    f"does not have {len(columns)} fields as the header does, but "
                    f"{len(cells)}{hint}",
                )
            )
        else:
            table.records.append((where, {columns[i]: cells[i] for i in kept}))
    return table


def _row_names(header: Sequence[str], rows: Sequence[tuple[int, list[str]]]) -> bool:
    """R writes row names under no header: every row has one cell more, in front."""
    if len(rows) < 2 or any(
        len(cells) != len(header) + 1 or not cells[-1].strip() for _, cells in rows
    ):
        return False
    first = [cells[0].strip() for _, cells in rows]
    return first == [str(i + 1) for i in range(len(first))] or not any(map(_is_number, first))


def _unmarked(cell: str) -> str:
    return re.sub(r"^(\*\*|__|`)(.*)\1$", r"\2", cell.strip())


def _is_number(cell: str) -> bool:
    try:
        parse(cell)
    except ValueError:
        return False
    return True


# --- parquet ---------------------------------------------------------------------------------


def _parquet(name: str, data: bytes) -> Table:
    from pyarrow import ArrowException, BufferReader, parquet

    try:
        rows = parquet.ParquetFile(BufferReader(data)).read().to_pylist()
    except (ArrowException, OSError, ValueError) as e:
        raise FitError(f"{name} is not readable as parquet: {e}") from None
    table = Table([], [])
    for number, row in enumerate(rows, 1):
        add_row(table, f"{name}:{number}", row)
    return table
