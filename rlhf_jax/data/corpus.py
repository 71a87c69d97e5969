"""From sources to a corpus: collect, deduplicate, split, tokenize, pack; once, then cached.

A corpus is a folder named by its content hash under `ROOT/data/`:

    documents/1.0.0/   the text, a TFDS builder in array_record files
    rows/1.0.0/        packed token rows, the same
    rows-SPLIT.npy     the rows decoded once, memory-mapped by training (shared by its processes)
    tokenizer.model    SentencePiece
    manifest.json      sources, licences, counts, what deduplication removed, hashes, seconds

`ROOT/data/index/` maps recipes (a configuration and the state of its files) to those folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ConfigError, CorpusConfig, content_id
from ..outside import source_hash
from .dedup import near_duplicates
from .loader import batch_rows, permute
from .packing import Batch, batch_of, pack
from .sources import PACKAGED, documents, files, is_callable
from .tokenizer import PAD, Tokenizer, train

SPLITS = ("train", "validation", "test")
FORMAT = 1  # of what is derived from text; a change of packing or splitting rules raises it
_HELDOUT_KEY = 0x4E1D
_SUBSET_KEY = 0x5B5E7


@dataclass(frozen=True)
class _Document:
    id: str
    source: str
    text: str
    digest: bytes  # sha256 of the text


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. Cheap to make and to pickle: files are opened on first use.

    Attributes:
        folder: where it lies.
        cfg: the configuration that it was asked for with.
        manifest: what `manifest.json` holds.
    """

    folder: Path
    cfg: CorpusConfig
    manifest: dict[str, Any]

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "cfg": self.cfg, "manifest": self.manifest}

    @property
    def content_hash(self) -> str:
        """Hash of text, tokenizer, row length and split: equal on every machine; enters run ids."""
        return self.manifest["content_hash"]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer.model")

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """(V,) int32: UTF-8 bytes per token id."""
        return self.tokenizer.token_bytes

    @functools.cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        return {}

    def rows(self, split: str) -> np.ndarray:
        """The packed rows (N, T+1) of a split, memory-mapped, uint16 or uint32.

        Raises:
            ConfigError: unknown or empty split.
        """
        if not self.manifest["splits"].get(split, {}).get("rows"):
            have = [s for s in SPLITS if self.manifest["splits"][s]["rows"]]
            raise ConfigError(f"split {split!r} has no rows; this corpus has {', '.join(have)}")
        if split not in self._rows:
            path = self.folder / f"rows-{split}.npy"
            if not path.exists():  # the folder came here without its decoded copy
                from .store import read_rows

                _save(path, read_rows(self.folder, split))
            self._rows[split] = np.load(path, mmap_mode="r")
        return self._rows[split]

    def tokens(self, split: str) -> int:
        """Weighted targets of one epoch of a split."""
        return self.manifest["splits"][split]["targets"]

    def bytes(self, split: str) -> int:
        """UTF-8 bytes of the text of a split."""
        return self.manifest["splits"][split]["bytes"]

    def documents(self, split: str) -> Iterator[dict[str, str]]:
        """`{id, source, text}` of every document of a split, in a fixed order."""
        from .store import read_documents

        return read_documents(self.folder, split)

    def batch(
        self, split: str, batch_size: int, seed: int, t: int, subset: int | None = None
    ) -> Batch:
        """Batch t (B, T) of the endless shuffled epochs of a split: a function of (seed, t).

        subset: of that many rows alone. A smaller subset is part of a larger one, and none depends on
        the seed.
        """
        rows = self.rows(split)
        chosen = batch_rows(subset or len(rows), batch_size, seed, t)
        if subset is not None:
            chosen = permute(chosen, len(rows), _SUBSET_KEY)
        return batch_of(rows[chosen], self.token_bytes)

    def heldout(self, batch_size: int = 32) -> list[Batch]:
        """The fixed validation set: exactly `cfg.heldout_tokens` weighted targets, the same ones
        for every model and every `batch_size`; the last batch is filled up with padding.

        Raises:
            ConfigError: the validation split is smaller.
        """
        left = self.cfg.heldout_tokens
        if (have := self.tokens("validation")) < left:
            raise ConfigError(
                f"heldout_tokens = {left}, but the validation split of this corpus holds {have} "
                "targets; lower heldout_tokens, raise corpus.validation, or add sources"
            )
        rows, batches, at = self.rows("validation"), [], 0
        while left > 0:
            index = np.arange(at, min(at + batch_size, len(rows)))
            chosen = rows[permute(index, len(rows), _HELDOUT_KEY)]
            fill = ((0, batch_size - len(chosen)), (0, 0))
            batch = batch_of(np.pad(chosen, fill, constant_values=PAD), self.token_bytes)
            count = np.cumsum(batch["weights"]).reshape(batch["weights"].shape)
            batch["weights"][count > left] = 0
            batch["bytes"][count > left] = 0
            left -= int(batch["weights"].sum())
            at += batch_size
            batches.append(batch)
        return batches


