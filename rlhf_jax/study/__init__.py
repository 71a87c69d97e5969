"""What is to be computed, and what has been."""

from rlhf_jax.study.config import ConfigError, CorpusConfig, ModelConfig, OptimConfig
from rlhf_jax.study.graph import Analysis, Study
from rlhf_jax.study.loading import load_study

__all__ = [
    "Analysis",
    "ConfigError",
    "CorpusConfig",
    "ModelConfig",
    "OptimConfig",
    "Study",
    "load_study",
]
