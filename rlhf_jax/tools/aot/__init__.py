"""`rlhf-jax aot`: a training step compiled for TPUs without having them, and what it would need.

`cli` reads the command, `compile` runs libtpu's compiler, `hlo` reads the program it makes,
`program` counts FLOPs, bytes and collectives, `roofline` times them on one of the `chips`,
`forecast` reports.
"""
