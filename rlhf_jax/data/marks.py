"""Fields beside a row's texts that change what may be learned from it. None is ignored: such a row
is used as the field says, or left out with the reason."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

from rlhf_jax.data.messages import Unusable
from rlhf_jax.study.config import ConfigError

Row = dict[str, Any]

YES = (True, 1, "1", "true", "yes", "good", "desirable", "chosen", "positive")
NO = (False, 0, -1, "0", "-1", "false", "no", "bad", "undesirable", "rejected", "negative")
HELD_OUT = ("test", "val", "dev", "eval", "held", "hold")
DISMISSED = (
    "deleted",
    "is_deleted",
    "removed",
    "discarded",
    "excluded",
    "exclude",
    "ignore",
    "skip",
    "flagged",
    "spam",
    "toxic",
    "is_toxic",
    "unsafe",
    "is_unsafe",
    "harmful",
    "is_harmful",
    "deleted_at",
    "thumbs_down",
)
APPROVED = (
    "is_safe",
    "safe",
    "correct",
    "is_correct",
    "accepted",
    "is_accepted",
    "approved",
    "is_approved",
    "valid",
    "is_valid",
    "passed",
    "verified",
    "review_result",
    "thumbs_up",
    "kto_tag",
    "verdict",
    "feedback",
)
STATES = ("deleted", "removed", "discarded", "rejected", "failed", "error")
UNSUPPORTED = {
    "tools": "tools are not supported",
    "functions": "tools are not supported",
    "images": "images are not supported",
    "image": "images are not supported",
    "videos": "videos are not supported",
    "audios": "sound is not supported",
}
SCORES = (
    "score",
    "reward",
    "rating",
    "overall_score",
    "helpfulness",
    "quality",
)  # of a response or a row, higher is better
SPLITS = ("subset", "partition", "data_split")
WEIGHTS = ("weight", "sample_weight", "loss_weight")
REPLACED = ("edited", "revision")
_SPLIT = re.compile(
    r"(test|val|valid|validation|dev|eval|evaluation|hold.?out|held.?out)([_\W].*)?", re.I
)
_SCORED = re.compile(r"score|rating|reward|rank|grade|quality|vote")

MARKS = {
    "status",
    "split",
    "label",
    *SPLITS,
    *WEIGHTS,
    *REPLACED,
    *DISMISSED,
    *APPROVED,
    *UNSUPPORTED,
}
_SCORES = set(SCORES)
_TIES = ("tie", "is_tie", "winner_tie")
_SWAPS = ("flip", "flipped", "swap", "swapped")
_WINNERS = ("preferred", "preference", "winner", "choice", "better")
PAIR_MARKS = {"margin", "scores", *_TIES, *_SWAPS}


@functools.lru_cache(1024)
def _scored_pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names of a score of chosen and of one of rejected, as chosen_rating and rejected_rating."""
    return [(n, worse) for n in names if "chosen" in n and (worse := opposite(n)) in names]


def opposite(name: str) -> str:
    """What the score of the other of chosen and rejected is called; nothing if it is no score."""
    if not _SCORED.search(name):
        return ""
    if "chosen" in name:
        return name.replace("chosen", "rejected")
    return name.replace("rejected", "chosen") if "rejected" in name else ""


def check(row: Row) -> None:
    """Raises:
    Unusable: the row says that it is not for training, or needs what cannot be given.
    """
    if MARKS.isdisjoint(row):
        return
    for name in DISMISSED:
        if _true(row.get(name)):
            raise Unusable(f"{name} = {repr(row[name])[:40]}")
    for name in APPROVED:
        if name in row and _says(row[name], NO):
            raise Unusable(f"{name} = {repr(row[name])[:40]}")
    if isinstance(state := row.get("status"), str) and state.lower() in STATES:
        raise Unusable(f"status = {state!r}")
    if isinstance(split := row.get("split"), str) and split.lower().startswith(HELD_OUT):
        raise Unusable(f"split = {split!r}: not for training")
    for name in SPLITS:
        if isinstance(split := row.get(name), str) and _SPLIT.fullmatch(split.strip()):
            raise Unusable(f"{name} = {split!r}: not for training")
    for name in REPLACED:
        if name in row:
            raise Unusable(
                f"{name} stands for a better response; write the row as a record of kind "
                "correction or critique"
            )
    for name, why in UNSUPPORTED.items():
        if row.get(name) not in (None, "", [], {}, "[]", "null"):
            raise Unusable(f"{name}: {why}")
    for name in WEIGHTS:
        if name in row and number(row, name) != 1:
            raise Unusable(
                f"{name} = {row[name]!r}: rows have no weights here; drop the field or repeat rows"
            )
    if "label" in row and not label(row):
        raise Unusable("label is false: not an answer to imitate")


def _says(value: Any, words: tuple[Any, ...]) -> bool:
    """Whether a value is one of the words, numbers or truth values, in any case."""
    value = value.strip().lower() if isinstance(value, str) else value
    return isinstance(value, str | int | float) and value in words


def _true(value: Any) -> bool:
    return bool(value) and not (isinstance(value, str) and value.strip().lower() in NO)


def label(row: Row) -> bool:
    """Whether a row's label says that its answer is good.

    Raises:
        ConfigError: it says neither.
    """
    value = row["label"]
    if _says(value, YES):
        return True
    if _says(value, NO):
        return False
    raise ConfigError(
        f"label = {str(row['label'])[:40]!r}; expected true or false. Drop the field if it does "
        f"not say whether the answer is good"
    )


def check_pair(row: Row) -> None:
    """Raises:
    Unusable: scores or other fields beside chosen and rejected that do not say that chosen is
    better.
    """
    for better, worse in _scored_pairs(tuple(row)):
        if better in row and worse in row:
            a, b = number(row, better), number(row, worse)
            if "rank" in better:
                a, b = -a, -b
            if a == b:
                raise Unusable(f"{better} and {worse} are the same")
            if a < b:
                raise Unusable(f"{better} is {'above' if 'rank' in better else 'below'} {worse}")
    if isinstance(scores := row.get("scores"), list) and len(scores) == 2:
        first, second = (number({"scores": x}, "scores") for x in scores)
        if first <= second:
            raise Unusable(
                f"scores = {scores}, of which the first is not the higher, beside chosen and "
                "rejected"
            )
    for name in (*_TIES, *_SWAPS):
        if _says(row.get(name), YES):
            raise Unusable(f"{name} = {repr(row[name])[:40]}, beside chosen and rejected")
    for name in _WINNERS:
        if _says(row.get(name), ("rejected", "tie", "both", "neither", "none", "equal")):
            raise Unusable(f"{name} = {row[name]!r}, beside chosen and rejected")
    if "margin" in row and number(row, "margin") < 0:
        raise Unusable("margin is below 0")


def check_score(row: Row) -> None:
    """Raises:
    Unusable: a score of the whole row that says that it is bad.
    """
    if _SCORES.isdisjoint(row):
        return
    for name in SCORES:
        if isinstance(score := row.get(name), int | float) and score < 0:
            raise Unusable(f"{name} = {score!r}: below 0")


def number(row: Row, name: str) -> float:
    """A field that holds a number.

    Raises:
        ConfigError: it holds none.
    """
    value = row[name]
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ConfigError(f"{name} = {str(value)[:40]!r}; expected a number")
    return found
