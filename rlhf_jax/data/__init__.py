"""Text to batches: sources, corpora, tokenizer, packing, the deterministic loader, feedback."""

from rlhf_jax.data.corpus import Corpus, find, prepare
from rlhf_jax.data.packing import Batch, pack_examples
from rlhf_jax.data.tokenizer import (
    ASSISTANT,
    BOS,
    CONTROL,
    END,
    EOS,
    MASK,
    PAD,
    UNK,
    USER,
    Tokenizer,
)

__all__ = [
    "ASSISTANT",
    "BOS",
    "CONTROL",
    "END",
    "EOS",
    "MASK",
    "PAD",
    "UNK",
    "USER",
    "Batch",
    "Corpus",
    "Tokenizer",
    "find",
    "pack_examples",
    "prepare",
]
