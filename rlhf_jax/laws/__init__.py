"""Scaling laws: FLOP accounting, sweep planning, and fits that refuse rather than guess."""
