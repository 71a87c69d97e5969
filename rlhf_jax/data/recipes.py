"""Finds the prepared corpus of a configuration by the content of its sources, whatever their paths.

`ROOT/data/index/` is a cache: KEY.json names the folder of a corpus, and `digests` holds the
digests of source files (`rlhf_jax.study.digests`), so that a corpus is still found when they are
gone.
"""

from __future__ import annotations

import contextlib
import glob
import json
from pathlib import Path
from typing import Any

from rlhf_jax.data.integrity import MANIFEST, locked, manifest_text, read_manifest
from rlhf_jax.data.sources import FORMATS, PACKAGED, files, is_tfds, pattern_of, unpacked_name
from rlhf_jax.study.callables import is_callable, source_hash
from rlhf_jax.study.config import ConfigError, CorpusConfig, content_id, to_json
from rlhf_jax.study.digests import Digests
from rlhf_jax.study.files import write_text
from rlhf_jax.study.messages import warn

FORMAT = 1  # of what is derived from text; a change of packing or splitting rules raises it


def _format(name: str) -> str:
    """How a file is read, by the end of its name."""
    plain = unpacked_name(name)
    return next(f for f in FORMATS if plain.endswith(f)) + name.lower()[len(plain) :]


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


def _state(source: str, digests: Digests) -> tuple[list[Any], bool]:
    """The content of a source, and whether it is gone and its content only remembered."""
    if source in PACKAGED:
        return [source, PACKAGED[source].text_sha256], False
    if is_tfds(source):
        return [source], False
    if is_callable(source):
        digest, gone = digests.of(source, is_file=False)
        return [source, digest], gone
    return _files(source, digests)


def recipe(cfg: CorpusConfig, digests: Digests | None = None) -> str:
    """Key of a prepared corpus: the configuration and the content of its sources.

    Raises:
        ConfigError: an unknown source, or one that is gone and not remembered.
    """
    return _key_and_gone(cfg, digests or Digests(None))[0]


def _key_and_gone(cfg: CorpusConfig, digests: Digests) -> tuple[str, list[str]]:
    """The `recipe`, and the sources that are gone."""
    states = {source: _state(source, digests) for source in sorted(set(cfg.sources))}
    key = _key(cfg, sorted((state for state, _ in states.values()), key=repr))
    return key, [source for source, (_, gone) in states.items() if gone]


def _key(cfg: CorpusConfig, sources: list[Any]) -> str:
    config = to_json(cfg) | {"sources": [], "heldout_tokens": 0}
    return content_id({"format": FORMAT, "config": config, "sources": sources}, 16)


def _first_key(cfg: CorpusConfig) -> str:
    """The key that index entries of the first release have: paths, sizes and times of files."""
    state: list[Any] = []
    for source in sorted(cfg.sources):
        if source in PACKAGED or is_tfds(source) or is_callable(source):
            state.append(_state(source, Digests(None))[0])
        else:
            stats = [(str(p.resolve()), p.stat()) for p in files(source)[0]]
            state.append([source, [[name, s.st_size, s.st_mtime_ns] for name, s in stats]])
    return _key(cfg, state)


def locate(cfg: CorpusConfig, data: Path) -> tuple[str, Path | None, list[str]]:
    """The key of a configuration, the folder of its corpus if one is prepared, and sources that
    are gone.

    Raises:
        ConfigError: a source is unknown, or is gone and has no prepared corpus.
    """
    digests = Digests(data)
    key, gone = _key_and_gone(cfg, digests)
    digests.save()
    if folder := _indexed(data, key):
        return key, folder, gone
    folder = None if gone else _indexed(data, _first_key(cfg))
    for path in sorted(data.glob(f"*/{MANIFEST}")) if folder is None else ():
        with contextlib.suppress(ConfigError):
            if key in read_manifest(path.parent).get("recipes", ()):
                folder = path.parent
    if folder is not None:
        write_index(data, key, folder, cfg)
    elif gone:  # raises ConfigError with the reason
        source_hash(gone[0]) if is_callable(gone[0]) else files(gone[0])
    return key, folder, gone


def note_recipe(folder: Path, key: str, left_out: dict[str, str] | None = None) -> None:
    """Adds a key, and the rows left out of its sources, to the manifest. `locate` reads it if
    the index has no entry."""
    if key in read_manifest(folder).get("recipes", ()):
        return
    with contextlib.suppress(OSError), locked(folder.parent / "adopt.lock", warn):
        manifest = read_manifest(folder)
        manifest["recipes"] = sorted({*manifest.get("recipes", ()), key})
        if left_out:
            manifest["left_out"] = manifest.get("left_out", {}) | {key: left_out}
        write_text(folder / MANIFEST, manifest_text(manifest))


def _indexed(data: Path, key: str) -> Path | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        folder = data / json.loads((data / "index" / f"{key}.json").read_text())["folder"]
        if folder.is_dir() and folder.parent == data:
            return folder
    return None


def write_index(data: Path, key: str, folder: Path, cfg: CorpusConfig) -> None:
    """Writes KEY.json; without it (a read-only runs folder) `locate` reads the manifests."""
    entry = json.dumps({"folder": folder.name, "sources": list(cfg.sources)})
    with contextlib.suppress(OSError):
        write_text(data / "index" / f"{key}.json", entry)
