"""The files of one run folder; `rlhf_jax.runs` says what lies where."""
