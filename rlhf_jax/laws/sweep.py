"""Plans an IsoFLOP sweep, budgets x a ladder of shapes: tokens, batch and learning rate of every
run, and why a size is left out of a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_jax.cost.flops import flops_per_token, param_counts
from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.laws.learning_rate import learning_rate
from rlhf_jax.study.config import ConfigError, ModelConfig, OptimConfig

ASPECT = 32  # width / layers; small models want more depth than the 100-odd of large ones
MIN_LAYERS = 2
HEAD_WIDTH = 32
MIN_STEPS = 60  # with fewer optimizer steps, warmup dominates the loss
RATIO = (2.0, 200.0)  # tokens a parameter: about 3x in N each way of 20
_NAME = str.maketrans({"+": None, ".": "_"})  # names hold letters, digits, - and _
MIN_SIZES = 5  # a budget with fewer sizes shows no minimum


@dataclass(frozen=True)
class GridPoint:
    """One run of the sweep. budget: wanted FLOPs, `exact` convention; flops: of the whole batches
    that fit; tokens = steps x batch x seq_len; batch in rows; lr: peak."""

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
    """The runs, and for every other (budget, shape) the reason why it is left out."""

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
    """Shapes of increasing size; other fields as in `base`.

    A width has width / head_width heads and `depth(width)` layers; the feed-forward width is the
    activation's default.

    Raises:
      ConfigError: a width that head_width does not divide, or two shapes of equal size.
    """
    base = base or ModelConfig()
    base = replace(base, vocab=vocab, head_width=None, kv_heads=None, ff=None)
    shapes = []
    for width in widths:
        if width % head_width:
            raise ConfigError(f"width {width} is not a multiple of the head width {head_width}")
        heads, layers = width // head_width, depth(width, aspect)
        shapes.append(replace(base, width=width, heads=heads, layers=layers))
    shapes.sort(key=_size)
    for small, large in itertools.pairwise(shapes):
        if _size(small) == _size(large):
            raise ConfigError(f"two shapes of the ladder have {_size(small):,} parameters")
    return tuple(shapes)


def batch_rows(tokens: float, seq_len: int, batch: int, min_steps: int = MIN_STEPS) -> int:
    """Rows in a batch: `batch`, halved until `tokens` are `min_steps` steps or it is 1."""
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
      budgets: FLOPs, `exact` convention. shapes: one ladder, for all budgets.
      seq_len: targets in a row. batch: most rows in a step; see `batch_rows`.
      ratio: least and most tokens a parameter; it should bracket the minimum.
      available_tokens: of the corpus; no run repeats data.
      lr: peak learning rate of (parameters, tokens a batch).
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
            point = grid_point(budget, model, seq_len, batch, min_steps, lr)
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
    min_sizes: int = MIN_SIZES,
    **options: Any,
) -> list[GridPoint]:
    """The runs of `isoflop_plan`, which has the other `options`.

    Raises:
      ConfigError: a budget keeps fewer than `min_sizes` shapes; why each other one is left out.
    """
    plan = isoflop_plan(budgets, shapes, seq_len, batch, **options)
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


def grid_point(
    budget: float,
    model: ModelConfig,
    seq_len: int,
    batch: int,
    min_steps: int = MIN_STEPS,
    lr=learning_rate,
) -> GridPoint:
    """The run of one shape at a budget; arguments as in `isoflop_plan`."""
    rate = flops_per_token(model, seq_len, "exact")
    params = _size(model)
    rows = batch_rows(budget / rate, seq_len, batch, min_steps)
    steps = round(budget / rate / (rows * seq_len))
    tokens = steps * rows * seq_len
    peak = lr(params, rows * seq_len)
    return GridPoint(budget, model, params, tokens, steps, rows, seq_len, peak, rate * tokens)


def pretrain(point: GridPoint, name: str = "", factor: float = 1.0, seed: int = 0) -> Pretrain:
    """The point as a cell with a cosine schedule and `factor` times its learning rate."""
    of_point: dict[str, Any] = {"model": point.model, "tokens": point.tokens, "batch": point.batch}
    optim = OptimConfig(lr=point.lr * factor)
    return Pretrain(name or point.name, optim=optim, seed=seed, **of_point)


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
