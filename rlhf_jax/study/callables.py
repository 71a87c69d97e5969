"""Content hashes of the callables and files that a study names; checked calls of the callables."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import itertools
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.content import Content, is_plain, is_set
from rlhf_jax.study.files import file_digest
from rlhf_jax.study.messages import not_unicode, shown
from rlhf_jax.study.source_code import installed, is_displayed, names_in, source_of

if TYPE_CHECKING:
    import numpy as np

SAMPLED, JUDGED = ("split", "n", "seed"), ("prompts", "responses")
# Arguments of the functions of a user's kind, its job and those of its roles. Messages call them
# with `OF_KIND` behind the name.
OF_KIND = " of its kind"
KIND_FUNCTIONS = {
    **dict.fromkeys(("job", "reward", "records", "verdicts"), ("context", "cell")),
    "comparisons": ("context", "cell", "learner"),
}
# Arguments of the callable that a field names.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "prompts": SAMPLED,
    "records": SAMPLED,
    "tasks": SAMPLED,
    "gold": JUDGED,
    "reward": JUDGED,
    "modes": JUDGED,
    "objective": ("params", "batch", "cfg", "axes"),
    "sources": (),
    "algorithm": ("rollout", "cell"),
    "policy_loss": ("ratio_BR", "advantages_BR", "cell"),
    **{name + OF_KIND: arguments for name, arguments in KIND_FUNCTIONS.items()},
}

# New -> old content hash of callables that compute the same but were reformatted, or were hashed
# without their compiled patterns; the old ones are in the ids of kept results.
KEPT_HASHES = {
    "9f5aad80af4fe3d2": "2ac3019f2a1e864c",  # rlhf_jax.data.annotators:varied_sentiment
    "261a60adb105411c": "009a72969bedad0d",  # experiments/instructions.py: records
    "8d58df1547021e4d": "351948830fae9d1b",  # items
    "301f18cfebfad034": "409ede52980f8d99",  # prompts
    "cfb447e35ce4c985": "ee36ac513c2c01ca",  # experiments/random_walk.py: score
}


def is_callable(value: str) -> bool:
    """Whether a text is MODULE:FUNCTION, and not the path of an existing file."""
    return bool(re.fullmatch(r"[\w.]+:[\w.]+", value)) and not Path(value).is_file()


def file_hash(path: str) -> str:
    """Hash of a file of records."""
    try:
        return file_digest(Path(path))[:16]
    except OSError as e:
        raise ConfigError(
            f"{path!r}: {e.strerror or e}; expected a cell of the study, MODULE:FUNCTION or a file "
            "of records"
        ) from None


def load_callable(import_path: str) -> Any:
    """The object at `MODULE:FUNCTION`."""
    module, _, name = import_path.partition(":")
    with _user_code(f"{import_path!r} cannot be imported (", "); expected MODULE:FUNCTION"):
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    if not callable(found):
        raise ConfigError(f"{import_path!r} is {type(found).__name__}; expected a callable")
    return found


def importable(import_path: str) -> Any:
    """`load_callable`, or None."""
    try:
        return load_callable(import_path)
    except ConfigError:
        return None


# --- calls of a user's functions ------------------------------------------------------------------


MOST = 1e15  # largest absolute score: float32 holds the squares, and sums of them

LABELS = "labels, one for each response, None for no mode"


def said(error: BaseException) -> str:
    """The message of an error in a user's file, shortened to fit on a screen."""
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r}); leave that out"
    try:
        text = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    except Exception:  # in __str__ of the user's class
        text = type(error).__name__
    text = text.encode(errors="backslashreplace").decode()  # a lone surrogate ends jax's callbacks
    if isinstance(error, SyntaxError) and ("null bytes" in text or "unicode" in text):
        text += "; expected Python, saved as UTF-8 text"
    lines = text.splitlines() or [""]
    text = "\n".join(lines if len(lines) <= 12 else [*lines[:6], "...", *lines[-5:]])
    return text if len(text) <= 2000 else f"{text[:1200]} ... {text[-600:]}"


def _places(error: BaseException) -> list[tuple[str, int | None]]:
    """(file, line) that an error passed through, the last one where it was raised."""
    places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    return places


def passed(error: BaseException, path: Path) -> str:
    """`, line N`: the last line of a file that an error passed through; empty if it passed through
    none."""
    lines = [n for name, n in _places(error) if Path(name).resolve() == path.resolve()]
    return f", line {lines[-1]}" if lines else ""


