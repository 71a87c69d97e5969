"""The one result of a finished cell that is shown beside its name, by kind, with its error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlhf_jax.study.runs import CellFolder

NOTE = 200  # characters


class Headline(NamedTuple):
    """What was measured.

    Attributes:
        name: what it is. value, error, low, high: the result, and its standard error or 95%
            interval.
        form: how its numbers are written. unit: of them, empty where there is none.
        note: which rows of its records were left out, if any.
    """

    name: str
    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None
    form: str = ".4f"
    unit: str = ""
    note: str = ""

    def text(self) -> str:
        said = f"{self.name} {self.value:{self.form}}"
        if self.error is not None:
            said += f" ± {self.error:{self.form}}"
        if self.low is not None and self.high is not None:
            said += f" [{self.low:{self.form}}, {self.high:{self.form}}]"
        said = f"{said} {self.unit}".rstrip()
        return f"{said}; {self.note}" if self.note else said

    def to_json(self) -> dict[str, Any]:
        found = {"name": self.name, "value": self.value, "stderr": self.error, "unit": self.unit}
        interval = None if self.low is None else [self.low, self.high]
        return found | {"interval": interval, "text": self.text()}


def headline(kind: str, folder: CellFolder) -> Headline | None:
    """The headline of a cell's results; None where it has none yet.

    Raises:
        Damaged: the results are not what the cell wrote.
    """
    if kind not in HEADLINES or folder.record() is None:
        return None
    file, make = HEADLINES[kind]
    found = folder.result(file)
    try:
        if not found:
            return None
        left = folder.result("left_out") or {}
        return make(found)._replace(note="; ".join(left.values())[:NOTE])
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ):  # written by another version
        return None


def _loss(r: dict[str, Any]) -> Headline:
    return Headline("held-out loss", r["loss"], r.get("stderr"), unit="nats a token")


def _accuracy(r: dict[str, Any]) -> Headline:
    ends = _ends(r.get("accuracy_interval") or (None, None))
    return Headline("held-out accuracy", r["accuracy"], None, *ends, ".1%")


def _ends(interval: Sequence[float | None]) -> tuple[float | None, float | None]:
    low, high = interval
    return low, high


def _ppo(r: dict[str, Any]) -> Headline:
    return Headline(f"gold reward of iteration {r['step']}", r["reward_gold"], form=".3f")


def _gain(r: dict[str, Any]) -> Headline:
    return Headline("gain in gold reward", r["gain"], None, *_ends(r["gain_interval"]), ".3f")


def _best_of_n(r: dict[str, Any]) -> Headline:
    best = r["curve"][-1]
    name = f"gold gain of the best of {best['n']}"
    return Headline(name, best["gold_gain"], None, *_ends(best["gold_gain_interval"]), ".3f")


def _compare(r: dict[str, Any]) -> Headline:
    return Headline("comparisons", r["prompts"], form=",d", unit=f"prompts x {r['k']}")


def _feedback(r: dict[str, Any]) -> Headline:
    count = r["train_records"] + r["validation_records"]
    return Headline("feedback", count, form=",d", unit="records")


def _prompting(r: dict[str, Any]) -> Headline:
    """Over all groups, with as few worked examples as were asked for."""
    shots = min(r["shots"])
    groups = [g for g in r["groups"] if g["shots"] == shots]
    n = sum(g["n"] for g in groups)
    share = sum(g["choice"] * g["n"] for g in groups) / n
    return Headline(f"right choices, {shots} shots", share, form=".1%", unit=f"of {n:,}")


# kind -> the stem of its result file, and what is made of that.
HEADLINES: dict[str, tuple[str, Callable[[dict[str, Any]], Headline]]] = {
    "pretrain": ("heldout", _loss),
    "sft": ("heldout", _loss),
    "reward": ("report", _accuracy),
    "ensemble": ("report", _accuracy),
    "dpo": ("dpo", _accuracy),
    "ppo": ("ppo", _ppo),
    "evaluate": ("evaluation", _gain),
    "best_of_n": ("best_of_n", _best_of_n),
    "compare": ("compare", _compare),
    "feedback": ("feedback", _feedback),
    "prompting": ("prompting", _prompting),
}
