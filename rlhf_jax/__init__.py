"""Scaling experiments on language models and RLHF, in JAX."""
