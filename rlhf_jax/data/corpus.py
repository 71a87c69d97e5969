"""From sources to a corpus: collect, deduplicate, split, tokenize, pack; once, then cached.

A corpus is a folder under `ROOT/data/` whose name is its content hash:

    documents/1.0.0/   the text, a TFDS builder in array_record files
    rows/1.0.0/        packed token rows, likewise
    rows-SPLIT.npy     the rows decoded, memory-mapped by training (shared by its processes)
    tokenizer.model    SentencePiece
    manifest.json      sources, licences, counts, removed duplicates, hashes, seconds; digests of
                       the other files, checked when they are opened; the recipes
                       (`rlhf_jax.data.recipes`) that give this corpus
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.collected import Collected, Document
from rlhf_jax.data.integrity import (
    MANIFEST,
    DamagedCorpus,
    adopted,
    damaged_files,
    decode,
    digests_of,
    locked,
    manifest_text,
    read_manifest,
    whole,
)
from rlhf_jax.data.loader import batch_rows, permute
from rlhf_jax.data.packing import Batch, batch_of, pack
from rlhf_jax.data.recipes import FORMAT, locate, note_recipe, recipe, write_index
from rlhf_jax.data.sources import PACKAGED
from rlhf_jax.data.tokenizer import PAD, Tokenizer, every, train
from rlhf_jax.study.config import ConfigError, CorpusConfig, content_id
from rlhf_jax.study.digests import Digests
from rlhf_jax.study.messages import warn

__all__ = ["SPLITS", "Corpus", "find", "prepare", "recipe", "split_of"]

SPLITS = ("train", "validation", "test")
_HELDOUT_KEY = 0x4E1D
_SUBSET_KEY = 0x5B5E7


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. Cheap to make and to pickle: files are opened on first use.

    Attributes:
        cfg: the configuration by which it was found.
        manifest: the content of `manifest.json`.
        left_out: by file of its sources, the rows that could not be used, and why.
    """

    folder: Path
    cfg: CorpusConfig
    manifest: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)

    def __getstate__(self) -> dict:
        return {n: getattr(self, n) for n in ("folder", "cfg", "manifest", "left_out")}

    @property
    def content_hash(self) -> str:
        """Hash of text, tokenizer, row length and split: equal on every machine; enters run ids."""
        return self.manifest["content_hash"]

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """sha256 of every file; added to a corpus of the first release, which has none."""
        if "digests" not in self.manifest:
            self.manifest.update(adopted(self.folder, self.manifest))
        return self.manifest["digests"]

    def _check(self, under: str) -> None:
        """Raises DamagedCorpus if a file whose name begins with `under` has changed."""
        for name in damaged_files(self.folder, self.digests, under):
            raise DamagedCorpus(self.folder, name, "its digest is another")

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        self._check("tokenizer.model")
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
            ConfigError: unknown or empty split, or rows that are damaged in both copies.
        """
        if not self.manifest["splits"].get(split, {}).get("rows"):
            have = [s for s in SPLITS if self.manifest["splits"][s]["rows"]]
            raise ConfigError(f"split {split!r} has no rows; this corpus has {', '.join(have)}")
        if split not in self._rows:
            name = f"rows-{split}.npy"
            if not whole(self.folder, name, self.digests):
                self._check("rows/")
                warn(f"{self.folder / name} is damaged; decoding the stored rows again")
                decode(self.folder, split)
                self._check(name)
            self._rows[split] = np.load(self.folder / name, mmap_mode="r")
        return self._rows[split]

    def tokens(self, split: str) -> int:
        """Weighted targets of one epoch of a split."""
        return self.manifest["splits"][split]["targets"]

    @property
    def heldout_tokens(self) -> int:
        """Targets of the fixed held-out set: `cfg.heldout_tokens`; where that is the default and
        the validation split is smaller, all of that.

        Raises:
            ConfigError: the validation split is empty, or smaller than a number that is given.
        """
        wanted, have = self.cfg.heldout_tokens, self.tokens("validation")
        if have and (have >= wanted or wanted == CorpusConfig.heldout_tokens):
            return min(wanted, have)
        raise ConfigError(
            f"corpus.heldout_tokens = {wanted:,}, but the validation split of this corpus holds "
            f"{have} targets; set corpus.heldout_tokens to at most that, raise corpus.validation "
            f"(now {self.cfg.validation}), or add sources"
        )

    def documents(self, split: str) -> Iterator[dict[str, str]]:
        """`{id, source, text}` of every document of a split, in a fixed order."""
        from rlhf_jax.data.store import read_documents

        if not self.manifest["splits"][split]["documents"]:
            return iter(())
        self._check("documents/")
        return read_documents(self.folder, split)

    def batch(
        self, split: str, batch_size: int, seed: int, t: int, subset: int | None = None
    ) -> Batch:
        """Batch t (B, T) of the shuffled epochs of a split: a function of (seed, t).

        subset: use only this many rows, the same for every seed; a smaller subset is part of a
        larger one.
        """
        rows = self.rows(split)
        chosen = batch_rows(subset or len(rows), batch_size, seed, t)
        if subset is not None:
            chosen = permute(chosen, len(rows), _SUBSET_KEY)
        return batch_of(rows[chosen], self.token_bytes)

    def heldout(self, batch_size: int = 32) -> list[Batch]:
        """The fixed validation set: exactly `heldout_tokens` weighted targets, the same for every
        model and every `batch_size`; the last batch is padded."""
        left = self.heldout_tokens
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


def find(cfg: CorpusConfig, root: Path, log: Callable[[str], None] = warn) -> Corpus | None:
    """The prepared corpus under `root`, or None. It is found by the content of its sources, even
    if they are gone, which is logged.

    Raises:
        ConfigError: a source is unknown, or gone and not prepared; or the manifest is damaged.
    """
    key, folder, gone = locate(cfg, Path(root) / "data")
    if folder is None:
        return None
    corpus = _opened(folder, cfg, key)
    if gone:
        names = ", ".join(gone)
        log(f"no longer there: {names}; using corpus {folder.name}, prepared from it before")
    return corpus


def _opened(folder: Path, cfg: CorpusConfig, key: str) -> Corpus:
    manifest = read_manifest(folder)
    return Corpus(folder, cfg, manifest, manifest.get("left_out", {}).get(key, {}))


def prepare(cfg: CorpusConfig, root: Path, log: Callable[[str], None] = print) -> Corpus:
    """The corpus of a configuration, built under `root` if it is missing or damaged.

    Several processes may call this at once: one builds, the others wait. The next build removes the
    folder of an interrupted one.

    Raises:
        ConfigError: an unreadable or unknown source, too little text for the vocabulary or for a
            split, or a damaged corpus whose sources are gone.
    """
    data = Path(root) / "data"
    if corpus := _found(cfg, data, log):
        return corpus
    (data / "index").mkdir(parents=True, exist_ok=True)
    with locked(data / "prepare.lock", log):
        if corpus := _found(cfg, data, log):
            return corpus
        key, _, gone = locate(cfg, data)
        if gone:
            raise ConfigError(
                f"the corpus in {data} is damaged, and what it was made of is gone: "
                f"{', '.join(gone)}; put one of them back"
            )
        for left in data.glob(".building-*"):  # by a process that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=data, prefix=".building-") as tmp:
            build = Path(tmp) / "corpus"
            manifest, left_out = _build(cfg, build, data / "archives", log)
            if locate(cfg, data)[0] != key:
                raise ConfigError("a source changed while it was read; run the same command again")
            folder = data / manifest["content_hash"]
            if not _whole(folder):
                manifest["digests"] = digests_of(build)
                (build / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
                if folder.exists():
                    os.rename(folder, Path(tmp) / "damaged")
                os.rename(build, folder)
        write_index(data, key, folder, cfg)
        note_recipe(folder, key, left_out)
    return _opened(folder, cfg, key)


def _whole(folder: Path) -> bool:
    """Whether a folder is a corpus without damage."""
    try:
        digests = read_manifest(folder).get("digests")
    except DamagedCorpus:
        return False
    return digests is not None and not damaged_files(folder, digests)


def _found(cfg: CorpusConfig, data: Path, log: Callable[[str], None]) -> Corpus | None:
    """The corpus, if it is there and not damaged."""
    try:
        corpus = find(cfg, data.parent, log)
        if corpus is None:
            return None
        for split in (s for s in SPLITS if corpus.manifest["splits"][s]["rows"]):
            corpus.rows(split)
        corpus._check("")
    except DamagedCorpus as e:
        log(f"{e.path} is damaged; preparing the corpus again")
        return None
    note_recipe(corpus.folder, recipe(cfg, Digests(data)))
    return corpus


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
) -> tuple[dict[str, Any], dict[str, str]]:
    """Builds a corpus in `folder`; returns its manifest, and the rows left out of its sources."""
    begin = time.monotonic()
    folder.mkdir(parents=True)
    with Collected(cfg, cache, folder, log) as found:
        manifest = _written(cfg, folder, found, log)
    manifest["seconds"] = round(time.monotonic() - begin, 1)
    for split in (s for s in SPLITS if manifest["splits"][s]["rows"]):
        log(f"{split}: {manifest['splits'][split]}")
    log(f"prepared corpus {manifest['content_hash']} in {manifest['seconds']} s")
    return manifest, found.left_out


def _written(
    cfg: CorpusConfig, folder: Path, found: Collected, log: Callable[[str], None]
) -> dict[str, Any]:
    from rlhf_jax.data import store

    kept, dropped = found.deduplicated(log)
    parts: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in kept:
        parts[split_of(document.digest, cfg)].append(document)
    for split, share in zip(SPLITS, (1.0, cfg.validation, cfg.test), strict=True):
        if share > 0 and not parts[split]:
            raise ConfigError(
                f"the {split} split got none of {len(kept)} documents; splits are by document, so "
                "add text, raise the share, or set it to 0"
            )
    texts = {
        split: ({"id": d.id, "source": d.source, "text": found.text(d)} for d in part)
        for split, part in parts.items()
        if part
    }
    store.write_documents(folder, texts)
    size = sum(found.characters[d.number] for d in parts["train"])
    chosen = parts["train"][:: every(size)]
    tokenizer = train([found.text(d) for d in chosen], cfg.vocab)
    tokenizer.save(folder / "tokenizer.model")
    log(f"trained a tokenizer of {cfg.vocab} tokens on {len(parts['train']):,} documents")

    tokens = {split: np.zeros(len(part), np.int64) for split, part in parts.items()}

    def encoded(split: str) -> Iterator[list[int]]:
        for i, document in enumerate(parts[split]):
            ids = tokenizer.encode(found.text(document))
            tokens[split][i] = len(ids)
            yield ids

    rows = {
        s: pack(encoded(s), cfg.seq_len, cfg.vocab, cfg.seed, folder / f"rows-{s}.npy")
        for s in SPLITS
        if parts[s]
    }
    store.write_rows(folder, rows)
    return _manifest(cfg, parts, found, tokens, rows, dropped, tokenizer)


def _manifest(
    cfg: CorpusConfig,
    parts: dict[str, list[Document]],
    found: Collected,
    tokens: dict[str, np.ndarray],
    rows: dict[str, np.ndarray],
    dropped: dict[str, dict[str, int]],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    def counts(split: str, source: str | None = None) -> dict[str, int]:
        part = parts[split]
        chosen = [i for i, d in enumerate(part) if source in (None, d.source)]
        return {
            "documents": len(chosen),
            "bytes": sum(found.size(part[i]) for i in chosen),
            "tokens": int(tokens[split][chosen].sum()),
        }

    sources: dict[str, Any] = {}
    for source in sorted(dropped):
        packaged = PACKAGED.get(source)
        archive = packaged.archive if packaged else None
        sources[source] = {
            "package": f"{archive.package}=={archive.version}" if archive else None,
            "archive_sha256": archive.sha256 if archive else None,
            "licence": packaged.licence if packaged else "the user's own",
            "near_duplicates": dropped[source],
            "splits": {split: counts(split, source) for split in SPLITS},
        }
    splits = {split: counts(split) for split in SPLITS}
    for split, count in splits.items():
        count["targets"] = count["tokens"] + count["documents"]  # and EOS of each
        count["rows"] = len(rows.get(split, ()))
    text = {s: hashlib.sha256(b"".join(d.digest for d in parts[s])).hexdigest() for s in SPLITS}
    rule = [FORMAT, cfg.seq_len, cfg.vocab, cfg.validation, cfg.test, cfg.seed]
    return {
        "content_hash": content_id([text, tokenizer.content_hash, rule], 16),
        "text_hashes": text,
        "tokenizer_hash": tokenizer.content_hash,
        **{name: getattr(cfg, name) for name in ("vocab", "seq_len", "seed")},
        "splits": splits,
        "sources": sources,
    }
