"""What a PPO cell takes of memory, by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf_jax.cost.flops import param_counts
from rlhf_jax.cost.memory import BASELINE_BYTES, sampling_bytes, training_bytes
from rlhf_jax.study.config import ModelConfig

if TYPE_CHECKING:
    from rlhf_jax.kinds.ppo.cell import PPO


def rlhf_bytes(
    cell: PPO,
    policy: ModelConfig,
    critic: ModelConfig | None,
    rewards: Sequence[ModelConfig],
    accumulate: int = 1,
) -> dict[str, float]:
    """What a PPO cell takes, by part: the trained models with gradients and Adam moments, the
    frozen ones, and the larger of what sampling and an update need beside them. `critic` None or
    the policy's own: it has no parameters of its own, as far as `cell` says so. `accumulate`:
    micro-batches of an update and of scoring; the sampler's cache is of all rows."""
    s = cell.task.prompt_len + cell.task.response_len
    rows = cell.batch * cell.samples
    trained = {"policy": policy}
    if critic is not None and cell.critic != "shared":
        trained["critic"] = critic
    size = {name: 4.0 * param_counts(cfg)["total"] for name, cfg in trained.items()}
    parts = {f"{name} with gradients and Adam": 5 * n for name, n in size.items()}
    parts["reference"] = 4.0 * param_counts(policy)["total"]
    if cell.ema is not None:
        parts["average of the policy"] = parts["reference"]
    if rewards:
        name = "reward model" if len(rewards) == 1 else f"{len(rewards)} reward models"
        parts[name] = sum(4.0 * param_counts(cfg)["total"] for cfg in rewards)
    micro = max(1, rows // cell.minibatches // accumulate)
    update = sum(training_bytes(cfg, micro, s, trained=0) for cfg in trained.values())
    parts["activations of an update or the sampler's cache"] = max(
        update, sampling_bytes(policy, rows, s, 0, accumulate)
    )
    parts["process"] = BASELINE_BYTES
    return parts