# --- finding and preparing -------------------------------------------------------------------


def recipe(cfg: CorpusConfig) -> str:
    """Key of the local cache: the configuration, the pinned texts, the files' sizes and times.

    Raises:
        ConfigError: an unknown source.
    """
    state: list[Any] = []
    for source in sorted(cfg.sources):
        if source in PACKAGED:
            state.append([source, PACKAGED[source].text_sha256])
        elif is_callable(source):
            state.append([source, source_hash(source)])
        elif source.startswith("tfds:"):
            state.append([source])
        else:
            stats = [(str(p.resolve()), p.stat()) for p in files(source)[0]]
            state.append([source, [[name, s.st_size, s.st_mtime_ns] for name, s in stats]])
    same = dataclasses.replace(cfg, sources=(), heldout_tokens=0)
    return content_id({"format": FORMAT, "config": same, "sources": state}, 16)


def find(cfg: CorpusConfig, root: Path) -> Corpus | None:
    """The corpus if it is already prepared under `root`, else None."""
    index = Path(root) / "data" / "index" / f"{recipe(cfg)}.json"
    try:
        folder = Path(root) / "data" / json.loads(index.read_text())["folder"]
        return Corpus(folder, cfg, json.loads((folder / "manifest.json").read_text()))
    except FileNotFoundError:
        return None


def prepare(cfg: CorpusConfig, root: Path, log: Callable[[str], None] = print) -> Corpus:
    """The corpus of a configuration, built under `root` if it is not there yet.

    Safe when several processes ask at once: one builds, the others wait. A build that is
    interrupted leaves nothing that the next one would take for a corpus.

    Raises:
        ConfigError: an unreadable or unknown source, too little text for the vocabulary or for a
            split.
    """
    if corpus := find(cfg, root):
        return corpus
    data = Path(root) / "data"
    (data / "index").mkdir(parents=True, exist_ok=True)
    with _locked(data / "prepare.lock", log):
        if corpus := find(cfg, root):
            return corpus
        for left in data.glob(".building-*"):  # by a process that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=data, prefix=".building-") as tmp:
            build = Path(tmp) / "corpus"
            manifest = _build(cfg, build, data / "archives", log)
            folder = data / manifest["content_hash"]
            if not (folder / "manifest.json").exists():
                shutil.rmtree(folder, ignore_errors=True)  # no manifest: a broken copy
                os.rename(build, folder)
        entry = json.dumps({"folder": folder.name, "sources": list(cfg.sources)})
        _replace(data / "index" / f"{recipe(cfg)}.json", entry)
    return Corpus(folder, cfg, json.loads((folder / "manifest.json").read_text()))


