"""Documents of a source: a packaged one by name, a TFDS dataset, or the user's own files."""

from __future__ import annotations

import glob
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..config import ConfigError, suggest
from ..outside import call_for_texts, is_callable
from .packaged import PACKAGED, Documents, text_hash

FORMATS = (".txt", ".jsonl", ".json", ".parquet")  # each but parquet also with .gz
PASSAGE = 4000  # characters


def files(source: str) -> tuple[list[Path], str]:
    """The files of a `path-or-glob[#FIELD]` source, sorted, and the field that holds the text.

    Raises:
        ConfigError: no such file, an unknown format, or (for one word) an unknown packaged source.
    """
    pattern, field = pattern_of(source)
    found = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if Path(pattern).is_file():  # whatever its name looks like
        found = [Path(pattern)]
    if not found:
        hint = suggest(source, list(PACKAGED)) if re.fullmatch(r"[\w-]+", source) else ""
        raise ConfigError(
            f"source {source!r}: not a packaged source and no file there.{hint} Expected a packaged "
            "name, tfds:NAME, a path or glob, each optionally followed by #FIELD, or MODULE:FUNCTION"
        )
    for path in found:
        if not path.name.removesuffix(".gz").endswith(FORMATS):
            raise ConfigError(
                f"source {source!r}: {path.name} is none of {', '.join(FORMATS)} (or those with .gz)"
            )
    return found, field


def pattern_of(source: str) -> tuple[str, str]:
    """The path or glob of a source of files, and the field that holds the text."""
    pattern, _, field = source.partition("#")
    return (source, "text") if Path(source).is_file() else (pattern, field or "text")


def is_tfds(source: str) -> bool:
    return source.startswith("tfds:") and not Path(source.partition("#")[0]).is_file()


def documents(source: str, cache: Path) -> Documents:
    """(id, text) of every document of a source; see `CorpusConfig.sources` for the forms.

    Args:
        source: a packaged name, `tfds:NAME[/CONFIG]`, or a path or glob; optionally `#FIELD`; or
            `MODULE:FUNCTION`, which gives texts and must give the same ones each time.
        cache: the folder in which archives of packages are kept.

    Raises:
        ConfigError: unknown source, unreadable or malformed file (with file and row number), a
            text that is not the pinned one.
    """
    if source in PACKAGED:
        packaged = PACKAGED[source]
        found = list(packaged.read(packaged.archive, cache))
        if (got := text_hash(found)) != packaged.text_sha256:
            raise ConfigError(
                f"source {source!r}: the extracted text has hash {got}, expected {packaged.text_sha256}; "
                "the archive or its reader changed. Delete the archive, or pin the new text"
            )
        yield from found
    elif is_tfds(source):
        yield from _tfds(source.removeprefix("tfds:"))
    elif is_callable(source):
        for i, text in enumerate(call_for_texts(source, "corpus.sources")):
            yield str(i), text
    else:
        paths, field = files(source)
        for path in paths:
            for row, text in _texts(path, field):
                if text.strip():
                    yield f"{path.name}:{row}", text.replace("\r\n", "\n")


def _texts(path: Path, field: str) -> Iterator[tuple[int, str]]:
    """(row number from 1, text) of one file; of a .txt file the passages."""
    if path.suffix == ".parquet":
        yield from _parquet(path, field)
        return
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not readable as UTF-8 text: {e}") from None
    if path.name.removesuffix(".gz").endswith(".txt"):
        yield from enumerate(passages(text), 1)
        return
    for row, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as e:
                raise ConfigError(
                    f"{path}, row {row}: not JSON ({e}); expected one object a line"
                ) from None
            yield row, _field(record, field, f"{path}, row {row}")


def passages(text: str) -> Iterator[str]:
    """A long text in documents: cut at blank lines into passages of at least `PASSAGE` characters,
    so that one big file can be split into training and validation at all."""
    passage = ""
    for paragraph in re.split(r"(?:\r?\n){2,}", text):
        passage += f"\n\n{paragraph}" if passage else paragraph
        if len(passage) >= PASSAGE:
            yield passage
            passage = ""
    if passage.strip():
        yield passage


def _field(record: object, field: str, where: str) -> str:
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, str):
        keys = list(record) if isinstance(record, dict) else type(record).__name__
        raise ConfigError(
            f"{where}: no string in field {field!r}; the row has {keys}. Name the field that holds "
            "the text with #FIELD after the path"
        )
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise ConfigError(f"{where}: not valid Unicode text: {e}") from None
    return value


def _parquet(path: Path, field: str) -> Iterator[tuple[int, str]]:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.ParquetFile(path)
    except (ArrowException, OSError) as e:
        raise ConfigError(f"{path}: not readable as parquet: {e}") from None
    if field not in (names := table.schema_arrow.names):
        raise ConfigError(f"{path}: no column {field!r}; the columns are {names}. Add #FIELD")
    row = 0
    for batch in table.iter_batches(columns=[field]):
        for value in batch.column(0).to_pylist():
            row += 1
            yield row, _field({field: value}, field, f"{path}, row {row}")


def _tfds(source: str) -> Documents:
    """All splits of a prepared (or downloadable without TensorFlow) TFDS dataset, as array_record."""
    import tensorflow_datasets as tfds

    name, _, field = source.partition("#")
    field = field or "text"
    try:
        data = tfds.data_source(name, builder_kwargs={"file_format": "array_record"})
    except Exception as e:
        raise ConfigError(f"source tfds:{name}: {type(e).__name__}: {e}") from e
    for split in sorted(data):
        for i, record in enumerate(data[split]):
            value = record.get(field)
            text = value.decode() if isinstance(value, bytes) else value
            yield f"{split}:{i}", _field({**record, field: text}, field, f"tfds:{name} {split} {i}")
