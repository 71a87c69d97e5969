"""Fields beside a row's texts that change what may be learned from it. None is ignored: the row is
used as the field says, or left out with the reason. To add such a field, add it to `RULES`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from rlhf_jax.data.fields import RATINGS, Row, Unusable, number
from rlhf_jax.study.config import ConfigError

YES = (True, 1, "1", "true", "yes", "good", "desirable", "chosen", "positive")
NO = (False, 0, -1, "0", "-1", "false", "no", "bad", "undesirable", "rejected", "negative")
STATES = ("deleted", "removed", "discarded", "rejected", "failed", "error")
HELD_OUT = re.compile(
    r"(tests?|testing|val|valid|validation|dev|devel|eval|evaluation|hold.?out|held.?out)"
    r"(.?set|.?split)?(?![a-z]).*",
    re.I | re.S,
)
_UNSUPPORTED = {
    **dict.fromkeys(("tools", "functions"), "tools"),
    **dict.fromkeys(("images", "image"), "images"),
    "videos": "videos",
    "audios": "sounds",
}
_SCORED = re.compile(r"score|rating|reward|rank|grade|quality|vote")


def says(value: Any, words: tuple[Any, ...]) -> bool:
    """Whether a value is one of the words, numbers or truth values, in any case."""
    value = value.strip().lower() if isinstance(value, str) else value
    return isinstance(value, str | int | float) and value in words


def _short(name: str, value: Any) -> str:
    return f"{name} = {repr(value)[:40]}"


def _dismissed(name: str, value: Any) -> str:
    no = isinstance(value, str) and value.strip().lower() in NO
    return _short(name, value) if value and not no else ""


def _approved(name: str, value: Any) -> str:
    return _short(name, value) if says(value, NO) else ""


def _state(name: str, value: Any) -> str:
    return _short(name, value) if isinstance(value, str) and value.lower() in STATES else ""


def _split(name: str, value: Any) -> str:
    if isinstance(value, str) and HELD_OUT.fullmatch(value.strip()):
        return f"{_short(name, value)}: not for training"
    return ""


def _replaced(name: str, value: Any) -> str:
    return (
        f"{name} stands for a better response; write the row as a record of kind correction or "
        "critique"
    )


def _unsupported(name: str, value: Any) -> str:
    if value in ("", [], {}, "[]", "null"):
        return ""
    return f"{name}: {_UNSUPPORTED[name]} are not supported"


def _weight(name: str, value: Any) -> str:
    if number(value, name) == 1:
        return ""
    return f"{name} = {value!r}: rows have no weights here; drop the field or repeat rows"


def _label(name: str, value: Any) -> str:
    if says(value, YES):
        return ""
    if says(value, NO):
        return f"{name} is false: not an answer to imitate"
    raise ConfigError(
        f"{name} = {str(value)[:40]!r}; expected true or false. Drop the field if it does not say "
        "whether the answer is good"
    )


def _rules(table: dict[Callable[[str, Any], str], str]) -> dict[str, Callable[[str, Any], str]]:
    return {name: rule for rule, names in table.items() for name in names.split()}


# Field -> why a row with this value is left out, empty where it is not.
RULES = _rules(
    {
        _dismissed: "deleted is_deleted removed discarded excluded exclude ignore skip flagged "
        "spam toxic is_toxic unsafe is_unsafe harmful is_harmful deleted_at thumbs_down",
        _approved: "is_safe safe correct is_correct accepted is_accepted approved is_approved "
        "valid is_valid passed verified review_result thumbs_up kto_tag verdict feedback",
        _state: "status",
        _split: "split subset partition data_split",
        _replaced: "edited revision",
        _unsupported: " ".join(_UNSUPPORTED),
        _weight: "weight sample_weight loss_weight",
        _label: "label",
    }
)
_TIES_AND_SWAPS = ("tie", "is_tie", "winner_tie", "flip", "flipped", "swap", "swapped")
_WINNERS = ("preferred", "preference", "winner", "choice", "better")
_OTHERS = ("rejected", "tie", "both", "neither", "none", "equal")


def check(row: Row) -> None:
    """Raises Unusable where the row says that it is not for training, or needs what is not
    supported; ConfigError where a field has no such value."""
    for name, value in row.items():
        if (rule := RULES.get(name)) and (reason := rule(name, value)):
            raise Unusable(reason)


def check_rating(row: Row) -> None:
    """Raises Unusable where a rating of the whole row says that it is bad."""
    for name in RATINGS:
        if isinstance(rating := row.get(name), int | float) and rating < 0:
            raise Unusable(f"{name} = {rating!r}: below 0")


def _opposite(name: str) -> str:
    """The name of the score of `rejected` beside that of `chosen`; empty if it is no such name."""
    return name.replace("chosen", "rejected") if "chosen" in name and _SCORED.search(name) else ""


@functools.lru_cache(1024)
def _scored_pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names of a score of chosen and one of rejected, such as chosen_rating and rejected_rating."""
    return [(name, worse) for name in names if (worse := _opposite(name)) in names]


def of_pair(names: Iterable[str]) -> set[str]:
    """The fields among `names` that `check_pair` reads."""
    scores = {name for pair in _scored_pairs(tuple(names)) for name in pair}
    return {"margin", "scores", *_TIES_AND_SWAPS, *RATINGS, *scores}


def check_pair(row: Row) -> None:
    """Raises Unusable where scores or other fields beside chosen and rejected do not say that
    chosen is better."""
    for better, worse in _scored_pairs(tuple(row)):
        a, b = number(row[better], better), number(row[worse], worse)
        if a == b:
            raise Unusable(f"{better} and {worse} are the same")
        lower_is_better = "rank" in better
        if (a > b) == lower_is_better:
            raise Unusable(f"{better} is {'above' if lower_is_better else 'below'} {worse}")
    if isinstance(scores := row.get("scores"), list) and len(scores) == 2:
        first, second = (number(score, "scores") for score in scores)
        if first <= second:
            raise Unusable(
                f"scores = {scores}, of which the first is not the higher, beside chosen and "
                "rejected"
            )
    for names, values in ((_TIES_AND_SWAPS, YES), (_WINNERS, _OTHERS)):
        for name in names:
            if says(row.get(name), values):
                raise Unusable(f"{_short(name, row[name])}, beside chosen and rejected")
    if "margin" in row and number(row["margin"], "margin") < 0:
        raise Unusable("margin is below 0")
    check_rating(row)
