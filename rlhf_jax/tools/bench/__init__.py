"""`rlhf-jax bench`: how fast the product's own programs are on this machine, and against torch.

`cli` reads the command, `measure` says what there is to measure, `tables` prints it; `shapes` is
the ladder that everything is measured on, `rows` the tokens, `peers` the protocol with the measured
processes. `train` and `population` measure training, and `agreement` checks that both sides compute
the same; `ppo` does both for an iteration of PPO. The processes: `train_program`,
`population_program`, `torch_peer`, `ppo_program`, `trl_peer`, `decode_program`, `data_program`,
`compile_program`. On its own: `python -m rlhf_jax.tools.bench.scale_fit`, how fits grow with the rows of
a table.
"""

from rlhf_jax.tools.bench.cli import add_arguments, command

__all__ = ["add_arguments", "command"]
