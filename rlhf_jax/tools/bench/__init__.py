"""`rlhf-jax bench`: how fast the product's own programs are on this machine, and against torch.

`cli` reads the command, `tables` prints the result; `shapes` are what is measured, `peers` the
protocol with the measured processes, `machine` takes turns between them. `train` and `population`
measure training, and `agreement` checks that both sides compute the same; `ppo` does both for an
iteration of PPO. The processes: `train_program`, `population_program`, `torch_peer`, `ppo_program`,
`trl_peer`. Commands of their own: `device_check` and `scale_corpus`, `scale_fit`, `scale_study`
(how commands grow with their input), by `python -m rlhf_jax.tools.bench.NAME`.
"""
