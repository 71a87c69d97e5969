"""Launchers: each runs the cells of a study somewhere. They never import jax."""
