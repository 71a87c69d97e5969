"""Plans an IsoFLOP sweep: budgets x a ladder of shapes, as plain descriptions of runs.

The plan is arithmetic: which size trains on how many tokens, at which batch and learning rate. It
says why a size was left out instead of dropping it silently.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlhf_jax.config import ConfigError, ModelConfig
from rlhf_jax.scaling.flops import flops_per_token, param_counts

# The learning-rate law: peak lr = LR0 (N / N0)^-LR_POWER, N all parameters, from trial runs of 10k to 240k
# parameters at 1e11 to 5e11 FLOPs, 2 to 16 rows of 128 tokens a batch; a factor for the batch (its square
# root) made the middle of the ladder worse. One place to tune; check it with `check_lr` at the smallest
# and the largest size of a sweep, and do not trust it far outside of them.
LR0 = 1.6e-2
N0 = 1e5
LR_POWER = 0.9

ASPECT = 32  # width / layers; small models want more depth than the 100-odd of large ones
MIN_LAYERS = 2
HEAD_WIDTH = 32
MIN_STEPS = 60  # fewer optimizer steps say more about warmup than about the model
RATIO = (2.0, 200.0)  # tokens a parameter: about 3x in N each way of 20
_NAME = str.maketrans({"+": None, ".": "_"})  # names hold letters, digits, - and _
MIN_SIZES = 5  # a budget with fewer sizes shows no minimum


@dataclass(frozen=True)
class GridPoint:
    """One run of the sweep. budget: the FLOPs asked for, `exact` convention; flops: those of the
    whole batches that fit; tokens = steps x batch x seq_len; batch in rows; lr the peak."""

    budget: float
    model: ModelConfig
    params: int
    tokens: int
    steps: int
    batch: int
    seq_len: int
    lr: float
    flops: float

    @property
    def name(self) -> str:
        """e.g. `c1e15-d128-l4`, or `c1_5e15-d128-l4`."""
        return f"c{self.budget:.3g}-d{self.model.width}-l{self.model.layers}".translate(_NAME)


@dataclass(frozen=True)
class Plan:
    """The runs, and why each other (budget, shape) in range or not is not among them."""

    points: tuple[GridPoint, ...]
    refused: tuple[str, ...]

    @property
    def flops(self) -> float:
        return math.fsum(point.flops for point in self.points)


def depth(width: int, aspect: int = ASPECT) -> int:
    """Layers of a width: width / aspect, rounded, at least `MIN_LAYERS`."""
    return max(MIN_LAYERS, round(width / aspect))


def ladder(
    widths: Iterable[int],
    vocab: int,
    head_width: int = HEAD_WIDTH,
    aspect: int = ASPECT,
    base: ModelConfig | None = None,
) -> tuple[ModelConfig, ...]:
    """Shapes of increasing size, everything but size as in `base`.

    A width has width / head_width heads and `depth(width)` layers; the feed-forward follows from
    the activation.

    Raises:
      ConfigError: a width that head_width does not divide, or two shapes of equal size.
    """
    base = base or ModelConfig()
    shapes = []
    for width in widths:
        if width % head_width:
            raise ConfigError(f"width {width} is not a multiple of the head width {head_width}")
        shapes.append(
            replace(base, width=width, heads=width // head_width, layers=depth(width, aspect),
                    vocab=vocab, head_width=None, kv_heads=None, ff=None)
        )  # fmt: skip
    shapes.sort(key=_size)
    for small, large in itertools.pairwise(shapes):
        if _size(small) == _size(large):
            raise ConfigError(f"two shapes of the ladder have {_size(small):,} parameters")
    return tuple(shapes)


def learning_rate(params: float) -> float:
    """Peak learning rate of a model with `params` parameters (all of them): LR0 (N / N0)^-LR_POWER."""
    if not params > 0:
        raise ConfigError(f"params is {params}; it must be positive")
    return float(LR0 * (params / N0) ** -LR_POWER)


def batch_rows(tokens: float, seq_len: int, batch: int, min_steps: int = MIN_STEPS) -> int:
    """Rows of a batch: `batch`, halved until `tokens` make at least `min_steps` steps (or it is 1)."""
    while batch > 1 and tokens / (batch * seq_len) < min_steps:
        batch //= 2
    return batch


def isoflop_plan(
    budgets: Sequence[float],
    shapes: Sequence[ModelConfig],
    seq_len: int,
    batch: int,
    ratio: tuple[float, float] = RATIO,
    min_steps: int = MIN_STEPS,
    available_tokens: float | None = None,
    lr=learning_rate,
) -> Plan:
    """Which shapes each budget trains, and why not the others.

    Args:
      budgets: FLOPs, `exact` convention. shapes: one ladder, shared by all budgets.
      seq_len: targets a row. batch: rows a step, at most; see `batch_rows`.
      ratio: least and most tokens a parameter; it should bracket the minimum.
      available_tokens: of the corpus; a run never repeats data.
      lr: peak learning rate from the parameter count.
    """
    if not 0 < ratio[0] < ratio[1]:
        raise ConfigError(f"ratio is {ratio}; expected (least, most) tokens a parameter")
    if batch < 1 or seq_len < 1 or min_steps < 1:
        raise ConfigError(
            f"batch {batch}, seq_len {seq_len}, min_steps {min_steps}: all at least 1"
        )
    points, refused = [], []
    for budget in budgets:
        if not (math.isfinite(budget) and budget > 0):
            raise ConfigError(f"budget {budget!r} is not a positive number of FLOPs")
        for model in shapes:
            point = _point(budget, model, seq_len, batch, min_steps, lr)
            reason = _refusal(point, ratio, min_steps, available_tokens)
            if reason:
                refused.append(f"{point.name}: {reason}")
            else:
                points.append(point)
    return Plan(tuple(points), tuple(refused))


def isoflop_grid(
    budgets: Sequence[float],
    shapes: Sequence[ModelConfig],
    seq_len: int,
    batch: int,
    ratio: tuple[float, float] = RATIO,
    min_steps: int = MIN_STEPS,
    available_tokens: float | None = None,
    min_sizes: int = MIN_SIZES,
    lr=learning_rate,
) -> list[GridPoint]:
    """The runs of `isoflop_plan`; every budget must keep `min_sizes` shapes.

    Raises:
      ConfigError: naming the budget and why each of its other shapes is out.
    """
    plan = isoflop_plan(budgets, shapes, seq_len, batch, ratio, min_steps, available_tokens, lr)
    for budget in budgets:
        kept = [point for point in plan.points if point.budget == budget]
        if len(kept) < min_sizes:
            head = f"c{budget:.3g}-".translate(_NAME)
            reasons = [text for text in plan.refused if text.startswith(head)]
            raise ConfigError(
                f"budget {budget:.3g} keeps {len(kept)} of {len(shapes)} shapes; a minimum needs "
                f"{min_sizes}. Use a finer ladder, another budget or a wider ratio. Left out:\n  "
                + "\n  ".join(reasons)
            )
    return list(plan.points)


def _point(
    budget: float, model: ModelConfig, seq_len: int, batch: int, min_steps: int, lr
) -> GridPoint:
    rate = flops_per_token(model, seq_len, "exact")
    params = _size(model)
    rows = batch_rows(budget / rate, seq_len, batch, min_steps)
    steps = round(budget / rate / (rows * seq_len))
    tokens = steps * rows * seq_len
    return GridPoint(budget, model, params, tokens, steps, rows, seq_len, lr(params), rate * tokens)


def _refusal(
    point: GridPoint, ratio: tuple[float, float], min_steps: int, available: float | None
) -> str | None:
    share = point.tokens / point.params
    if share < ratio[0]:
        return f"{share:.3g} tokens a parameter, under {ratio[0]:g}: too large for the budget"
    if share > ratio[1]:
        return f"{share:.3g} tokens a parameter, over {ratio[1]:g}: too small for the budget"
    if point.steps < min_steps:
        return f"{point.steps} steps of one row, under {min_steps}"
    if available is not None and point.tokens > available:
        return f"needs {point.tokens:.3g} tokens; the corpus has {available:.3g}"
    return None


def _size(model: ModelConfig) -> int:
    return param_counts(model)["total"]


@dataclass(frozen=True)
class LrCheck:
    """Whether the best of several learning rates at one size is bracketed.

    best_lr: of the least loss; None when nothing converged. interior: a worse learning rate lies on
    both sides. resolved: both ends are worse by more than 2 standard errors. reason: in words.
    """

    best_lr: float | None
    interior: bool
    resolved: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_lr(results: Sequence[tuple[float, float, float | None]]) -> LrCheck:
    """Judges (lr, loss, stderr) of one model size; a diverged run has a loss that is not finite.

    Raises:
      ConfigError: fewer than 3 learning rates, or one given twice.
    """
    table = sorted((float(lr), float(loss), float(se or 0.0)) for lr, loss, se in results)
    rates = [lr for lr, _, _ in table]
    if len(set(rates)) < len(rates):
        raise ConfigError(f"a learning rate is given twice: {rates}")
    if len(table) < 3:
        raise ConfigError(f"{len(table)} learning rates cannot bracket a minimum; give at least 3")
    losses = [loss if math.isfinite(loss) else math.inf for _, loss, _ in table]
    best = min(range(len(table)), key=losses.__getitem__)
    if math.isinf(losses[best]):
        return LrCheck(None, False, False, "every run diverged: lower the learning rates")
    lr = rates[best]
    if best in (0, len(table) - 1):
        side = "smallest" if best == 0 else "largest"
        reason = f"the {side} learning rate, {lr:.3g}, has the lowest loss: extend that side"
        return LrCheck(lr, False, False, reason)
    ends = [(losses[i] - losses[best], math.hypot(table[i][2], table[best][2])) for i in (0, -1)]
    if all(gap > 2 * se for gap, se in ends):
        return LrCheck(lr, True, True, f"{lr:.3g} is lowest, and both ends are worse")
    return LrCheck(lr, True, False, f"{lr:.3g} is lowest, but an end is within 2 standard errors")
