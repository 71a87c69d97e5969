"""Documents and packed rows on disk: TFDS builders in array_record files, without TensorFlow.

Importing this module imports tensorflow_datasets (seconds), so import it only to write or to read
records; training reads the memory-mapped copy of the rows instead.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

VERSION = "1.0.0"


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A dataset of the records given to it, in their order."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, name: str, features: Mapping[str, Any], splits: Mapping, folder: Path):
        self.name, self._features, self._records = name, features, splits
        super().__init__(file_format="array_record", data_dir=str(folder))

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self._features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: enumerate(records) for split, records in self._records.items()}

    def _generate_examples(self) -> Iterator:
        raise AssertionError("the split generators are complete")


class _InOrder:
    """Replaces TFDS's shuffler, which holds all records in memory to sort them by number: ours come
    in that order, and wait in a file."""

    def __init__(self, dirpath: Any, **_: Any) -> None:
        self._file = tempfile.TemporaryFile(dir=dirpath)  # noqa: SIM115
        self._sizes = array("q")

    size = property(lambda self: sum(self._sizes))
    num_examples = property(lambda self: len(self._sizes))
    bucket_lengths = property(lambda self: [len(self._sizes)])

    def add(self, key: int, data: bytes) -> None:
        self._sizes.append(len(data))
        self._file.write(data)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        for key, size in enumerate(self._sizes):
            yield key, self._file.read(size)
        self._file.close()


@contextlib.contextmanager
def _in_order() -> Iterator[None]:
    before = shuffle.Shuffler
    shuffle.Shuffler = _InOrder
    try:
        yield
    finally:
        shuffle.Shuffler = before


def write_documents(folder: Path, splits: Mapping[str, Iterable[Mapping[str, str]]]) -> None:
    """Write `{id, source, text}` records, split by split, under `folder`."""
    features = {key: tfds.features.Text() for key in ("id", "source", "text")}
    _write("documents", folder, features, splits)


def write_rows(folder: Path, splits: Mapping[str, np.ndarray]) -> None:
    """Write rows (N, T+1) of token ids, split by split, under `folder`."""
    sample = next(iter(splits.values()))
    features = {"tokens": tfds.features.Tensor(shape=sample.shape[1:], dtype=sample.dtype)}
    records = {split: ({"tokens": row} for row in rows) for split, rows in splits.items()}
    _write("rows", folder, features, records)


def _write(name: str, folder: Path, features: Mapping, splits: Mapping) -> None:
    tfds.disable_progress_bar()
    # TFDS announces a download, but there is none.
    with contextlib.redirect_stdout(io.StringIO()), _in_order():
        _Builder(name, features, splits, folder).download_and_prepare()
    shutil.rmtree(folder / "downloads", ignore_errors=True)


def _source(folder: Path, name: str, split: str) -> Any:
    builder = tfds.builder_from_directory(folder / name / VERSION)
    return builder.as_data_source(split=split)


def read_documents(folder: Path, split: str) -> Iterator[dict[str, str]]:
    """The records that `write_documents` wrote, in order."""
    for record in _source(folder, "documents", split):
        yield {key: value.decode() for key, value in record.items()}


def read_rows(folder: Path, split: str) -> np.ndarray:
    """The rows (N, T+1) that `write_rows` wrote, in order."""
    source = _source(folder, "rows", split)
    numbers = range(len(source))
    blocks = (numbers[i : i + 4096] for i in range(0, len(source), 4096))
    return np.concatenate([[r["tokens"] for r in source.__getitems__(block)] for block in blocks])