@contextlib.contextmanager
def _locked(path: Path, log: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("another process is preparing a corpus; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _save(path: Path, rows: np.ndarray) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.npy")
    np.save(part, rows)
    os.replace(part, path)


# --- building --------------------------------------------------------------------------------


def split_of(digest: bytes, cfg: CorpusConfig) -> str:
    """The split of a document: a function of the sha256 of its text, the shares and the seed."""
    key = hashlib.sha256(f"{cfg.seed}:".encode() + digest).digest()
    u = int.from_bytes(key[:8], "big") / 2**64
    if u < cfg.test:
        return "test"
    return "validation" if u < cfg.test + cfg.validation else "train"


def _build(
    cfg: CorpusConfig, folder: Path, cache: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    """Everything of a corpus into `folder`; returns its manifest."""
    from . import store

    begin = time.monotonic()
    folder.mkdir(parents=True)
    kept, dropped = _deduplicated(_collect(cfg, cache, log), cfg.dedup, log)
    parts: dict[str, list[_Document]] = {split: [] for split in SPLITS}
    for document in kept:
        parts[split_of(document.digest, cfg)].append(document)
    _check_sizes(cfg, parts)
    store.write_documents(
        folder,
        {
            split: ({"id": d.id, "source": d.source, "text": d.text} for d in part)
            for split, part in parts.items()
            if part
        },
    )
    texts = [record["text"] for record in store.read_documents(folder, "train")]
    tokenizer = train(texts, cfg.vocab)
    tokenizer.save(folder / "tokenizer.model")
    log(f"trained a tokenizer of {cfg.vocab} tokens on {len(texts):,} documents")

    ids = {split: [tokenizer.encode(d.text) for d in part] for split, part in parts.items()}
    rows = {s: pack(ids[s], cfg.seq_len, cfg.vocab, cfg.seed) for s in SPLITS if ids[s]}
    store.write_rows(folder, rows)
    for split in rows:
        _save(folder / f"rows-{split}.npy", store.read_rows(folder, split))
    manifest = _manifest(cfg, parts, ids, rows, dropped, tokenizer)
    manifest["seconds"] = round(time.monotonic() - begin, 1)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for split in rows:
        log(f"{split}: {manifest['splits'][split]}")
    log(f"prepared corpus {manifest['content_hash']} in {manifest['seconds']} s")
    return manifest


def _collect(cfg: CorpusConfig, cache: Path, log: Callable[[str], None]) -> list[_Document]:
    """All documents, sorted by content, so that nothing depends on the order of sources."""
    found: list[_Document] = []
    for source in sorted(set(cfg.sources)):
        before = len(found)
        for id, text in documents(source, cache):
            found.append(_Document(id, source, text, hashlib.sha256(text.encode()).digest()))
        size = sum(len(d.text.encode()) for d in found[before:])
        log(f"{source}: {len(found) - before:,} documents, {size / 1e6:.2f} MB")
    if not found:
        raise ConfigError(f"sources {list(cfg.sources)} hold no text; name at least one that does")
    return sorted(found, key=lambda d: (d.digest, d.source, d.id))


def _deduplicated(
    found: list[_Document], dedup: bool, log: Callable[[str], None]
) -> tuple[list[_Document], dict[str, dict[str, int]]]:
    """What is kept, and per source the documents and bytes removed."""
    dropped = {source: {"documents": 0, "bytes": 0} for source in {d.source for d in found}}
    if not dedup:
        return found, dropped
    drop = near_duplicates([d.text for d in found], [d.digest for d in found])
    for document in (d for d, gone in zip(found, drop, strict=True) if gone):
        dropped[document.source]["documents"] += 1
        dropped[document.source]["bytes"] += len(document.text.encode())
    log(f"near-duplicates removed: {int(drop.sum()):,} of {len(found):,} documents")
    return [d for d, gone in zip(found, drop, strict=True) if not gone], dropped


def _check_sizes(cfg: CorpusConfig, parts: dict[str, list[_Document]]) -> None:
    shares = {"train": 1.0, "validation": cfg.validation, "test": cfg.test}
    for split, share in shares.items():
        if share > 0 and not parts[split]:
            total = sum(map(len, parts.values()))
            raise ConfigError(
                f"the {split} split got none of {total} documents ; splits are by "
                "document, so add text, raise the share, or set it to 0"
            )


def _manifest(
    cfg: CorpusConfig,
    parts: dict[str, list[_Document]],
    ids: dict[str, list[list[int]]],
    rows: dict[str, np.ndarray],
    dropped: dict[str, dict[str, int]],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    sources: dict[str, Any] = {}
    for source in sorted(dropped):
        row = PACKAGED.get(source)
        sources[source] = {
            "package": f"{row.archive.package}=={row.archive.version}" if row else None,
            "archive_sha256": row.archive.sha256 if row else None,
            "licence": row.licence if row else "the user's own",
            "near_duplicates": dropped[source],
            "splits": {
                split: _counts(
                    [(d, n) for d, n in zip(parts[split], ids[split], strict=True)
                     if d.source == source]
                )
                for split in SPLITS
            },
        }  # fmt: skip
    splits = {}
    for split in SPLITS:
        splits[split] = _counts(list(zip(parts[split], ids[split], strict=True)))
        splits[split]["targets"] = splits[split]["tokens"] + len(parts[split])  # EOS of each
        splits[split]["rows"] = len(rows.get(split, ()))
    text = {s: hashlib.sha256(b"".join(d.digest for d in parts[s])).hexdigest() for s in SPLITS}
    rule = [FORMAT, cfg.seq_len, cfg.vocab, cfg.validation, cfg.test, cfg.seed]
    return {
        "content_hash": content_id([text, tokenizer.content_hash, rule], 16),
        "text_hashes": text,
        "tokenizer_hash": tokenizer.content_hash,
        "vocab": cfg.vocab,
        "seq_len": cfg.seq_len,
        "seed": cfg.seed,
        "splits": splits,
        "sources": sources,
    }


def _counts(part: list[tuple[_Document, list[int]]]) -> dict[str, int]:
    return {
        "documents": len(part),
        "bytes": sum(len(d.text.encode()) for d, _ in part),
        "tokens": sum(len(n) for _, n in part),
    }
