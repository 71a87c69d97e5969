"""The whole way through, small: an IsoFLOP sweep and its laws, then pretraining, demonstrations,
rankings, a reward model and PPO, evaluated before and after. On real English text.

    rlhf-jax run experiments/demo.py            about 15 minutes on 2 CPU cores
    rlhf-jax run experiments/demo.py --tiny     the same code in about a minute
"""

from rlhf_jax.cells import PPO, SFT, Compare, Evaluate, Pretrain, Reward, TaskConfig
from rlhf_jax.config import CorpusConfig, ModelConfig, OptimConfig
from rlhf_jax.scaling.sweep import isoflop_grid, ladder
from rlhf_jax.study import Analysis, Study


def study(tiny: bool = False) -> Study:
    corpus = CorpusConfig()
    return Study(
        name="demo-tiny" if tiny else "demo",
        title="From a scaling sweep to RLHF, in a quarter of an hour",
        corpus=corpus,
        cells=(*sweep(corpus, tiny), *rlhf(corpus, tiny)),
        analyses=(
            Analysis("isoflop", ("c*",), "compute-optimal sizes"),
            Analysis("lr_check", ("lr-small-*",), "smallest size"),
            Analysis("lr_check", ("lr-large-*",), "largest size"),
        ),
    )


def sweep(corpus: CorpusConfig, tiny: bool) -> list[Pretrain]:
    """Budgets x one ladder of sizes, and the check of the learning-rate law at both ends of it."""
    budgets = (2e9, 4e9) if tiny else (1e11, 2e11, 4e11)
    shapes = ladder((16, 24, 32, 48, 64, 80), corpus.vocab, head_width=8)
    points = isoflop_grid(
        budgets, shapes, corpus.seq_len, batch=16, ratio=(0.0001, 1e9), min_steps=1
    )
    cells = [
        Pretrain(
            p.name, model=p.model, tokens=p.tokens, batch=p.batch, optim=OptimConfig(lr=p.lr)
        )
        for p in points
    ]
    smallest = [p for p in points if p.budget == budgets[0]]
    for end, p in (("small", smallest[0]), ("large", smallest[-1])):
        for factor in (0.25, 1.0, 4.0):
            optim = OptimConfig(lr=p.lr * factor)
            cells.append(
                Pretrain(f"lr-{end}-x{factor:g}".replace(".", "_"), model=p.model, tokens=p.tokens, batch=p.batch, optim=optim)
            )
    return cells


def rlhf(corpus: CorpusConfig, tiny: bool) -> list:
    """Pretrain -> demonstrations -> rankings -> reward model -> PPO on two seeds -> evaluation."""
    model = ModelConfig(layers=2 if tiny else 3, width=32 if tiny else 96, heads=4, vocab=corpus.vocab)
    task = TaskConfig(prompt_len=16, response_len=24)
    seeds = (0, 1)
    return [
        Pretrain("base", model=model, tokens=65_536 if tiny else 2_000_000, batch=16, optim=OptimConfig(lr=3e-3)),
        SFT("sft", base="base", task=task, examples=256 if tiny else 8192),
        Compare("compare", policy="sft", task=task, prompts=64 if tiny else 1024, heldout_prompts=64 if tiny else 256),
        Reward("reward", base="sft", comparisons="compare"),
        *(PPO(f"ppo-{s}", policy="sft", reward="reward", task=task, iterations=3 if tiny else 100, seed=s) for s in seeds),
        *(Evaluate(f"eval-{s}", before="sft", after=f"ppo-{s}", reward="reward", task=task, prompts=64 if tiny else 512) for s in seeds),
    ]
