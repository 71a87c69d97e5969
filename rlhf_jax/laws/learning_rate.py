"""The peak learning rate as a law of model size and batch, and a check of it at one size.

lr(N, B) = LR0 (N / N0)^-N_POWER (B / B0)^B_POWER, after Porian 2024 and Bi 2024 (DeepSeek LLM), who
fit power laws of this kind. The constants below are what `learning_rate_fit` gives for
`experiments/learning_rate.py`; they are the one place to tune, and nobody should trust them far
outside the sizes of that study. Standard library alone: every study file comes by here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_jax.study.config import ConfigError

LR0, N0, B0 = 1.12e-2, 1e5, 1024  # at N0 parameters and B0 tokens a batch
N_POWER = 0.60
B_POWER = 0.52


def learning_rate(params: float, batch_tokens: float) -> float:
    """Peak learning rate (cosine schedule, AdamW) of `params` parameters, all of them, at
    `batch_tokens` tokens a batch."""
    if not (params > 0 and batch_tokens > 0):
        raise ConfigError(f"params is {params}, batch_tokens {batch_tokens}; both must be positive")
    return float(LR0 * (params / N0) ** -N_POWER * (batch_tokens / B0) ** B_POWER)


LAW_IN_WORDS = f"{LR0:g} (N / {N0:,.0f})^-{N_POWER:g} (B / {B0:,})^{B_POWER:g}"


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
