"""The manifest of a corpus, and checks of its files by the digests in it, once a process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data.packing import batch_of
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import Damaged, file_digest, json_digest, write_text, writing
from rlhf_jax.study.messages import warn

MANIFEST = "manifest.json"
_checked: dict[Path, tuple[int, int, int, str]] = {}  # size, times and digest of whole files


class DamagedCorpus(Damaged):
    """A file of a corpus that is not what was written."""

    def __init__(self, folder: Path, name: str, why: str) -> None:
        self.path = folder / name
        super().__init__(
            f"{self.path} is damaged: {why}. `rlhf-jax run STUDY` prepares the corpus again from "
            f"its sources; if they are gone, put {folder} back from a copy"
        )


def self_digest(manifest: Mapping[str, Any]) -> str:
    return json_digest({k: v for k, v in manifest.items() if k != "digest"})


def manifest_text(manifest: dict[str, Any]) -> str:
    """The text of `manifest.json`, with the manifest's own digest."""
    return json.dumps(manifest | {"digest": self_digest(manifest)}, indent=1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a corpus.

    Raises:
        DamagedCorpus: there is none, or it is not what was written.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as e:
        raise DamagedCorpus(folder, MANIFEST, f"it cannot be read ({e})") from None
    except OSError as e:
        raise _unreadable(path, e) from None
    if not isinstance(manifest, dict) or manifest.get("content_hash") != folder.name:
        raise DamagedCorpus(folder, MANIFEST, f"it is not that of corpus {folder.name}")
    if "digest" in manifest and manifest["digest"] != self_digest(manifest):
        raise DamagedCorpus(folder, MANIFEST, "its digest is another")
    return manifest


def digests_of(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file of a corpus but its manifest."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in found}


def whole(folder: Path, name: str, digests: Mapping[str, str]) -> bool:
    """Whether a file has its digest. It is read once a process, unless it is written again."""
    path = folder / name
    try:
        stat = path.stat()
        state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digests[name])
        if _checked.get(path) != state:
            if file_digest(path) != digests[name]:
                return False
            _checked[path] = state
    except (FileNotFoundError, KeyError):
        return False
    except OSError as e:
        raise _unreadable(path, e) from None
    return True


def _unreadable(path: Path, error: Exception) -> ConfigError:
    """A reading error that may not be damage: nothing is replaced."""
    return ConfigError(
        f"{path} cannot be read ({error}); see to that and run the same command again"
    )


def damaged_files(folder: Path, digests: Mapping[str, str], under: str = "") -> list[str]:
    """Files whose names begin with `under` and that do not have their digest."""
    return [n for n in digests if n.startswith(under) and not whole(folder, n, digests)]


def adopted(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a corpus of the first release, with digests added. Its tokenizer, text and
    rows are checked first by the manifest's hashes and counts; the decoded rows are written again.

    Raises:
        DamagedCorpus: one of them differs.
    """
    from rlhf_jax.data.store import read_documents, read_rows

    def check(name: str, right: bool) -> None:
        if not right:
            raise DamagedCorpus(folder, name, f"it does not belong to {MANIFEST}")

    with locked(folder.parent / "adopt.lock", warn):
        if "digests" in (newer := read_manifest(folder)):
            return newer
        name = "tokenizer.model"
        try:
            tokenizer = Tokenizer.load(folder / name)
            check(name, tokenizer.content_hash == manifest["tokenizer_hash"])
            for split in (s for s, c in manifest["splits"].items() if c["rows"]):
                name = "documents"
                texts = (d["text"].encode() for d in read_documents(folder, split))
                text = hashlib.sha256(b"".join(hashlib.sha256(t).digest() for t in texts))
                check(name, text.hexdigest() == manifest["text_hashes"][split])
                name = "rows"
                rows, counts = read_rows(folder, split), manifest["splits"][split]
                check(name, _counted(rows, tokenizer) == (counts["targets"], counts["bytes"]))
                _save(folder / f"rows-{split}.npy", rows)
        except DamagedCorpus:
            raise
        except Exception as e:  # raised by TFDS, array_record or SentencePiece
            if isinstance(e, OSError | MemoryError) and not isinstance(e, FileNotFoundError):
                raise _unreadable(folder / name, e) from None
            raise DamagedCorpus(folder, name, f"{type(e).__name__}: {e}") from None
        manifest = manifest | {"digests": digests_of(folder)}
        write_text(folder / MANIFEST, manifest_text(manifest))
    return manifest


def _counted(rows: np.ndarray, tokenizer: Tokenizer) -> tuple[int, int]:
    """Weighted targets and bytes of rows."""
    parts = [batch_of(rows[i : i + 4096], tokenizer.token_bytes) for i in range(0, len(rows), 4096)]
    return int(sum(b["weights"].sum() for b in parts)), int(sum(b["bytes"].sum() for b in parts))


def decode(folder: Path, split: str) -> None:
    """Writes the memory-mapped copy of the stored rows of a split."""
    from rlhf_jax.data.store import read_rows

    _save(folder / f"rows-{split}.npy", read_rows(folder, split))


@contextlib.contextmanager
def locked(path: Path, log: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("another process is preparing a corpus; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _save(path: Path, rows: np.ndarray) -> None:
    with writing(path) as file:
        np.save(file, rows)
