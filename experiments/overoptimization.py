"""Reward-model over-optimization after Gao, Schulman & Hilton 2022: how gold and proxy reward part
as a policy moves away from where it started, by size and labels of the proxy, and whether ensembles
help.

    rlhf-jax run experiments/overoptimization.py
    rlhf-jax run experiments/overoptimization.py --tiny

The gold reward is a programme (sentiment less repetition), and labels are its own, without noise,
as Gao's are; proxies of 20k, 80k and 431k parameters learn from 128, 512 or 2,048 prompts with 4
ranked completions each. The policy (164k parameters) is optimised against each proxy, with
best-of-n up to 128 and with PPO without a KL penalty, on four seeds with a proxy of its own each;
and against three ensembles of four proxies (Coste et al. 2023).

Cost: 1.1e14 FLOPs, 92 minutes of one-thread workers. Measured: under PPO the gold reward peaks at a
sqrt(KL) of about 4 and falls while every proxy rises, higher for proxies with more labels and for
ensembles; best-of-n never gets there.
"""

from __future__ import annotations

from typing import Literal

from small_policies import (
    CORPUS,
    POLICY_OPTIM,
    SEEDS,
    TASK,
    base,
    demonstrated,
    model,
)

from rlhf_jax.kinds import PPO, BestOfN, Compare, Ensemble, Reward
from rlhf_jax.study import Analysis, OptimConfig, Study
from rlhf_jax.study.cell import Cell

SIZES = {"20k": (1, 16), "80k": (2, 40), "431k": (3, 96)}
# Held-out accuracy with 2,048 prompts after 4 epochs: 65.4%, 72.5%, 75.2%. After one epoch at 5e-3
# 54.4%, 67.7%, 71.9%; the largest after 4 epochs at 5e-3 72.8%.
RATES = {s: OptimConfig(lr=2e-3 if s == "431k" else 5e-3, weight_decay=0.0) for s in SIZES}
BATCHES = {128: 4, 512: 8, 2048: 16}  # prompts a step: 32, 64 and 128 steps an epoch
LABELS = tuple(BATCHES)
MIDDLE = ("80k", 512)
# Proxies that policies are optimised against: all sizes at the middle number of labels, and the
# reverse.
CHOSEN = [(s, n) for s in SIZES for n in LABELS if s == MIDDLE[0] or n == MIDDLE[1]]
COMBINED: dict[str, Literal["mean", "worst", "mean_minus_variance"]] = {
    "mean": "mean",
    "worst": "worst",
    "meanvar": "mean_minus_variance",
}


def study(tiny: bool = False) -> Study:
    tokens = 65_536 if tiny else 4_000_000
    cells: list[Cell] = [
        base("policy-base", model(2, 64), tokens),
        demonstrated("sft", "policy-base", tiny),
        Compare(
            "compare",
            policy="sft",
            task=TASK,
            prompts=128 if tiny else max(LABELS),
            heldout_prompts=64 if tiny else 448,
            k=4,
            noise=0.0,
            annotators=1,
        ),
    ]
    seeds = SEEDS[:2] if tiny else SEEDS
    for size, shape in SIZES.items():
        cells.append(base(f"rm-{size}", model(*shape), tokens))
        for labels in LABELS:
            chosen = (size, labels) in CHOSEN
            for seed in seeds if chosen else seeds[:2]:
                reward = Reward(
                    f"proxy-{size}-{labels}-{seed}",
                    base=f"rm-{size}",
                    comparisons="compare",
                    prompts=min(labels, 64) if tiny else labels,
                    batch=BATCHES[labels],
                    epochs=4,
                    optim=RATES[size],
                    seed=seed,
                )
                cells.append(reward)
                if chosen:
                    cells += optimised(f"{size}-{labels}-{seed}", reward.name, seed, tiny)
    members = tuple(f"proxy-{MIDDLE[0]}-{MIDDLE[1]}-{seed}" for seed in seeds)
    for name, how in COMBINED.items():
        cells.append(Ensemble(f"ensemble-{name}", members=members, combine=how))
        for seed in seeds:
            cells += optimised(f"{name}-{seed}", f"ensemble-{name}", seed, tiny)
    return Study(
        name="overoptimization-tiny" if tiny else "overoptimization",
        title="Over-optimization of reward models",
        corpus=CORPUS,
        cells=tuple(cells),
        analyses=(Analysis("overoptimization", ("bon-*", "ppo-*"), "gold against proxy"),),
    )


def optimised(name: str, reward: str, seed: int, tiny: bool) -> list[Cell]:
    """The policy against one proxy, both ways."""
    return [
        BestOfN(
            f"bon-{name}",
            policy="sft",
            reward=reward,
            task=TASK,
            prompts=16 if tiny else 64,
            n=16 if tiny else 128,
            seed=seed,
        ),
        PPO(
            f"ppo-{name}",
            policy="sft",
            reward=reward,
            task=TASK,
            seed=seed,
            kl_coef=0.0,
            critic="policy",
            iterations=4 if tiny else 80,
            optim=POLICY_OPTIM,
        ),
    ]
