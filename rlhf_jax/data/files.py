"""Files of text and of rows, read a piece at a time: JSON lines, a JSON list, parquet, CSV, plain
text, each of the text formats also compressed with gzip.

What makes a whole file unreadable (damaged gzip, another encoding, another format) is a ConfigError
that names the file and the place. A row that is no object is given with the reason instead, so that
one bad row stops nothing; `LeftOut` counts such rows.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rlhf_jax.study.config import ConfigError

LONGEST = 1 << 28  # bytes of a line
BLOCK = 1 << 24  # bytes of text read at once
SHOWN = 4  # reasons that a message names
_DECODER = json.JSONDecoder()
_GAP = re.compile(r"\s*,?\s*")
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_OTHER_FORMATS = {
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\x1f\x8b": "compressed with gzip twice; unpack it once",
    b"%PDF-": "a PDF document; take the text out of it first",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself: git lfs pull",
    codecs.BOM_UTF32_LE: "UTF-32; convert it: iconv -f UTF-32 -t UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16; convert it: iconv -f UTF-16 -t UTF-8",
}


class Row(NamedTuple):
    """One row of a file: its number from 1, and the object or the reason why it is none."""

    number: int
    value: dict[str, Any] | None
    reason: str = ""


class LeftOut:
    """Rows of a file that were left out, by reason: how many, and the first."""

    def __init__(self) -> None:
        self.reasons: dict[str, list[int]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LeftOut) and self.reasons == other.reasons

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
        """`first` of the other reasons, if there are others."""
        return min(
            ((n, why) for why, (_, n) in self.reasons.items() if why != reason), default=None
        )

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


def text_blocks(path: Path) -> Iterator[str]:
    """The text of a file in blocks.

    Raises:
        ConfigError: not readable, damaged, or not UTF-8; with the line.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = lines = 0
    with _opened(path) as file:
        while True:
            block = _read(path, file, BLOCK)
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
    """The rows of a file, numbered from 1: a line or an element each; blank lines are none.

    Args:
        columns: of a parquet file; None: all.

    Raises:
        ConfigError: not readable, damaged, another encoding, or one JSON text that is none.
    """
    if is_parquet(path):
        yield from _parquet(path, columns)
    elif path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
        yield from _csv(path)
    else:
        yield from _json_rows(path)


