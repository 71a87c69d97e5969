"""What lies outside a study and enters run ids by its content: callables by import path, files."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from pathlib import Path
from typing import Any

from rlhf_jax.config import ConfigError


def file_hash(path: str) -> str:
    """Hash of a file of records."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as e:
        raise ConfigError(
            f"{path!r}: {e.strerror or e}; expected a cell of the study, MODULE:FUNCTION or a file of records"
        ) from None


def source_hash(import_path: str) -> str:
    """Hash of the source of `MODULE:FUNCTION`, so that editing a reward makes it another run."""
    return hashlib.sha256(inspect.getsource(load_callable(import_path)).encode()).hexdigest()[:16]


def load_callable(import_path: str) -> Any:
    """The object at `MODULE:FUNCTION`."""
    module, _, name = import_path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise ConfigError(
            f"{import_path!r} cannot be imported ({e}); expected MODULE:FUNCTION"
        ) from None
