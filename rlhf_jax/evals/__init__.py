"""Measuring what was trained: held-out loss, diversity, policies side by side."""
