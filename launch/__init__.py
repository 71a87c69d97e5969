"""Launchers: take a study and execute its graph somewhere. They never import jax."""
