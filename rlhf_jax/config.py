"""What a run is, as frozen dataclasses: strict JSON in and out, dotted overrides, content ids.

Only science is described here. Where a run executes (mesh, host, folder, logging) is decided at
launch and never enters an id.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import os
import reprlib
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot run: says what was given, what was expected, what to do."""


class Checked:
    """Base of all configuration dataclasses. Construction converts and checks every field by its
    type hint, whether it comes from a study file, an override or JSON, and then calls `check`."""

    LABEL: ClassVar[str] = "config"  # what messages call it

    def __new__(cls, *args: Any, **values: Any) -> Any:
        for key in values:
            if key not in _names(cls):
                raise ConfigError(
                    f"unknown key {key!r} for {cls.__name__}.{suggest(key, _names(cls))}"
                )
        return super().__new__(cls)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__post_init__" in vars(cls):
            raise ConfigError(f"{cls.__name__}.__post_init__ would skip checks; name it check")

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = _convert(hint, getattr(self, name), f"{self._called()}.{name}")
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Refuses, by ConfigError, values that do not go together."""

    def _called(self) -> str:
        return self.LABEL


def _typed(cls: Any) -> dict[str, Any]:
    """Field name -> type hint."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


_hints: Callable[[Any], dict[str, Any]] = functools.cache(_typed)


