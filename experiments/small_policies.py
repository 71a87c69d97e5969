"""What the RLHF studies of this folder share: the corpus, the task, and models made for CPUs.

Not a study. The task is to continue the opening of a real sentence (Shakespeare, the Bible,
Wikipedia, news); people, who are simulated, like cheerful continuations (VADER's sentiment) that do
not repeat themselves, and rank with noise. With sentiment alone for gold no proxy was ever
over-optimized: `my heart my heart my heart` has nearly the best score there is.
"""

from __future__ import annotations

from rlhf_jax.kinds import SFT, Pretrain, TaskConfig
from rlhf_jax.laws.learning_rate import learning_rate
from rlhf_jax.study import CorpusConfig, ModelConfig, OptimConfig

CORPUS = CorpusConfig()
TASK = TaskConfig(16, 24, gold="rlhf_jax.data.annotators:varied_sentiment")
SEEDS = (0, 1, 2, 3)
BATCH = 16  # rows of pretraining
POLICY_OPTIM = OptimConfig(
    lr=3e-4, schedule="linear", final=0.0, weight_decay=0.0, eps=1e-5, b2=0.999
)
REWARD_OPTIM = OptimConfig(lr=5e-3, weight_decay=0.0)


def model(layers: int, width: int) -> ModelConfig:
    """16 numbers a head, or the whole width if that is less."""
    return ModelConfig(layers=layers, width=width, heads=max(1, width // 16), vocab=CORPUS.vocab)


def base(name: str, shape: ModelConfig, tokens: int, seed: int = 0) -> Pretrain:
    """A pretrained model, at the learning rate of our fitted law."""
    from rlhf_jax.cost.flops import param_counts

    lr = learning_rate(param_counts(shape)["total"], BATCH * CORPUS.seq_len)
    return Pretrain(
        name, model=shape, tokens=tokens, batch=BATCH, optim=OptimConfig(lr=lr), seed=seed
    )


def demonstrated(name: str, base: str, tiny: bool) -> SFT:
    """The same, fine-tuned on true continuations that the labeller does not dislike."""
    return SFT(name, base=base, task=TaskConfig(16, 24), examples=512 if tiny else 8192)
