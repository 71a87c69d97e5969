"""The model shapes that every benchmark runs on, and the tokens that it feeds to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.messages import suggest


@dataclass(frozen=True)
class Shape:
    """A model and its batch, in float32."""

    name: str
    layers: int
    width: int
    head_width: int
    vocab: int
    batch: int  # rows
    seq_len: int = 128

    @property
    def model(self) -> ModelConfig:
        """GPT-2's architecture without biases in linear layers."""
        return self._transformer(positions="learned", norm="layer", activation="gelu")

    @property
    def llama(self) -> ModelConfig:
        """Llama's architecture with tied embeddings: ours and Transformers' are the same."""
        return self._transformer(positions="rope", norm="rms", activation="swiglu")

    def _transformer(self, **architecture: Any) -> ModelConfig:
        return ModelConfig(
            layers=self.layers,
            width=self.width,
            heads=self.width // self.head_width,
            vocab=self.vocab,
            max_positions=self.seq_len,
            tied=True,
            **architecture,
        )

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.seq_len


LADDER = (
    Shape("2x64", 2, 64, 32, 512, 32),
    Shape("4x128", 4, 128, 32, 512, 32),
    Shape("6x192", 6, 192, 32, 1024, 16),
    Shape("8x256", 8, 256, 32, 1024, 16),
    Shape("12x512", 12, 512, 64, 1024, 8),
)

# Of `bench ppo`: 64 prompts of 32 tokens, and as many tokens of response.
PPO_LADDER = (Shape("2x64", 2, 64, 32, 1024, 64, 64), Shape("4x128", 4, 128, 32, 1024, 64, 64))


def chosen(names: Sequence[str] | None, ladder: Sequence[Shape] = LADDER) -> list[Shape]:
    """The shapes of these names, in the ladder's order; None: all of them.

    Raises:
      ConfigError: a name that the ladder does not have.
    """
    known = [s.name for s in ladder]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"unknown shape {name!r}.{suggest(name, known)}")
    return [s for s in ladder if names is None or s.name in names]


def random_rows(shape: Shape, count: int, seed: int = 0) -> np.ndarray:
    """`count` batches of token ids: (count, B, T+1) int32, uniform over the vocabulary."""
    size = (count, shape.batch, shape.seq_len + 1)
    return np.random.default_rng(seed).integers(0, shape.vocab, size, np.int32)


def batch_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    """A training batch of rows (B, T+1): one document a row, every target counted."""
    tokens, targets = rows[:, :-1].copy(), rows[:, 1:].copy()
    ones = np.ones_like(tokens)
    return {
        "tokens": tokens,
        "targets": targets,
        "segments": ones,
        "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        "weights": ones.astype(np.float32),
        "bytes": ones,
    }
