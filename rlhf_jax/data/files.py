"""Files of text and of rows, read a piece at a time: JSON lines, a JSON list, parquet, CSV, plain
text, each of the text formats also compressed with gzip.

A file that cannot be read at all (damaged gzip, another encoding, another format) is a ConfigError
that names the file and the place. A row that is not an object is yielded with the reason instead,
so that one bad row stops nothing; `LeftOut` counts such rows. Tables of runs for fits are read with
the same functions (`rlhf_jax.laws.tables`), in more dialects.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rlhf_jax.study.config import ConfigError

MAX_LINE = 1 << 28  # bytes
BLOCK = 1 << 24  # bytes of text read at once
SHOWN = 4  # reasons that a message names
_DECODER = json.JSONDecoder()
_GAP = re.compile(r"\s*,?\s*")
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"PK\x03\x04": "a spreadsheet or zip archive; save it as CSV, or unpack it first",
    b"\xd0\xcf\x11\xe0": "a spreadsheet; save it as CSV in UTF-8",
    b"\x1f\x8b": "compressed with gzip twice; unpack it once",
    b"%PDF-": "a PDF document; take the text out of it first",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself: git lfs pull",
}
_BOMS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Row(NamedTuple):
    """One row of a file: its number from 1, and its object, or the reason why it has none."""

    number: int
    value: dict[str, Any] | None
    reason: str = ""


@dataclass
class LeftOut:
    """Rows of a file that were left out, by reason: how many, and the first."""

    reasons: dict[str, list[int]] = field(default_factory=dict)

    def add(self, number: int, reason: str) -> None:
        self.reasons.setdefault(reason, [0, number])[0] += 1

    @property
    def rows(self) -> int:
        return sum(count for count, _ in self.reasons.values())

    @property
    def first(self) -> tuple[int, str]:
        """Number and reason of the first row left out."""
        return min((number, reason) for reason, (_, number) in self.reasons.items())

    def without(self, reason: str) -> tuple[int, str] | None:
        """`first`, ignoring the rows left out for `reason`."""
        others = ((n, why) for why, (_, n) in self.reasons.items() if why != reason)
        return min(others, default=None)

    def __str__(self) -> str:
        if not self.reasons:
            return "no rows left out"
        ordered = sorted(self.reasons.items(), key=lambda item: (-item[1][0], item[1][1]))
        said = [
            f"{why} (row {row})" if count == 1 else f"{why} ({count:,} rows, first row {row})"
            for why, (count, row) in ordered[:SHOWN]
        ]
        if rest := sum(count for _, (count, _) in ordered[SHOWN:]):
            said.append(f"{rest:,} more for other reasons")
        return f"{self.rows:,} row{'s' * (self.rows > 1)} left out: {'; '.join(said)}"


def is_parquet(path: Path) -> bool:
    if path.suffix == ".parquet":
        return True
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(4) == b"PAR1"
    return False


def content(path: Path) -> bytes:
    """All bytes of a file in any text encoding or parquet, unpacked if it is gzip.

    Raises:
        ConfigError: not readable, damaged, or of a format that is not read.
    """
    with _opened(path, utf8=False) as file:
        return file.read()


def text_blocks(path: Path) -> Iterator[str]:
    """The text of a file in blocks.

    Raises:
        ConfigError: not readable, damaged, or not UTF-8; with the line.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = lines = 0
    with _opened(path) as file:
        while True:
            block = file.read(BLOCK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as e:
                line = lines + 1 + e.object[: e.start].count(b"\n")
                raise ConfigError(
                    f"{path}: not readable as UTF-8 text: line {line} holds the byte "
                    f"0x{e.object[e.start]:02x} (byte {done + e.start:,} of the text). Convert it; "
                    f"from Latin-1: iconv -f LATIN1 -t UTF-8"
                ) from None
            done += len(block)
            lines += block.count(b"\n")
            if text:
                yield text
            if not block:
                return


def rows(path: Path, columns: list[str] | None = None) -> Iterator[Row]:
    """The rows of a file, numbered from 1: one a line or an element; blank lines are skipped.

    Args:
        columns: of a parquet file; None: all.

    Raises:
        ConfigError: not readable, damaged, another encoding, or a JSON list that is not JSON.
    """
    if is_parquet(path):
        yield from parquet_rows(path, path, columns)
    elif path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
        yield from _csv(path)
    else:
        with _opened(path) as file:
            yield from json_rows(path, file)


def json_rows(path: Path, file: BinaryIO) -> Iterator[Row]:
    """`rows` of JSON in UTF-8: an object a line, a list of objects, or objects over several lines;
    `path` names the file in messages."""
    number, first = 0, True
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise ConfigError(
                f"{path}, row {number}: longer than {MAX_LINE >> 20} MB; expected an object a line"
            )
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.isspace():
            continue
        if first and line.lstrip().startswith(b"["):
            yield from _list(path, line, file.read())
            return
        row = _parsed(number, line)
        if first and row.reason.startswith("not JSON") and line.lstrip().startswith(b"{"):
            text = line + file.read()
            yield from _objects(text) or _lines(number, text)
            return
        first = False
        yield row


def literal(text: str) -> Any:
    """The value that a text is as JSON, or as Python prints it; None if it is neither."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return read(text)
    return None


def _objects(text: bytes) -> list[Row]:
    """Rows of a text of JSON objects that span lines or share one, with or without commas between
    them; empty if the text is anything else."""
    found: list[Row] = []
    try:
        rest = text.decode("utf-8").strip()
        at = 0
        while at < len(rest):
            value, end = _DECODER.raw_decode(rest, at)
            found.append(object_row(len(found) + 1, value))
            gap = _GAP.match(rest, end)
            at = gap.end() if gap else end
    except (ValueError, RecursionError):
        return []
    return found


def _lines(number: int, text: bytes) -> Iterator[Row]:
    for at, line in enumerate(text.split(b"\n"), number):
        if line.strip():
            yield _parsed(at, line)


def _list(path: Path, first: bytes, rest: bytes) -> Iterator[Row]:
    """Rows of a file that is one JSON list, or of lines of which the first is a list."""
    try:
        found = json.loads(first + rest)
    except (ValueError, RecursionError) as e:
        alone = _parsed(1, first)
        if alone.reason.startswith("not JSON") or not rest.strip():
            raise ConfigError(
                f"{path}: not JSON ({_why(e)}); expected one list of objects, or an object a line"
            ) from None
        yield alone
        yield from _lines(2, rest)
        return
    for number, value in enumerate(found, 1):
        yield object_row(number, value)


def _parsed(number: int, line: bytes) -> Row:
    try:
        return object_row(number, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as e:
        return Row(number, None, f"not UTF-8 (byte 0x{line[e.start]:02x} at {e.start})")
    except (ValueError, RecursionError) as e:
        return Row(number, None, f"not JSON ({_why(e)})")


def _why(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def object_row(number: int, value: Any) -> Row:
    """The row of a JSON value, which should be an object."""
    if isinstance(value, dict):
        return Row(number, value)
    return Row(number, None, f"expected an object, got {type(value).__name__}")


def parquet_rows(path: Path, source: Any, columns: list[str] | None = None) -> Iterator[Row]:
    """`rows` of a parquet file; `source` is what pyarrow opens, `path` names it in messages."""
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        file = parquet.ParquetFile(source)
        names = file.schema_arrow.names
        if missing := next((name for name in columns or () if name not in names), None):
            raise ConfigError(f"{path}: no column {missing!r}; the columns are {names}. Add #FIELD")
        for batch in file.iter_batches(1024, columns=columns):
            for row in _plain_rows(batch):
                number += 1
                yield Row(number, row, "not UTF-8" if row is None else "")
    except ConfigError:
        raise
    except (ArrowException, OSError, ValueError) as e:
        raise ConfigError(f"{path}, row {number + 1}: not readable as parquet: {e}") from None


def _plain_rows(batch: Any) -> list[dict[str, Any] | None]:
    """Rows of a record batch; None for one that holds bytes that are not UTF-8."""
    try:
        return [
            {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}
            for row in batch.to_pylist()
        ]
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [None]
        return [row for i in range(len(batch)) for row in _plain_rows(batch.slice(i, 1))]


def _csv(path: Path) -> Iterator[Row]:
    """Rows of a table with a header, without their empty fields."""
    text = "".join(text_blocks(path))
    csv.field_size_limit(MAX_LINE)
    header = text[: text.find("\n")]
    tab = path.name.lower().removesuffix(".gz").endswith(".tsv") and "\t" in header
    separator = "\t" if tab else "," if "," in header else max(",;\t|", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    number, line, last = 0, 1, len(text.splitlines()) if text.count('"') % 2 else 0
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        if twice := next((n for i, n in enumerate(names) if n and n in names[:i]), None):
            raise ConfigError(f"{path}: two columns are called {twice!r}; rename or drop one")
        for number, row in enumerate(reader, 1):
            lines, line = reader.line_num - line, reader.line_num
            if lines > 1 and line == last:
                yield Row(number, None, f"a quote does not close: {lines:,} lines up to the end")
            elif None in row or None in row.values():
                yield Row(number, None, "another number of fields than the header")
            else:
                yield Row(number, {k: v for k, v in row.items() if v != ""})
    except csv.Error as e:
        raise ConfigError(f"{path}, row {number + 1}: not readable as CSV: {e}") from None


@contextlib.contextmanager
def _opened(path: Path, utf8: bool = True) -> Iterator[BinaryIO]:
    """The file's content, unpacked if it is gzip, whatever its name.

    Args:
        utf8: refuse UTF-16 and UTF-32.

    Raises:
        ConfigError: not readable, or in a format that is not read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if start[:2] == b"\x1f\x8b":
                file.seek(0)
                with gzip.GzipFile(fileobj=file) as unpacked:
                    _check_format(path, unpacked.peek(64)[:64], utf8)
                    yield unpacked  # type: ignore[misc]
                return
            if path.suffix.lower() == ".gz" and start:
                raise ConfigError(f"{path}: not gzip, as its name says; rename it or pack it")
            _check_format(path, start, utf8)
            file.seek(0)
            yield file
    except _DAMAGED as e:
        size, lines = _unpackable(path)
        raise ConfigError(
            f"{path}: damaged gzip file: {e}; {size:,} bytes of it can be unpacked, up to row "
            f"{lines + 1}. Get the file again, or keep what `zcat` gives of it"
        ) from None
    except OSError as e:
        raise ConfigError(f"{path}: not readable: {e.strerror or e}") from None


def _check_format(path: Path, start: bytes, utf8: bool) -> None:
    for magic, name in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise ConfigError(f"{path}: not readable as UTF-8 text: it is {name}")
    if utf8 and (wide := wide_encoding(start)):
        name = wide.removesuffix("-LE").removesuffix("-BE")
        raise ConfigError(
            f"{path}: not readable as UTF-8 text: it looks like {name}; convert it: iconv -f "
            f"{name} -t UTF-8"
        )


def wide_encoding(start: bytes) -> str:
    """UTF-32 or UTF-16 if a text that begins so is in it, by its byte-order mark or, without one,
    by where its zeros are; otherwise empty."""
    if mark := next((mark for mark in _BOMS if start.startswith(mark)), b""):
        return f"UTF-{8 * len(mark)}"
    even, odd = (start[i::2].count(0) / max(1, len(start) // 2) for i in (0, 1))
    if len(start) < 4 or min(even, odd) or max(even, odd) <= 0.8:
        return ""
    return "UTF-16-BE" if even else "UTF-16-LE"


def _unpackable(path: Path) -> tuple[int, int]:
    """Bytes and whole lines of a gzip file before its damage."""
    size, lines, step, unpack = 0, 0, 4096, zlib.decompressobj(31)
    with path.open("rb") as file:
        while block := file.read(step):
            before = unpack.copy()
            try:
                text, unpack = _unpacked(unpack, block)
            except zlib.error:
                if step == 1:
                    break
                file.seek(-len(block), os.SEEK_CUR)
                unpack, step = before, 1  # the last block byte by byte
                continue
            size, lines = size + len(text), lines + text.count(b"\n")
    return size, lines


def _unpacked(unpack: Any, block: bytes) -> tuple[bytes, Any]:
    """The text of a block of gzip members that follow each other, and the state after it."""
    text = unpack.decompress(block)
    while unpack.eof and (block := unpack.unused_data):
        unpack = zlib.decompressobj(31)
        text += unpack.decompress(block)
    return text, unpack
