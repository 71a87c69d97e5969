"""The training core: one state, one step, one loop, for every kind of cell that trains."""

from rlhf_jax.train.checkpoints import Checkpoints
from rlhf_jax.train.loop import Diverged, Runtime, Stopped, train
from rlhf_jax.train.state import TrainState, apply_gradients, init_state
from rlhf_jax.train.step import gradients, make_train_step

__all__ = [
    "Checkpoints",
    "Diverged",
    "Runtime",
    "Stopped",
    "TrainState",
    "apply_gradients",
    "gradients",
    "init_state",
    "make_train_step",
    "train",
]