def _json_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        number, first = 0, True
        while line := _line(path, file, number + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.isspace():
                continue
            if first and line.lstrip().startswith(b"["):
                yield from _list(path, line, _read(path, file, -1))
                return
            row = _parsed(number, line)
            if first and row.reason.startswith("not JSON") and line.lstrip().startswith(b"{"):
                rest = _read(path, file, -1)
                yield from _objects(line + rest) or _lines(number, line + rest)
                return
            first = False
            yield row


def _objects(text: bytes) -> list[Row]:
    """Rows of JSON objects that do not stand in a line each: one in several lines, or several in a
    line, perhaps with commas between them. None, if the text is something else."""
    found: list[Row] = []
    try:
        rest = text.decode("utf-8").strip()
        at = 0
        while at < len(rest):
            value, end = _DECODER.raw_decode(rest, at)
            found.append(_object(len(found) + 1, value))
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
    """Rows of a file that is one JSON list, or whose first line is a list."""
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
        yield _object(number, value)


def _parsed(number: int, line: bytes) -> Row:
    try:
        return _object(number, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as e:
        return Row(number, None, f"not UTF-8 (byte 0x{line[e.start]:02x} at {e.start})")
    except (ValueError, RecursionError) as e:
        return Row(number, None, f"not JSON ({_why(e)})")


def _why(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _object(number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(number, value)
    return Row(number, None, f"expected an object, got {type(value).__name__}")


def _parquet(path: Path, columns: list[str] | None) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(1024, columns=columns):
            for row in _plain_rows(batch):
                number += 1
                yield Row(number, row, "not UTF-8" if row is None else "")
    except (ArrowException, OSError) as e:
        raise ConfigError(f"{path}, row {number + 1}: not readable as parquet: {e}") from None


def _plain_rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    """Rows of a record batch; None for one that holds bytes that are not UTF-8."""
    try:
        found = batch.to_pylist()
    except UnicodeDecodeError:
        if len(batch) == 1:
            yield None
        else:
            for i in range(len(batch)):
                yield from _plain_rows(batch.slice(i, 1))
        return
    for row in found:
        try:
            yield {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}
        except UnicodeDecodeError:
            yield None


def _csv(path: Path) -> Iterator[Row]:
    """Rows of a table with a header; an empty field is one that is not there."""
    text = "".join(text_blocks(path))
    csv.field_size_limit(LONGEST)
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
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's content, unpacked if it is gzip, whatever its name.

    Raises:
        ConfigError: not readable, or in a format that is not read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if start[:2] == b"\x1f\x8b":
                file.seek(0)
                with gzip.GzipFile(fileobj=file) as unpacked:
                    with contextlib.suppress(*_DAMAGED):
                        _check_format(path, unpacked.peek(64)[:64])
                    yield unpacked  # type: ignore[misc]
                return
            if path.suffix.lower() == ".gz" and start:
                raise ConfigError(f"{path}: not gzip, as its name says; rename it or pack it")
            _check_format(path, start)
            file.seek(0)
            yield file
    except OSError as e:
        raise ConfigError(f"{path}: not readable: {e.strerror or e}") from None


def _check_format(path: Path, start: bytes) -> None:
    for magic, name in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise ConfigError(f"{path}: not readable as UTF-8 text: it is {name}")
    even, odd = set(start[::2]), set(start[1::2])
    if len(start) >= 4 and ((even == {0}) != (odd == {0})):
        raise ConfigError(
            f"{path}: not readable as UTF-8 text: it looks like UTF-16; convert it: iconv -f "
            "UTF-16 -t UTF-8"
        )


def _line(path: Path, file: BinaryIO, number: int) -> bytes:
    try:
        line = file.readline(LONGEST)
    except _DAMAGED as e:
        raise _damaged(path, e) from None
    if len(line) == LONGEST:
        raise ConfigError(
            f"{path}, row {number}: longer than {LONGEST >> 20} MB; expected an object a line"
        )
    return line


def _read(path: Path, file: BinaryIO, size: int) -> bytes:
    try:
        return file.read(size)
    except _DAMAGED as e:
        raise _damaged(path, e) from None


def _damaged(path: Path, error: Exception) -> ConfigError:
    size, lines = _unpackable(path)
    return ConfigError(
        f"{path}: damaged gzip file: {error}; {size:,} bytes of it can be unpacked, up to row "
        f"{lines + 1}. Get the file again, or keep what `zcat` gives of it"
    )


def _unpackable(path: Path) -> tuple[int, int]:
    """Bytes and whole lines before the damage of a gzip file."""
    size = lines = 0
    unpack = zlib.decompressobj(31)
    with path.open("rb") as file:
        while block := file.read(4096):
            before = unpack.copy()
            try:
                text, unpack = _unpacked(unpack, block)
            except zlib.error:
                text = b""
                with contextlib.suppress(zlib.error):
                    for i in range(len(block)):
                        more, before = _unpacked(before, block[i : i + 1])
                        text += more
                return size + len(text), lines + text.count(b"\n")
            size, lines = size + len(text), lines + text.count(b"\n")
    return size, lines


def _unpacked(unpack: Any, block: bytes) -> tuple[bytes, Any]:
    """What a block of one or several gzip files that follow each other holds."""
    text = unpack.decompress(block)
    while unpack.eof and (block := unpack.unused_data):
        unpack = zlib.decompressobj(31)
        text += unpack.decompress(block)
    return text, unpack
