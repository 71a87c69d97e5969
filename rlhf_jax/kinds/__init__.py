"""Kinds of cell."""

from rlhf_jax.kinds.best_of_n.cell import BestOfN
from rlhf_jax.kinds.compare.cell import Compare
from rlhf_jax.kinds.dpo.cell import DPO
from rlhf_jax.kinds.ensemble.cell import Ensemble
from rlhf_jax.kinds.evaluate.cell import Evaluate
from rlhf_jax.kinds.feedback.cell import Feedback
from rlhf_jax.kinds.ppo.cell import PPO
from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.kinds.prompting.cell import Prompting
from rlhf_jax.kinds.reward.cell import Reward
from rlhf_jax.kinds.sft.cell import SFT
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.cell import Cell

KINDS: dict[str, type[Cell]] = {
    c.KIND: c
    for c in (
        Pretrain,
        SFT,
        Compare,
        Feedback,
        Reward,
        Ensemble,
        PPO,
        DPO,
        BestOfN,
        Evaluate,
        Prompting,
    )
}
__all__ = [
    "DPO",
    "KINDS",
    "PPO",
    "SFT",
    "BestOfN",
    "Compare",
    "Ensemble",
    "Evaluate",
    "Feedback",
    "Pretrain",
    "Prompting",
    "Reward",
    "TaskConfig",
]
