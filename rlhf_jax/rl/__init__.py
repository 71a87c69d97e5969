"""Learning from human feedback: comparisons, reward models, PPO."""
