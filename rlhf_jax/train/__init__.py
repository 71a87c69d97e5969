"""The training core: one state, one step, one loop, for every kind of cell that trains."""

from rlhf_jax.train.checkpoints import Checkpoints
from rlhf_jax.train.loop import Diverged, Member, Runtime, Stopped, train, train_together
from rlhf_jax.train.population import Population
from rlhf_jax.train.state import TrainState, apply_gradients, init_state
from rlhf_jax.train.step import gradients, make_train_step, train_step

__all__ = [
    "Checkpoints",
    "Diverged",
    "Member",
    "Population",
    "Runtime",
    "Stopped",
    "TrainState",
    "apply_gradients",
    "gradients",
    "init_state",
    "make_train_step",
    "train",
    "train_step",
    "train_together",
]
