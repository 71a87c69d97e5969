"""Which prepared corpus a configuration asks for: by the content of its sources, wherever they lie.

`ROOT/data/index/` is a cache: KEY.json names the folder of a corpus, and `digests` holds the
digests of source files, so that big ones are read once and a corpus is known by them when they are
gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import glob
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from rlhf_jax.data.integrity import MANIFEST, locked, manifest_text, read_manifest, replace, warn
from rlhf_jax.data.sources import FORMATS, PACKAGED, files, is_tfds, pattern_of
from rlhf_jax.study.callables import file_hash, is_callable, source_hash
from rlhf_jax.study.config import ConfigError, CorpusConfig, content_id, to_json

FORMAT = 1  # of what is derived from text; a change of packing or splitting rules raises it
SETTLED = 1.0  # seconds after which a file that is written again has another time


class Digests:
    """Digests of source files and callables, kept in `data`/index/digests."""

    def __init__(self, data: Path | None) -> None:
        self.path = data / "index" / "digests" if data else None
        self.new: dict[str, dict[str, Any]] = {}
        self.known = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = json.loads(self.path.read_text()) if self.path else {}
            return {k: v for k, v in found.items() if {"digest", "stat", "time"} <= set(v)}
        return {}

    def _note(self, key: str, digest: str, state: list[int], begin: float) -> str:
        self.known[key] = self.new[key] = {"digest": digest, "stat": state, "time": begin}
        return digest

    def of_file(self, path: Path) -> str:
        """sha256 of a file, which is read again only if its size or times are others."""
        stat, key = path.stat(), _absolute(path)
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        old = self.known.get(key, {})
        settled = max(state[1:]) / 1e9 + SETTLED < old.get("time", 0.0)
        return old["digest"] if settled and old["stat"] == state else self._new(key, path, state)

    def _new(self, key: str, path: Path, state: list[int]) -> str:
        begin = time.time()
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as e:
            raise ConfigError(f"{path}: not readable: {e.strerror or e}") from None
        return self._note(key, digest, state, begin)

    def of_callable(self, source: str) -> str:
        digest = source_hash(source)
        if self.known.get(source, {}).get("digest") != digest:
            self._note(source, digest, [], time.time())
        return digest

    def of(self, name: str, is_file: bool) -> tuple[str, bool]:
        """The hash of a file of records or a callable, and whether it is gone and only
        remembered."""
        try:
            return (self.of_file(Path(name))[:16] if is_file else self.of_callable(name)), False
        except (OSError, ConfigError):
            old = self.known.get(_absolute(Path(name)) if is_file else name)
            if old is None or Path(name).exists():
                return (file_hash(name) if is_file else source_hash(name)), False  # says why not
            return old["digest"][:16], True

    def gone(self, pattern: str) -> dict[str, str]:
        """The digests of files that a pattern named when they were there, by path."""
        wanted = _absolute(Path(pattern))
        named = [k for k in self.known if k == wanted or fnmatch.fnmatchcase(k, wanted)]
        return {k: self.known[k]["digest"] for k in named}

    def save(self) -> None:
        """Where the runs folder is there and can be written to."""
        if self.new and self.path and self.path.parent.is_dir():
            with contextlib.suppress(OSError):
                replace(self.path, json.dumps(self._read() | self.new))


def _absolute(path: Path) -> str:
    """A path without `.`, `..` and links in front of its name, which may be a pattern."""
    if glob.has_magic(str(path.parent)):
        return os.path.abspath(path)
    return str(path.parent.resolve() / path.name)


def _format(name: str) -> str:
    """How a file is read, by the end of its name."""
    name = name.lower()
    plain = name.removesuffix(".gz")
    return next(f for f in FORMATS if plain.endswith(f)) + name[len(plain) :]


def _files(source: str, digests: Digests) -> tuple[list[Any], bool]:
    """(format, digest) of the files of a source, and whether they are gone."""
    pattern, field = pattern_of(source)
    try:
        found = [[_format(p.name), digests.of_file(p)] for p in files(source)[0]]
    except ConfigError:
        gone = digests.gone(pattern)
        if not gone or glob.glob(pattern, recursive=True):
            raise
        found = [[_format(Path(p).name), digest] for p, digest in gone.items()]
        return [field, sorted(found)], True
    return [field, sorted(found)], False


def states(cfg: CorpusConfig, digests: Digests) -> tuple[list[Any], list[str]]:
    """The content of every source, and those sources that are gone, whose content is remembered.

    Raises:
        ConfigError: an unknown source, or one that is gone and not remembered.
    """
    found: list[Any] = []
    missing: list[str] = []
    for source in sorted(set(cfg.sources)):
        if source in PACKAGED:
            state: list[Any] = [source, PACKAGED[source].text_sha256]
        elif is_tfds(source):
            state = [source]
        elif is_callable(source):
            digest, gone = digests.of(source, is_file=False)
            state = [source, digest]
            missing += [source] * gone
        else:
            state, gone = _files(source, digests)
            missing += [source] * gone
        found.append(state)
    return sorted(found, key=repr), missing


def recipe(cfg: CorpusConfig, digests: Digests | None = None) -> str:
    """Key of a prepared corpus: the configuration and the content of its sources.

    Raises:
        ConfigError: an unknown source.
    """
    return _key(cfg, states(cfg, digests or Digests(None))[0])


def _key(cfg: CorpusConfig, sources: list[Any]) -> str:
    config = to_json(cfg) | {"sources": [], "heldout_tokens": 0}
    return content_id({"format": FORMAT, "config": config, "sources": sources}, 16)


def _first_key(cfg: CorpusConfig) -> str:
    """The key that index entries of the first release have: paths, sizes and times of files."""
    state: list[Any] = []
    for source in sorted(cfg.sources):
        if source in PACKAGED or is_tfds(source) or is_callable(source):
            state += states(dataclasses.replace(cfg, sources=(source,)), Digests(None))[0]
        else:
            stats = [(str(p.resolve()), p.stat()) for p in files(source)[0]]
            state.append([source, [[name, s.st_size, s.st_mtime_ns] for name, s in stats]])
    return _key(cfg, state)


def locate(cfg: CorpusConfig, data: Path) -> tuple[str, Path | None, list[str]]:
    """The key of a configuration, the folder of its corpus if one is prepared, and sources that
    are gone.

    Raises:
        ConfigError: a source that is unknown, or gone and no corpus of it is there.
    """
    digests = Digests(data)
    sources, gone = states(cfg, digests)
    digests.save()
    key = _key(cfg, sources)
    folder = _indexed(data, key)
    if folder is None and not gone and (folder := _indexed(data, _first_key(cfg))):
        write_index(data, key, folder, cfg)
    if folder is None:
        for path in sorted(data.glob("*/manifest.json")):
            with contextlib.suppress(ConfigError):
                if key in read_manifest(path.parent).get("recipes", ()):
                    folder = path.parent
                    write_index(data, key, folder, cfg)
    if folder is None and gone:
        files(gone[0]) if not is_callable(gone[0]) else source_hash(
            gone[0]
        )  # says what is not there
    return key, folder, gone


def note_recipe(folder: Path, key: str, left_out: dict[str, str] | None = None) -> None:
    """In the manifest, which is read where the index has no entry; with what was left out of the
    sources."""
    if key in read_manifest(folder).get("recipes", ()):
        return
    with contextlib.suppress(OSError), locked(folder.parent / "adopt.lock", warn):
        manifest = read_manifest(folder)
        manifest["recipes"] = sorted({*manifest.get("recipes", ()), key})
        if left_out:
            manifest["left_out"] = manifest.get("left_out", {}) | {key: left_out}
        replace(folder / MANIFEST, manifest_text(manifest))


def _indexed(data: Path, key: str) -> Path | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        folder = data / json.loads((data / "index" / f"{key}.json").read_text())["folder"]
        if folder.is_dir() and folder.parent == data:
            return folder
    return None


def write_index(data: Path, key: str, folder: Path, cfg: CorpusConfig) -> None:
    """Where the runs folder can be written to; without an entry the manifests are read."""
    entry = json.dumps({"folder": folder.name, "sources": list(cfg.sources)})
    with contextlib.suppress(OSError):
        (data / "index").mkdir(exist_ok=True)
        replace(data / "index" / f"{key}.json", entry)