def raised(error: BaseException, path: Path | None = None) -> str:
    """` (in FILE, line N)`: the user's line that raised an error; empty where that is in `path`."""
    own = [p for p in _places(error) if not p[0].startswith("<") and not installed(p[0])]
    if not own or (path and Path(own[-1][0]).resolve() == path.resolve()):
        return ""
    return f" (in {own[-1][0]}, line {own[-1][1]})"


def line_of(function: Any) -> str:
    """`, line N`, where a function is defined; empty if it has no source."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f", line {code.co_firstlineno}" if code else ""


def _place(function: Any) -> str:
    """` (FILE, line N)`, where a function is defined; empty if it has no source."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f" ({code.co_filename}{line_of(function)})" if code else ""


def check_call(
    function: Any, what: str, arguments: Sequence[str], named: Sequence[str] = ()
) -> None:
    """Refuses anything but a function of these arguments, in order or by name; does not call it."""
    wanted = f"a function of ({', '.join((*arguments, *named))})"
    if not callable(function) or inspect.isclass(function):
        kind = f"class {function.__name__}" if inspect.isclass(function) else shown(function)
        raise ConfigError(f"{what} is {kind}; expected {wanted}")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{what}{_place(function)} is async; expected {wanted} without it")
    try:
        signature = inspect.signature(function)
        signature.bind(*arguments, **dict.fromkeys(named))
    except ValueError:
        raise ConfigError(f"{what} is built-in code; expected {wanted}, in a file") from None
    except TypeError as e:
        raise ConfigError(
            f"{what}{_place(function)} takes {signature} ({e}); expected {wanted}"
        ) from None


