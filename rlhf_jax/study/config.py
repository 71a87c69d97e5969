"""The configuration of a run as frozen dataclasses: strict JSON in and out, dotted overrides,
content ids. Placement (mesh, host, folder, logging) is not in it, and so never enters an id."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import types
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from rlhf_jax.study.messages import shown, suggest
from rlhf_jax.study.ranges import Decay, Positive, Range, Seed, Share, Size, Tokens, Weight

T = TypeVar("T")
# With a type by which mypy takes classes as arguments.
_cached: Callable[[Callable[[Any], T]], Callable[[Any], T]] = functools.cache


class ConfigError(ValueError):
    """A configuration that cannot run: says what was given, what was expected, what to do."""


class Checked:
    """Base of all configuration dataclasses. The constructor converts and checks every field by its
    type hint, and then calls `check`."""

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
        checked = _checked_defaults(type(self))
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if value is not checked.get(name, dataclasses.MISSING):
                value = _convert(hint, value, f"{self._called()}.{name}")
                object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raises ConfigError for values that contradict each other."""

    def unused(self, name: str, needs: str) -> None:
        """Refuses an option without effect, unless it has its default."""
        value = getattr(self, name)
        if value != self.__dataclass_fields__[name].default:  # type: ignore[attr-defined]
            raise ConfigError(
                f"{self._called()}.{name} = {value!r} would do nothing: it needs {needs}. Leave it "
                f"out, or change that"
            )

    def _called(self) -> str:
        return self.LABEL


@_cached
def _hints(cls: Any) -> dict[str, Any]:
    """Field name -> type hint."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


@_cached
def _checked_defaults(cls: Any) -> dict[str, Any]:
    """Defaults that need no conversion, so that they are not checked in each object."""
    defaults = {
        f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING
    }
    hints = _hints(cls)
    return {n: d for n, d in defaults.items() if _convert(hints[n], d, f"{cls.__name__}.{n}") is d}


@_cached
def _names(cls: Any) -> list[str]:
    """The arguments of the constructor."""
    return [f.name for f in dataclasses.fields(cls) if f.init]


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The shape of a model. Dimension letters: D width, H heads, K kv heads, C head width,
    F feed-forward, V vocabulary, L layers."""

    LABEL = "model"
    layers: Annotated[int, Range(1, 10_000)] = 2
    width: Size = 64
    heads: Size = 4
    vocab: Size = 1024
    kv_heads: Size | None = None  # None: as many as heads (no grouping)
    head_width: Size | None = None  # None: width // heads
    ff: Size | None = None  # None: 4 D, or 8/3 D rounded up to a multiple of 8 for swiglu
    positions: Literal["rope", "learned"] = "rope"
    max_positions: Size = 512  # learned: rows of the table; rope: longest position seen in training
    rope_base: Annotated[float, Range(1, above=True)] = 10_000.0
    norm: Literal["rms", "layer"] = "rms"
    activation: Literal["gelu", "swiglu", "relu2"] = "gelu"
    qk_norm: bool = False
    tied: bool = True  # the unembedding is the embedding transposed
    compute: Literal["float32", "bfloat16"] = "float32"  # parameters are always float32
    # Kept for the backward pass: all activations, products with weights, the same in host memory,
    # or only each layer's input.
    remat: Literal["none", "dots", "offload", "full"] = "none"
    # MODULE:CLASS, an `rlhf_jax.model.architecture.Architecture`; empty: the Transformer.
    architecture: str = field(default="", metadata={"added": True, "outside": "callable"})

    def check(self) -> None:
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
        if self.positions == "learned":
            self.unused("rope_base", "positions = 'rope'")

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
    """Text, and its conversion to rows of token ids. Its content hash (text, tokenizer) enters run
    ids.

    A source is a packaged one by name (`rlhf_jax.data.sources.PACKAGED`), `tfds:NAME`, or a
    path or glob of .txt, .jsonl, .gz, .parquet files, each optionally followed by `#FIELD`; or
    MODULE:FUNCTION, a function that returns the same texts on every call.
    """

    LABEL = "corpus"
    sources: tuple[str, ...] = ("shakespeare", "kjv", "wiki", "news")
    vocab: Size = 1024
    seq_len: Size = 128  # T: targets in a packed row
    validation: Decay = 0.02  # share of documents
    test: Decay = 0.02
    # Size of the fixed set on which every cell is scored; by default at most the validation split.
    heldout_tokens: Tokens = 65_536
    dedup: bool = True
    seed: Seed = 0

    def check(self) -> None:
        if self.validation + self.test >= 1:
            raise ConfigError(
                f"corpus.validation + corpus.test = {self.validation} + {self.test} leave no text "
                f"to train on; they are shares of the documents, below 1 together"
            )
        check_names(self.sources, "corpus.sources")


