"""A lossless SentencePiece tokenizer with reserved control tokens.

Byte-pair encoding (Sennrich et al. 2016) rather than a unigram model: its training is integer
counting with fixed tie-breaks, so the same text gives the same pieces on every machine, as content
hashes need; unigram training is floating-point EM. Text is not normalised or stripped, no space is
put in front, and characters outside the alphabet are written as bytes, so
`decode(encode(text)) == text` for every string that UTF-8 can write.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.messages import not_unicode

PAD, BOS, EOS, UNK = 0, 1, 2, 3
CONTROL = ("<|user|>", "<|assistant|>", "<|end|>", "<|mask|>")
USER, ASSISTANT, END, MASK = range(4, 8)
FIRST_BYTE = 4 + len(CONTROL)  # ids of the byte tokens <0x00> .. <0xFF>
FIRST_PIECE = FIRST_BYTE + 256
MIN_VOCAB = FIRST_PIECE + 36

_SPACE = "\u2581"  # SentencePiece writes a space as this character
_SPACE_IDS = [FIRST_BYTE + b for b in _SPACE.encode()]
_SAMPLE_BYTES = 20_000_000
_COVERAGE = 0.9995


@dataclass(frozen=True)
class Tokenizer:
    """A trained tokenizer. Picklable: the processor is made on first use in each process.

    Attributes:
        model: the serialized SentencePiece model.
    """

    model: bytes

    @functools.cached_property
    def _processor(self):
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    def __getstate__(self) -> dict:
        return {"model": self.model}

    @functools.cached_property
    def vocab(self) -> int:
        """V, control and byte tokens included."""
        return self._processor.get_piece_size()

    @functools.cached_property
    def content_hash(self) -> str:
        """sha256 over the pieces in id order: what the model does, not how its file is laid out."""
        pieces = "\n".join(repr(self._processor.id_to_piece(i)) for i in range(self.vocab))
        return hashlib.sha256(pieces.encode()).hexdigest()

    @functools.cached_property
    def token_strings(self) -> tuple[bytes, ...]:
        """The UTF-8 bytes that each token id stands for; empty for control tokens."""
        pieces = (self._processor.id_to_piece(i) for i in range(FIRST_PIECE, self.vocab))
        return (
            *[b""] * FIRST_BYTE,
            *(bytes([b]) for b in range(256)),
            *(piece.replace(_SPACE, " ").encode() for piece in pieces),
        )

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """(V,) int32: UTF-8 bytes per token id, 0 for control tokens; for bits per byte."""
        return np.array([len(s) for s in self.token_strings], np.int32)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS and EOS. No text gives a control token.

        Raises:
            ConfigError: the text holds a lone surrogate, which UTF-8 cannot write.
        """
        if why := not_unicode(text):
            raise ConfigError(why)
        if _SPACE not in text:
            return self._processor.encode(text)
        ids: list[int] = []
        for i, part in enumerate(text.split(_SPACE)):
            ids += _SPACE_IDS * (i > 0)
            ids += self._processor.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; control tokens are skipped, a broken UTF-8 sequence (a model can
        sample one) becomes U+FFFD."""
        strings = self.token_strings
        return b"".join(strings[i] for i in ids).decode("utf-8", "replace")

    def piece(self, id: int) -> str:
        """A token for display: `<|user|>`, `<0x0A>`, ` the`."""
        return self._processor.id_to_piece(int(id)).replace(_SPACE, " ")

    def save(self, path: Path) -> None:
        path.write_bytes(self.model)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        return cls(path.read_bytes())


def every(size: int) -> int:
    """The tokenizer is trained on every n-th document: n, so that of a text of `size` characters
    about 20 MB at most are used."""
    return max(1, -(-size // _SAMPLE_BYTES))


def train(texts: Sequence[str], vocab: int) -> Tokenizer:
    """A tokenizer of exactly `vocab` tokens, the same for the same texts in the same order.

    Raises:
        ConfigError: `vocab` is too small for the byte alphabet, or the text too small for `vocab`.
    """
    import sentencepiece

    if vocab < MIN_VOCAB:
        raise ConfigError(
            f"vocab = {vocab}; expected at least {MIN_VOCAB}: {FIRST_PIECE} ids are control and "
            f"byte tokens, and a few must be left for pieces"
        )
    size, model = sum(map(len, texts)), io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_lines(texts, vocab)),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            max_sentence_length=1 << 30,
            num_threads=1,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            control_symbols=list(CONTROL),
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as e:
        raise _too_small(vocab, size, str(e)) from None
    tokenizer = Tokenizer(model.getvalue())
    if tokenizer.vocab != vocab:
        raise _too_small(vocab, size, f"it yields {tokenizer.vocab} tokens")
    return tokenizer


def _too_small(vocab: int, size: int, reason: str) -> ConfigError:
    return ConfigError(
        f"SentencePiece cannot make vocab = {vocab} tokens of {size:,} characters of training text "
        f"({reason.strip()}); add text or choose a smaller vocab"
    )


def _lines(texts: Sequence[str], vocab: int) -> list[str]:
    """Training lines, cut at characters that get no piece of their own and are written in bytes.
    The most frequent characters, which cover 99.95 percent of the text, get one, but at most half
    of the learned pieces."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    for char in ("\n", "\0", _SPACE):
        counts.pop(char, None)
    order = sorted(counts, key=lambda c: (-counts[c], c))[: (vocab - FIRST_PIECE) // 2]
    covered = np.cumsum([counts[c] for c in order])
    enough = int(np.searchsorted(covered, _COVERAGE * sum(counts.values()))) + 1
    rare = re.compile(f"[^{re.escape(''.join(order[:enough]))}]")
    return [line for text in texts for line in rare.split(text) if line]