@contextlib.contextmanager
def _user_code(before: str, after: str = "") -> Iterator[None]:
    """Runs a user's code: what it prints goes to standard error, and any error of it is a
    ConfigError that says `before`, the error, `after`."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        raise ConfigError(f"{before}{said(e)}{raised(e)}{after}") from e


def _call(import_path: str, where: str, *arguments: Any) -> tuple[Any, str]:
    """The result of a callable, and its name in messages."""
    function = load_callable(import_path)
    name = f"{where} = {import_path!r}{_place(function)}"
    with _user_code(f"{name} raised "):
        return function(*arguments), name


def call_for_scores(
    import_path: str, where: str, prompts: Sequence[str], responses: Sequence[str]
) -> np.ndarray:
    """A callable's scores (n,) of responses to prompts, as `check_scores` takes them.

    Raises:
        ConfigError: it fails, or gives something else. So do the functions below.
    """
    copies = list(prompts), list(responses)  # which it may change
    found, name = _call(import_path, where, *copies)
    return check_scores(found, name, responses)


def check_scores(found: Any, name: str, responses: Sequence[str]) -> np.ndarray:
    """The result of a callable as scores (n,), float64, whose squares and sums float32 can hold."""
    import numpy as np

    n = len(responses)
    wanted = f"expected {n} numbers in a list or an array, one for each response"
    scores: Any
    try:
        scores = np.asarray(found)
        if scores.dtype.kind not in "biuf":
            scores = scores.astype(np.float32) if scores.dtype.name == "bfloat16" else None
    except (ValueError, TypeError, RuntimeError):
        scores = None
    if scores is None:
        values = found if isinstance(found, list | tuple) else []
        odd = ((i, x) for i, x in enumerate(values, 1) if not isinstance(x, int | float))
        first = next((f" ({i} is {shown(x)})" for i, x in odd), "")
        raise ConfigError(f"{name} gave {shown(found)}{first}; {wanted}")
    if scores.shape != (n,):
        few = {0: shown(found), 1: f"{scores.size} numbers"}
        gave = few.get(scores.ndim, f"an array of shape {scores.shape}")
        raise ConfigError(f"{name} gave {gave}; {wanted}")
    bad = np.flatnonzero(~(np.abs(scores.astype(np.float64)) <= MOST))
    if len(bad):
        raise ConfigError(
            f"{name} gave {scores[bad[0]]!s} for response {bad[0] + 1} of {n}, "
            f"{responses[bad[0]]!r:.80}; expected finite numbers from {-MOST:g} to {MOST:g}"
        )
    return scores.astype(np.float64)


def call_for_each(
    import_path: str, where: str, arguments: Sequence[Any], kinds: Any, what: str
) -> Iterator[Any]:
    """The objects of some kinds that a callable returns, one at a time: those of a generator are
    never all in memory. Texts that UTF-8 cannot write are refused."""
    found, name = _call(import_path, where, *arguments)
    if isinstance(found, str | bytes | dict) or not isinstance(found, Iterable):
        raise ConfigError(f"{name} gave {shown(found)}; expected a list of {what}")
    items, end = iter(found), object()
    for i in itertools.count(1):
        with _user_code(f"{name} raised "):  # a generator runs here
            item = next(items, end)
        if item is end:
            return
        if not isinstance(item, kinds):
            raise ConfigError(
                f"{name} gave {shown(item)}{_split(arguments)}; expected {what} (number {i} is of "
                f"type {type(item).__name__})"
            )
        if isinstance(item, str):
            if not_unicode(item):
                raise ConfigError(
                    f"{name}: text {i}, {shown(item)}, holds what UTF-8 cannot write; leave it out"
                )
            item = str(item)
        yield item


def call_for_list(
    import_path: str,
    where: str,
    arguments: Sequence[Any],
    kinds: Any,
    what: str,
    count: int | None = None,
) -> list[Any]:
    """The list of objects of some kinds that a callable returns; `count`: how many."""
    most = None if count is None else count + 1  # a generator may never end
    items = list(itertools.islice(call_for_each(import_path, where, arguments, kinds, what), most))
    if count is not None and len(items) != count:
        name = f"{where} = {import_path!r}{_place(load_callable(import_path))}"
        more = f"more than {count}" if len(items) > count else len(items)
        raise ConfigError(f"{name} gave {more}{_split(arguments)}; expected {count} {what}")
    return items


def _split(arguments: Sequence[Any]) -> str:
    """` for the train split` if a split is among the arguments."""
    return f" for the {arguments[0]} split" if len(arguments) == len(SAMPLED) else ""


def call_for_texts(
    import_path: str, where: str, *arguments: Any, count: int | None = None
) -> list[str]:
    """The texts that a callable returns; `count`: how many."""
    return call_for_list(import_path, where, arguments, str, "texts", count)


def source_hash(import_path: str) -> str:
    """Hash of what `MODULE:FUNCTION` computes: its source, closure and defaults, and, directly or
    not, the functions, classes, constants and objects that it uses, from its own module and from
    others that are not installed packages. An edit of a reward or of its word list changes the run
    id; a comment elsewhere in the file does not.

    Raises:
        ConfigError: it cannot be imported, or uses an object whose content cannot be read.
    """
    start = load_callable(import_path)
    named = hasattr(inspect.unwrap(start), "__qualname__")
    found = _used(start, start.__module__) if named else {}
    own = {import_path.partition(":")[0], start.__module__ if named else None}
    try:
        content = Content(found, own, import_path)
        facts = content.reached("", start)
    except RecursionError:
        raise ConfigError(f"{import_path!r} uses objects nested too deeply to be read") from None
    parts: Any = sorted(found.items())
    facts += sorted([k, v] for k, v in content.facts.items() if v)
    parts = [parts, facts] if facts else parts
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return KEPT_HASHES.get(digest, digest)


# --- sources and constants of the callable's own module -------------------------------------------


def _used(start: Any, module: str) -> dict[str, str]:
    """Name -> source or value, of an object and of the names that it uses from its own module."""
    found: dict[str, str] = {}
    waiting = [start]
    while waiting:
        item = inspect.unwrap(waiting.pop())
        if item.__qualname__ in found or (source := source_of(item)) is None:
            continue
        found[item.__qualname__] = source
        methods = vars(item).values() if isinstance(item, type) else (item,)
        for method in (inspect.unwrap(m) for m in methods if callable(m)):
            code = getattr(method, "__code__", None)
            for name in names_in(code) if code else ():
                value = method.__globals__.get(name, inspect)
                if getattr(value, "__module__", None) == module and hasattr(value, "__qualname__"):
                    waiting.append(value)
                elif is_plain(value):
                    ordered = is_displayed(method.__globals__, name)
                    found[name] = repr(value if ordered else _sorted(value))
    return found


def _sorted(value: Any) -> Any:
    """Plain data in an order that does not depend on the process."""
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value, key=repr)}
    if type(value) in (list, tuple):
        return type(value)(map(_sorted, value))
    return sorted(value, key=repr) if is_set(value) else value
