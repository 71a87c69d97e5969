"""JSON files that are written whole or not at all, and known to be what was written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_jax.study.config import ConfigError, content_id, to_json

NO_PERMISSION = "this user has no permission; name another folder or change its permissions"
WHAT_TO_DO = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EFBIG: "files may not grow as large here (`ulimit -f`); raise that limit",
    errno.EROFS: "the disk is read-only; name a folder on another one",
    errno.EACCES: NO_PERMISSION,
    errno.EPERM: NO_PERMISSION,
    errno.ENAMETOOLONG: "the path is too long; name a shorter one",
    errno.ENOTDIR: "a part of the path is a file; name a folder",
    errno.EEXIST: "something of that name is there already; name another",
    errno.EISDIR: "that is a folder; name a file",
}

# The system's words for these, which libraries put into errors of their own.
PHRASES = {os.strerror(n): n for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)}
COMPACT = (",", ":")  # as `content_id` writes JSON
HALF_AN_ARRAY = re.compile(r"^\d+ requested and \d+ written$")  # numpy's


class Damaged(ConfigError):
    """A file of the runs folder that is not what was written."""


def disk_words(error: BaseException) -> str:
    """What the disk refused, and what to do about it; empty: the error is of another kind."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno in WHAT_TO_DO:
            where = f"{at.filename}: " if at.filename else ""
            return f"{where}{os.strerror(at.errno)}: {WHAT_TO_DO[at.errno]}"
        found = [number for phrase, number in PHRASES.items() if phrase in str(at)]
        if found or (isinstance(at, OSError) and HALF_AN_ARRAY.match(str(at))):
            number = found[0] if found else errno.ENOSPC
            return f"{os.strerror(number)}: {WHAT_TO_DO[number]}"
        at = at.__cause__ or at.__context__
    return ""


def write_json(path: Path, data: Any) -> None:
    """JSON, by `writing`."""
    write_text(path, json.dumps(to_json(data), indent=1))


def write_text(path: Path, text: str) -> None:
    """Text in UTF-8, line ends unchanged, by `writing`."""
    with writing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name when the block ends: readers see the old content or the new
    one, whole. If the block fails nothing is left behind, and the old file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(tmp, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except OSError as e:
        if e.errno and not e.filename:
            e.filename = str(path)
        raise
    finally:
        tmp.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The file's JSON, or None where there is no file.

    Raises:
      Damaged: it is not JSON.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return json.loads(data)
    except ValueError as e:
        raise Damaged(f"{path} is damaged: it is not JSON ({e})") from None


def write_sealed(path: Path, record: dict[str, Any]) -> None:
    """An object with the digest of its content in it."""
    write_json(path, {**record, "digest": content_id(record, 64)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, without the digest; None where there is no file. Files of older
    versions have no digest, and are not checked.

    Raises:
      Damaged: it is not what was written.
    """
    found = read_json(path)
    if found is None and not path.exists():
        return None
    if not isinstance(found, dict):
        raise Damaged(f"{path} is damaged: expected an object, found {str(found)[:40]}")
    record = {k: v for k, v in found.items() if k != "digest"}
    old = "digest" not in found and "digests" not in found
    if not old and found.get("digest") != json_digest(record, COMPACT):
        raise Damaged(f"{path} is damaged: its content is not what was written")
    return record


def json_digest(record: Any, separators: tuple[str, str] | None = None) -> str:
    """sha256 of JSON values as text with sorted keys."""
    text = json.dumps(record, sort_keys=True, separators=separators)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path, older: float = 0.0) -> None:
    """Removes the temporary files and folders of killed processes, `older` than so many seconds."""
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= older:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
