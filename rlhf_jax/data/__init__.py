"""Text to batches: sources, corpora, tokenizer, packing, the deterministic loader, feedback."""

from .corpus import Corpus, find, prepare
from .packing import Batch, pack_examples
from .tokenizer import ASSISTANT, BOS, CONTROL, END, EOS, MASK, PAD, UNK, USER, Tokenizer

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
