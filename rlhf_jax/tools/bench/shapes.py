"""The ladder of model shapes that every benchmark runs on. Standard library alone: the command line
imports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_jax.study.config import ConfigError, ModelConfig, suggest


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
        return ModelConfig(
            layers=self.layers,
            width=self.width,
            heads=self.width // self.head_width,
            vocab=self.vocab,
            positions="learned",
            max_positions=self.seq_len,
            norm="layer",
            activation="gelu",
            tied=True,
        )

    @property
    def llama(self) -> ModelConfig:
        """Llama's architecture with tied embeddings: ours and Transformers' alike, to the last
        norm."""
        return ModelConfig(
            layers=self.layers,
            width=self.width,
            heads=self.width // self.head_width,
            vocab=self.vocab,
            positions="rope",
            max_positions=self.seq_len,
            norm="rms",
            activation="swiglu",
            tied=True,
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
