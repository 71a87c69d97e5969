"""The documents of a corpus while it is built: text and n-grams in files, the rest in arrays, so
that memory does not grow with the text."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from rlhf_jax.data.dedup import Shingles
from rlhf_jax.data.sources import documents
from rlhf_jax.study.config import ConfigError, CorpusConfig


class Document(NamedTuple):
    """A document without its text, which is found by `number`; `digest` is its sha256."""

    digest: bytes
    source: str
    id: str
    number: int


class Collected:
    """All documents of a configuration's sources, in temporary files in `folder`.

    Attributes:
        characters: of each text.
        left_out: by file, the rows that could not be used, and why.
    """

    def __init__(
        self, cfg: CorpusConfig, cache: Path, folder: Path, log: Callable[[str], None]
    ) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.ends = array("q", [0])
        self.characters = array("q")
        self.documents: list[Document] = []
        self.left_out: dict[str, str] = {}
        self.shingles = Shingles(folder) if cfg.dedup else None
        for source in sorted(set(cfg.sources)):
            before, size = len(self.documents), self.ends[-1]
            for id, text in documents(source, cache, log, self.left_out):
                self._add(source, id, text)
            count = len(self.documents) - before
            log(f"{source}: {count:,} documents, {(self.ends[-1] - size) / 1e6:.2f} MB")
        if not self.documents:
            raise ConfigError(
                f"sources {list(cfg.sources)} hold no text; name at least one that does"
            )
        self.file.flush()

    def __enter__(self) -> Collected:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.shingles:
            self.shingles.file.close()

    def _add(self, source: str, id: str, text: str) -> None:
        raw = text.encode()
        self.documents.append(
            Document(hashlib.sha256(raw).digest(), source, id, len(self.documents))
        )
        self.file.write(raw)
        self.ends.append(self.ends[-1] + len(raw))
        self.characters.append(len(text))
        if self.shingles:
            self.shingles.add(text)

    def size(self, document: Document) -> int:
        """UTF-8 bytes of its text."""
        return self.ends[document.number + 1] - self.ends[document.number]

    def text(self, document: Document) -> str:
        self.file.seek(self.ends[document.number])
        return self.file.read(self.size(document)).decode()

    def deduplicated(
        self, log: Callable[[str], None]
    ) -> tuple[list[Document], dict[str, dict[str, int]]]:
        """The documents that are kept, sorted by content, so that nothing depends on the order of
        sources; and per source the documents and bytes removed."""
        found = sorted(self.documents)
        dropped = {source: {"documents": 0, "bytes": 0} for source in {d.source for d in found}}
        if self.shingles is None:
            return found, dropped
        drop: np.ndarray = self.shingles.duplicates(d.number for d in found)
        for document in (d for d in found if drop[d.number]):
            dropped[document.source]["documents"] += 1
            dropped[document.source]["bytes"] += self.size(document)
        log(f"near-duplicates removed: {int(drop.sum()):,} of {len(found):,} documents")
        return [d for d in found if not drop[d.number]], dropped
