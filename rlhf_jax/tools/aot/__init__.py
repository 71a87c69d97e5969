"""`rlhf-jax aot`: a training step compiled for TPUs that are not here, and what it would need
there.

`cli` reads the command, `compile` runs libtpu's compiler, `hlo` reads the program it makes,
`program` counts FLOPs, bytes and collectives, `roofline` times them on one of the `chips`,
`forecast` reports.
"""