def _names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModelConfig(Checked):
    """A Transformer. Dimension letters: D width, H heads, K kv heads, C head width, F feed-forward,
    V vocabulary, L layers."""

    LABEL = "model"
    layers: int = 2
    width: int = 64
    heads: int = 4
    vocab: int = 1024
    kv_heads: int | None = None  # None: as many as heads (no grouping)
    head_width: int | None = None  # None: width // heads
    ff: int | None = None  # None: 4 D, or 8/3 D rounded up to a multiple of 8 for swiglu
    positions: Literal["rope", "learned"] = "rope"
    max_positions: int = 512  # learned: rows of the table; rope: longest position seen in training
    rope_base: float = 10_000.0
    norm: Literal["rms", "layer"] = "rms"
    activation: Literal["gelu", "swiglu", "relu2"] = "gelu"
    qk_norm: bool = False
    tied: bool = True  # the unembedding is the embedding transposed
    compute: Literal["float32", "bfloat16"] = "float32"  # parameters are always float32
    # What the backward pass finds: everything, the weights' products, the same in host memory, or
    # each layer's input alone.
    remat: Literal["none", "dots", "offload", "full"] = "none"

    def check(self) -> None:
        for name in ("layers", "width", "heads", "vocab", "max_positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.head_width is None and self.width % self.heads:
            raise ConfigError(
                f"model.heads = {self.heads} does not divide model.width = {self.width}; "
                "choose a divisor, or set model.head_width"
            )
        if self.heads % self.K:
            raise ConfigError(
                f"model.kv_heads = {self.kv_heads} does not divide model.heads = {self.heads}; "
                "every key-value head serves the same number of query heads"
            )
        if self.positions == "rope" and self.C % 2:
            raise ConfigError(
                f"the head width is {self.C}; rotary positions turn pairs, so it must be even"
            )

    @property
    def K(self) -> int:
        return self.kv_heads or self.heads

    @property
    def C(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def F(self) -> int:
        if self.ff is not None:
            return self.ff
        return 8 * -(-self.width // 3) if self.activation == "swiglu" else 4 * self.width


@dataclass(frozen=True)
class CorpusConfig(Checked):
    """Text and how it becomes rows of token ids. Its content hash (text, tokenizer) enters run ids.

    A source is a packaged one by name (`rlhf_jax.data.sources.PACKAGED`), `tfds:NAME`, or a
    path or glob of .txt, .jsonl, .gz, .parquet files, each optionally followed by `#FIELD`; or
    MODULE:FUNCTION, a function that gives texts, the same ones each time.
    """

    LABEL = "corpus"
    sources: tuple[str, ...] = ("shakespeare", "kjv", "wiki", "news")
    vocab: int = 1024
    seq_len: int = 128  # T: targets in a packed row
    validation: float = 0.02  # share of documents
    test: float = 0.02
    # The one fixed set that every cell is scored on. The default is at most all of the validation split.
    heldout_tokens: int = 65_536
    dedup: bool = True
    seed: int = 0


@dataclass(frozen=True)
class OptimConfig(Checked):
    """AdamW (Loshchilov & Hutter 2019) with a warmup and a schedule over a cell's own steps."""

    LABEL = "optim"
    lr: float = 3e-3  # peak
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    warmup: float = 0.05  # share of the cell's steps
    final: float = 0.1  # last learning rate as a share of the peak; ignored by "constant"
    decay: float = 0.2  # wsd: share of the steps spent in the final linear decay
    weight_decay: float = 0.1  # on matrices only: not on embeddings, norms and biases
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0  # global gradient norm
    # Where eps is added: after the bias correction (Kingma & Ba 2015, PyTorch), or before it, as
    # TensorFlow's Adam does, with which OpenAI's RLHF of 2019 was trained.
    adam: Literal["paper", "tensorflow"] = field(default="paper", metadata={"added": True})

    def check(self) -> None:
        if not self.lr > 0:
            raise ConfigError(f"optim.lr is {self.lr}; it must be positive")
        for name in ("warmup", "final", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; it is a share, 0 to 1")


# --- strict JSON -----------------------------------------------------------------------------


def suggest(given: str, known: Sequence[str]) -> str:
    """` Did you mean 'x'?` for a near miss, and the full list otherwise."""
    near = difflib.get_close_matches(given, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."


def to_json(obj: Any) -> Any:
    """Plain JSON values of a (nested) dataclass; tuples become lists."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_json(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, tuple | list):
        return [to_json(x) for x in obj]
    if isinstance(obj, dict):
        return {str(k): to_json(v) for k, v in obj.items()}
    return obj


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """The dataclass `cls` from JSON. Unknown keys, wrong types: ConfigError with the path."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where or cls.__name__}: expected an object, got {data!r}")
    names, hints, values = _names(cls), _hints(cls), {}
    for key, value in data.items():
        path = f"{where}.{key}" if where else key
        if key not in names:
            raise ConfigError(f"unknown key {path!r} for {cls.__name__}.{suggest(key, names)}")
        values[key] = _convert(hints[key], value, path)
    try:
        return cls(**values)
    except TypeError as e:
        raise ConfigError(f"{where or cls.__name__}: {e}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as a field of type `hint` holds it. Raises ConfigError where it cannot."""
    origin, args = get_origin(hint), get_args(hint)
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():  # a number of numpy's
        value = value.item()
    if dataclasses.is_dataclass(hint):
        if isinstance(value, dict):
            return from_json(hint, value, path)  # type: ignore[arg-type]
        return _expected(isinstance(value, hint), hint.__name__, value, path)  # type: ignore[arg-type, union-attr]
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, path)
    if origin is Literal:
        if not any(value == a and type(value) is type(a) for a in args):
            raise ConfigError(f"{path} = {value!r}.{suggest(str(value), [str(a) for a in args])}")
        return value
    if origin is tuple:
        _expected(isinstance(value, list | tuple), "a list", value, path)
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if hint is str and isinstance(value, str | os.PathLike):
        value = str(os.fspath(value))
    if hint in (int, float, str, bool):
        _expected(type(value) is hint, hint.__name__, value, path)
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{path}: expected a finite number, got {value!r}")
    return value


def _expected(right: bool, what: str, value: Any, path: str) -> Any:
    if right:
        return value
    hint = " (a comma after it makes a list of one)" if what == "a list" else ""
    raise ConfigError(f"{path}: expected {what}, got {reprlib.repr(value)}{hint}")


def override(obj: T, assignments: Sequence[str], where: str = "") -> T:
    """`obj` with dotted `path=value` assignments applied, e.g. `optim.lr=1e-3`. Values are JSON;
    what is not JSON is taken as a string."""
    for text in assignments:
        path, eq, raw = text.partition("=")
        if not eq or not path:
            raise ConfigError(f"override {text!r}: expected PATH=VALUE, for instance optim.lr=1e-3")
        try:
            value = json.loads(raw)
        except json.JSONDecodeError:
            value = raw
        obj = _replace(obj, path.split("."), value, where or type(obj).__name__)
    return obj


def _replace(obj: Any, path: list[str], value: Any, where: str) -> Any:
    names = _names(type(obj))
    head, *rest = path
    if head not in names:
        raise ConfigError(f"unknown key {head!r} in {where}.{suggest(head, names)}")
    here = f"{where}.{head}"
    if rest:
        child = getattr(obj, head)
        if not dataclasses.is_dataclass(child):
            raise ConfigError(f"{here} is {child!r}; it has no field {rest[0]!r}")
        new = _replace(child, rest, value, here)
    else:
        new = _convert(_hints(type(obj))[head], value, here)
    return dataclasses.replace(obj, **{head: new})


def content_id(data: Any, length: int = 10) -> str:
    """Hash of canonical JSON (sorted keys, no spaces, floats by repr)."""
    text = json.dumps(to_json(data), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


__all__ = [
    "Checked",
    "ConfigError",
    "CorpusConfig",
    "ModelConfig",
    "OptimConfig",
    "content_id",
    "dataclass",
    "field",
    "from_json",
    "override",
    "suggest",
    "to_json",
]
