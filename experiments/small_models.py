"""What the scaling studies of this folder share: the corpus and one ladder of sizes, both made for
CPUs.

Not a study. 33.6M unique training tokens at a vocabulary of 512: Shakespeare, the Bible, Wikipedia,
news (about an eighth of it), the documentation of web services, licences, medical definitions.
"""

from __future__ import annotations

from rlhf_jax.laws.sweep import ladder
from rlhf_jax.study import CorpusConfig

CORPUS = CorpusConfig(
    sources=(
        "shakespeare",
        "kjv",
        "wiki",
        "news",
        "botocore",
        "googleapi",
        "licenses",
        "hpo",
    ),
    vocab=512,  # small, so that embeddings are not most of a small model
)

# 14k, 26k, 41k, 80k, 131k, 195k, 382k, 659k and 1.07M parameters.
SHAPES = (
    *ladder((16,), CORPUS.vocab, head_width=16),
    *ladder((24,), CORPUS.vocab, head_width=12),
    *ladder((32, 48, 64, 80, 96, 112, 144), CORPUS.vocab, head_width=16),
)
# of a batch, for every size and budget: 1,024 tokens, so that small budgets have steps enough
ROWS = 8

TINY = 32  # by how much the tiny form of a study shrinks its compute

# Peak learning rate of a trunk in proportion to that of a cosine run
# (experiments/learning_rate.py).
TRUNK_LR = 0.8
