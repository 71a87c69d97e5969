"""Caches in JSON files that later commands read, such as digests of source files and callables."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rlhf_jax.study.callables import file_hash, source_hash
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import file_digest, write_text

SETTLED = 1.0  # seconds; a later write gives a file another modification time


class Remembered:
    """A cache in a JSON file: empty if the file cannot be read; not saved if it cannot be written.

    Attributes:
        known: entries by key.
    """

    def __init__(self, path: Path | None, fields: Collection[str]) -> None:
        """`fields`: entries without them are ignored. `path` None: nothing is saved."""
        self.path, self.fields = path, set(fields)
        self.new: dict[str, dict[str, Any]] = {}
        self.known = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            found = json.loads(self.path.read_text()) if self.path else {}
            return {key: entry for key, entry in found.items() if self.fields <= set(entry)}
        return {}

    def add(self, key: str, entry: dict[str, Any]) -> None:
        self.known[key] = self.new[key] = entry

    def save(self) -> None:
        """Adds the new entries to the file, where its folder is there and can be written to."""
        if self.new and self.path and self.path.parent.is_dir():
            with contextlib.suppress(OSError):
                write_text(self.path, json.dumps(self._read() | self.new))


class Digests(Remembered):
    """Digests of source files and callables, kept in `data`/index/digests: big files are read once,
    and a deleted file's digest stays known."""

    def __init__(self, data: Path | None) -> None:
        super().__init__(data / "index" / "digests" if data else None, ("digest", "stat", "time"))

    def of_file(self, path: Path) -> str:
        """sha256 of a file, which is read again only if its size or times have changed."""
        stat, key = path.stat(), _absolute(path)
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        old = self.known.get(key, {})
        settled = max(state[1:]) / 1e9 + SETTLED < old.get("time", 0.0)
        return old["digest"] if settled and old["stat"] == state else self._new(key, path, state)

    def _new(self, key: str, path: Path, state: list[int]) -> str:
        begin = time.time()
        try:
            digest = file_digest(path)
        except OSError as e:
            raise ConfigError(f"{path}: not readable: {e.strerror or e}") from None
        self.add(key, {"digest": digest, "stat": state, "time": begin})
        return digest

    def of_callable(self, source: str) -> str:
        digest = source_hash(source)
        if self.known.get(source, {}).get("digest") != digest:
            self.add(source, {"digest": digest, "stat": [], "time": time.time()})
        return digest

    def of(self, name: str, is_file: bool) -> tuple[str, bool]:
        """The hash of a file of records or a callable, and whether it is gone and only
        remembered."""
        try:
            return self.of_file(Path(name))[:16] if is_file else self.of_callable(name), False
        except (OSError, ConfigError):
            old = self.known.get(_absolute(Path(name)) if is_file else name)
            if old is None or Path(name).exists():  # raises, with the reason
                return file_hash(name) if is_file else source_hash(name), False
            return old["digest"][:16], True

    def gone(self, pattern: str) -> dict[str, str]:
        """The digests of files that a pattern named when they were there, by path."""
        wanted = _absolute(Path(pattern))
        named = [k for k in self.known if k == wanted or fnmatch.fnmatchcase(k, wanted)]
        return {k: self.known[k]["digest"] for k in named}


def _absolute(path: Path) -> str:
    """A path without `.`, `..` and links in front of its name, which may be a pattern."""
    if glob.has_magic(str(path.parent)):
        return os.path.abspath(path)
    return str(path.parent.resolve() / path.name)
