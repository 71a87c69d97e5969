"""Kinds of a user's own, as a study's author would write them beside the study file: a policy, a
reward, and numbers that are drawn and added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_jax.study.cell import Cell
from rlhf_jax.study.ranges import Share
from rlhf_jax.study.results import Headline

if TYPE_CHECKING:
    from rlhf_jax.kinds.context import Context
    from rlhf_jax.rl.scores import Reward


@dataclass(frozen=True)
class SoupResult:
    soup: dict[str, float]


@dataclass(frozen=True)
class Soup(Cell):
    """The weighted mean of two models' parameters (Wortsman et al. 2022)."""

    KIND = "soup"
    ROLES = ("language_model",)
    PARENTS = {"first": "language_model", "second": "language_model"}
    RESULT = SoupResult
    first: str = "base"
    second: str = "other"
    share: Share = 0.5  # of the second


def run(context: Context, cell: Soup) -> SoupResult:
    import jax

    first, second = map(context.language_model, (cell.first, cell.second))
    mixed = jax.tree.map(lambda a, b: (1 - cell.share) * a + cell.share * b, first, second)
    context.keep_model(mixed)
    return SoupResult({"share": cell.share})


@dataclass(frozen=True)
class LikelihoodResult:
    likelihood: dict[str, float]


@dataclass(frozen=True)
class Likelihood(Cell):
    """How likely a model finds a response, as a reward."""

    KIND = "likelihood"
    ROLES = ("reward",)
    PARENTS = {"judge": "language_model"}
    RESULT = LikelihoodResult
    JOB = ":nothing"
    judge: str = "base"
    scale: float = 1.0


def nothing(context: Context, cell: Likelihood) -> LikelihoodResult:
    return LikelihoodResult({"scale": cell.scale})


def reward(context: Context, cell: Likelihood) -> Reward:
    from rlhf_jax.model.scoring import completion_log_probs
    from rlhf_jax.rl.scores import Reward

    cfg, axes = context.study.model_of(cell), context.runtime.axes

    def score(params, rows, mask_BR):
        return cell.scale * completion_log_probs(params, cfg, rows, mask_BR, axes)

    return Reward(score, context.language_model(cell.judge))


# --- numbers: a role of one's own ----------------------------------------------------------------


@dataclass(frozen=True)
class DrawResult:
    draw: dict[str, float]


@dataclass(frozen=True)
class Draw(Cell):
    KIND = "draw"
    ROLES = ("number",)
    RESULT = DrawResult
    JOB = ":drawn"
    value: float = 0.0
    fails: str = ""


def drawn(context: Context, cell: Draw) -> DrawResult:
    if cell.fails == "raises":
        raise ValueError("no number today")
    if cell.fails == "another":
        return SoupResult({})  # type: ignore[return-value]
    return DrawResult({"value": "three" if cell.fails == "value" else cell.value})  # type: ignore[dict-item]


def number(context: Context, cell: Draw) -> float:
    return context.result(cell.name).draw["value"]


@dataclass(frozen=True)
class TotalResult:
    total: dict[str, float]

    def headline(self) -> Headline:
        return Headline("total", self.total["sum"])


@dataclass(frozen=True)
class Total(Cell):
    KIND = "total"
    PARENTS = {"of": "number"}
    RESULT = TotalResult
    JOB = ":added"
    of: tuple[str, ...] = ()


def added(context: Context, cell: Total) -> TotalResult:
    return TotalResult({"sum": sum(context.play("number", name) for name in cell.of)})


# --- an algorithm and a policy loss --------------------------------------------------------------


def mean_of_others(rollout, cell):
    total = rollout.returns_B.sum()
    return rollout.returns_B - (total - rollout.returns_B) / (len(rollout.returns_B) - 1)


def plain(ratio_BR, advantages_BR, cell):
    return -ratio_BR * advantages_BR