@dataclass(frozen=True)
class OptimConfig(Checked):
    """AdamW (Loshchilov & Hutter 2019) with a warmup and a schedule over a cell's own steps."""

    LABEL = "optim"
    lr: Positive = 3e-3  # peak
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    warmup: Share = 0.05  # share of the cell's steps
    final: Share = 0.1  # last learning rate as a share of the peak; ignored by "constant"
    decay: Share = 0.2  # wsd: share of the steps spent in the final linear decay
    weight_decay: Weight = 0.1  # on matrices only: not on embeddings, norms and biases
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: Positive = 1e-8
    # Global gradient norm. 0 would scale every gradient to nothing and is refused.
    clip: Annotated[float, Range(0, above=True, advice="1e9 clips nothing")] = 1.0
    # Where eps is added: after the bias correction (Kingma & Ba 2015, PyTorch), or before it, as
    # TensorFlow's Adam does, with which OpenAI's RLHF of 2019 was trained.
    adam: Literal["paper", "tensorflow"] = field(default="paper", metadata={"added": True})

    def check(self) -> None:
        if self.schedule == "constant" and self.final:  # 0 is the default of PPO cells
            self.unused("final", "a schedule that falls")


# --- strict JSON -----------------------------------------------------------------------------


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
        # The constructor converts the rest, and names it in messages as it does its arguments.
        nested = where or isinstance(value, dict)
        values[key] = _convert(hints[key], value, path) if nested else value
    try:
        return cls(**values)
    except TypeError as e:
        raise ConfigError(f"{where or cls.__name__}: {e}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as a field of type `hint` holds it. Raises ConfigError where it cannot."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _convert(args[0], value, path)
        for rule in args[1:]:
            if expected := rule.problem(value):
                raise ConfigError(f"{path} = {shown(value)}; expected {expected}")
        return value
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
    hints = {"a list": " (a comma after it makes a list of one)", "bool": " (write true or false)"}
    raise ConfigError(f"{path}: expected {what}, got {shown(value)}{hints.get(what, '')}")


def check_names(values: Sequence[str], path: str, least: int = 1) -> None:
    """Refuses a list of names with an empty one, the same one twice, or fewer than `least`."""
    if len(values) < least or not all(values):
        raise ConfigError(
            f"{path} = {shown(values)}; expected at least {least}, none of them empty"
        )
    if twice := next((v for v, count in Counter(values).items() if count > 1), None):
        raise ConfigError(f"{path} has {twice!r} twice; give each one once")


def override(obj: T, assignments: Sequence[str], where: str = "") -> T:
    """`obj` with dotted `path=value` assignments, e.g. `optim.lr=1e-3`, applied together, so in any
    order. Values are JSON, or else strings."""
    where = where or obj._called()  # type: ignore[attr-defined]
    changes: dict[tuple[str, ...], Any] = {}
    for text in assignments:
        path, value = assignment(text)
        for other, before in changes.items():
            both = min(len(path), len(other))
            if path[:both] == other[:both] and (path != other or repr(value) != repr(before)):
                raise ConfigError(
                    f"{where}: {'.'.join(other)} = {shown(before)} and "
                    f"{'.'.join(path)} = {shown(value)} are both given; give one of them"
                )
        changes[path] = value
    return _replaced(obj, changes, where)


def assignment(text: str) -> tuple[tuple[str, ...], Any]:
    """The path and the value of `path=value`."""
    path, eq, raw = text.partition("=")
    if not eq or not path:
        raise ConfigError(f"override {text!r}: expected PATH=VALUE, for instance optim.lr=1e-3")
    try:
        return tuple(path.split(".")), json.loads(raw)
    except (ValueError, RecursionError):
        return tuple(path.split(".")), raw


def _replaced(obj: Any, changes: dict[tuple[str, ...], Any], where: str) -> Any:
    names, new = _names(type(obj)), {}
    for head in dict.fromkeys(path[0] for path in changes):
        if head not in names:
            raise ConfigError(f"unknown key {head!r} in {where}.{suggest(head, names)}")
        here, child = f"{where}.{head}", getattr(obj, head)
        below = {path[1:]: value for path, value in changes.items() if path[0] == head}
        if () in below:
            new[head] = _convert(_hints(type(obj))[head], below[()], here)
        elif dataclasses.is_dataclass(child):
            new[head] = _replaced(child, below, here)
        else:
            field = next(iter(below))[0]
            raise ConfigError(f"{here} is {shown(child)}; it has no field {field!r}")
    try:
        return dataclasses.replace(obj, **new)
    except ConfigError as e:
        raise ConfigError(str(e) if str(e).startswith(where) else f"{where}: {e}") from None


def argument(hint: Any) -> Callable[[str], Any]:
    """The `type` of an argparse option with the values of a field of this type hint."""

    def converted(text: str) -> Any:
        value: Any = text
        for read in (float, int):
            with contextlib.suppress(ValueError):
                value = read(text)
        try:
            return _convert(hint, value, "it")
        except ConfigError as e:
            expected = str(e)[str(e).index("expected") :]
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: {expected}") from None

    return converted


def content_id(data: Any, length: int = 10) -> str:
    """Hash of canonical JSON (sorted keys, no spaces, floats by repr)."""
    text = json.dumps(to_json(data), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
