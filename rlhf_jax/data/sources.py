"""Documents of a source: a packaged one by name, a TFDS dataset, or the user's own files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from rlhf_jax.data.files import LeftOut, rows, text_blocks
from rlhf_jax.data.packaged import PACKAGED, Documents, text_hash
from rlhf_jax.data.passages import SHARES, passages
from rlhf_jax.study.callables import call_for_each, is_callable
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.messages import not_unicode, suggest

FORMATS = (".txt", ".jsonl", ".json", ".parquet")  # each but parquet also with .gz


def unpacked_name(name: str) -> str:
    """A file's name in lower case without .gz."""
    return name.lower().removesuffix(".gz")


def files(source: str) -> tuple[list[Path], str]:
    """The files of a `path-or-glob[#FIELD]` source, sorted, and the field that holds the text.

    Raises:
        ConfigError: no such file, an unknown format, or (for one word) an unknown packaged source.
    """
    pattern, field = pattern_of(source)
    found = _matches(pattern)
    if not found:
        if folder := next(filter(os.path.isdir, (source, pattern)), None):
            example = str(Path(folder) / "*.jsonl")
            raise ConfigError(f"source {source!r} is a folder; name its files, as {example!r}")
        hint = suggest(source, list(PACKAGED)) if re.fullmatch(r"[\w-]+", source) else ""
        raise ConfigError(
            f"source {source!r}: not a packaged source and no file there.{hint} Expected a "
            f"packaged name, tfds:NAME, a path or glob, each optionally followed by #FIELD, or "
            "MODULE:FUNCTION"
        )
    for path in found:
        if not unpacked_name(path.name).endswith(FORMATS):
            raise ConfigError(
                f"source {source!r}: {path.name} is none of {', '.join(FORMATS)} (or those with "
                ".gz); plain text must have a name that ends in .txt, anything else must be a row "
                "of JSON a document"
            )
    return found, field


def pattern_of(source: str) -> tuple[str, str]:
    """The path or glob of a source of files, and the field that holds the text. Of three readings
    (no field, one after the last #, one after the first) the first that finds files, else the
    last."""
    path, mark, field = source.rpartition("#")
    for pattern, named in [(source, "text"), (path, field or "text")] if mark else []:
        if _matches(pattern):
            return pattern, named
    pattern, _, field = source.partition("#")
    return pattern, field or "text"


def _matches(pattern: str) -> list[Path]:
    """The files of a path or glob, sorted. The name of an existing file is no glob, even if [, ], *
    or ? are in it."""
    try:
        if Path(pattern).is_file():
            return [Path(pattern)]
        found = glob.glob(_literal_head(pattern), recursive=True)
        return sorted(Path(p) for p in found if Path(p).is_file())
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return []


def _literal_head(pattern: str) -> str:
    """A glob in which the folders that exist are escaped."""
    parts = Path(pattern).parts
    n = 0
    while n < len(parts) and Path(*parts[: n + 1]).is_dir():
        n += 1
    return os.path.join(*map(glob.escape, parts[:n]), *parts[n:]) if parts else pattern


def is_tfds(source: str) -> bool:
    return source.startswith("tfds:") and not Path(pattern_of(source)[0]).is_file()


def documents(
    source: str,
    cache: Path,
    log: Callable[[str], None] = lambda _: None,
    left_out: dict[str, str] | None = None,
) -> Documents:
    """(id, text) of every document of a source; see `CorpusConfig.sources` for the forms.

    Args:
        source: a packaged name, `tfds:NAME[/CONFIG]`, or a path or glob; optionally `#FIELD`; or
            `MODULE:FUNCTION`, which must give the same texts each time.
        cache: the folder in which archives of packages are kept.
        log: is told which rows of a file are left out, and why.
        left_out: gets the same, by file.

    Raises:
        ConfigError: unknown source, an unreadable file (with the place) or one without a usable
            row, a text that is not the pinned one.
    """
    if source in PACKAGED:
        packaged = PACKAGED[source]
        found = list(packaged.read(packaged.archive, cache))
        if (got := text_hash(found)) != packaged.text_sha256:
            raise ConfigError(
                f"source {source!r}: the extracted text has hash {got}, expected "
                f"{packaged.text_sha256}; the archive or its reader changed. Delete the archive, "
                "or pin the new text"
            )
        yield from found
    elif is_tfds(source):
        yield from _tfds(source.removeprefix("tfds:"))
    elif is_callable(source):
        for i, text in enumerate(call_for_each(source, "corpus.sources", (), str, "texts")):
            yield str(i), text
    else:
        paths, field = files(source)

        def say(path: Path, what: str) -> None:
            log(f"{path}: {what}")
            if left_out is not None:
                left_out[str(path)] = what

        for path in paths:
            empty = True
            for row, text in _texts(path, field, SHARES // len(paths), say):
                if text.strip():
                    empty = False
                    yield f"{path.name}:{row}", text.replace("\r\n", "\n")
            if empty:
                say(path, "no text in it")


def _texts(
    path: Path, field: str, shares: int, say: Callable[[Path, str], None]
) -> Iterator[tuple[int, str]]:
    """(row number from 1, text) of one file; of a .txt file the `passages`."""
    if unpacked_name(path.name).endswith(".txt"):
        yield from enumerate(passages(text_blocks(path), shares), 1)
        return
    left, used = LeftOut(), 0
    for number, row, reason in rows(path, [field]):
        try:
            if row is None:
                raise ConfigError(reason)
            text = _field(row, field)
        except ConfigError as e:
            left.add(number, str(e))
            continue
        used += 1
        yield number, text
    if left.rows and not used:
        number, reason = left.first
        raise ConfigError(f"{path}, row {number}: {reason}. No row of the file can be used")
    if left.rows:
        say(path, str(left))


def _field(row: dict, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        has = f"it is of type {type(value).__name__}; " if field in row else ""
        raise ConfigError(
            f"no string in field {field!r}; {has}the row has {str(list(row))[:200]}. Name the "
            f"field that holds the text with #FIELD after the path"
        )
    if not_unicode(value):  # no more of it, so that the reasons of rows are the same
        raise ConfigError(
            f"not valid Unicode text in field {field!r}: it holds half of a surrogate pair"
        )
    return value


def _tfds(source: str) -> Documents:
    """All splits of a TFDS dataset, prepared or downloadable without TensorFlow."""
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
            try:
                text = value.decode() if isinstance(value, bytes) else value
                yield f"{split}:{i}", _field({**record, field: text}, field)
            except (ConfigError, UnicodeDecodeError) as e:
                raise ConfigError(f"tfds:{name} {split} {i}: {e}") from None
