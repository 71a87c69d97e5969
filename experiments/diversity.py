"""What RLHF does to a distribution with three modes, when the optimum is known.

    rlhf-jax run experiments/diversity.py
    rlhf-jax run experiments/diversity.py --tiny

A language model learns to name numbers that cluster around 25, 50 and 75 (in 40, 35 and 25 of 100
texts). People like 75 best, then 50, then 25, and nothing between: rewards 1, 0.8, 0.6, 0. The
policy that is best for reward less beta KL is known, pi_0(x) exp(r(x) / beta) up to a constant, and
so is how often it names a number of each cluster (`optimum`). PPO is asked for five betas, with
four seeds each; then GRPO, RLOO, DPO on rankings, and fine-tuning on the best of 16, through the
same records and rollouts.

Cost: 7.5e13 FLOPs, 41 minutes of one-thread workers. Measured: PPO and RLOO reach the optimum's
shares within a few percent on every seed, three modes at beta 1, one at 0.03; GRPO keeps one at
0.1; DPO names other things.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.kinds import DPO, PPO, SFT, BestOfN, Compare, Evaluate, Pretrain, TaskConfig
from rlhf_jax.study import CorpusConfig, ModelConfig, OptimConfig, Study
from rlhf_jax.study.cell import Cell

CENTRES, SHARES, REWARDS = (25, 50, 75), (0.40, 0.35, 0.25), (0.6, 0.8, 1.0)
SPREAD, WIDTH = 3.0, 12  # standard deviation of a cluster; what still counts as one
TOWNS = ("Athens", "Bergen", "Cork", "Delft", "Evora", "Ghent", "Lyon", "Malmo", "Porto", "Turin")
BETAS = (1.0, 0.3, 0.1, 0.03, 0.0)
SEEDS = (0, 1, 2, 3)
SCORE, MODES, PROMPTS = "diversity:score", "diversity:modes", "diversity:prompts"
VOCAB = 380


def study(tiny: bool = False) -> Study:
    corpus = CorpusConfig(
        sources=("diversity:texts",), vocab=VOCAB, seq_len=64, heldout_tokens=1024, dedup=False
    )
    model = ModelConfig(layers=2, width=48, heads=4, vocab=VOCAB)
    task = TaskConfig(prompt_len=14, response_len=5, prompts=PROMPTS, gold=SCORE)
    base = Pretrain(
        "base",
        model=model,
        tokens=65_536 if tiny else 2_000_000,
        batch=16,
        repeat=True,
        optim=OptimConfig(lr=5e-3),
    )
    optim = OptimConfig(lr=1e-3, schedule="linear", final=0.0, weight_decay=0.0, eps=1e-5, b2=0.999)
    policies: list[Cell] = []
    for seed in SEEDS[:1] if tiny else SEEDS:
        for beta in BETAS[::2] if tiny else BETAS:
            policies.append(
                PPO(
                    f"ppo-beta{beta:g}".replace(".", "") + f"-{seed}",
                    policy="base",
                    reward=SCORE,
                    task=task,
                    seed=seed,
                    iterations=5 if tiny else 150,
                    batch=256,
                    kl_coef=beta,
                    critic="policy",
                    no_eos="keep",
                    optim=optim,
                )
            )
        for algorithm in ("grpo", "rloo"):
            policies.append(
                PPO(
                    f"{algorithm}-beta01-{seed}",
                    policy="base",
                    reward=SCORE,
                    task=task,
                    seed=seed,
                    algorithm=algorithm,
                    samples=8,
                    epochs=1,
                    iterations=5 if tiny else 300,
                    batch=32,
                    kl_coef=0.1,
                    no_eos="keep",
                    kl_in="loss" if algorithm == "grpo" else "reward",
                    optim=optim,
                )
            )
        compare = Compare(
            f"compare-{seed}",
            policy="base",
            task=task,
            prompts=64 if tiny else 1024,
            heldout_prompts=64,
            k=4,
            noise=0.1,
            seed=seed,
        )
        dpo = DPO(
            f"dpo-beta01-{seed}",
            policy="base",
            comparisons=compare.name,
            beta=0.1,
            seed=seed,
            epochs=2,
            optim=OptimConfig(lr=1e-3, weight_decay=0.0),
        )
        best = BestOfN(
            f"best-{seed}",
            policy="base",
            reward=SCORE,
            task=task,
            split="train",
            prompts=64 if tiny else 2048,
            n=16,
            seed=seed,
        )
        tuned = SFT(
            f"rejection-{seed}",
            base="base",
            task=task,
            records=best.name,
            seed=seed,
            batch=8,
            epochs=2,
        )
        policies += [compare, dpo, best, tuned]
    evaluations = [
        Evaluate(
            f"eval-{cell.name}",
            before="base",
            after=cell.name,
            reward=SCORE,
            task=task,
            prompts=64 if tiny else 1024,
            modes=MODES,
        )
        for cell in policies
        if isinstance(cell, PPO | DPO | SFT)
    ]
    return Study(
        name="diversity-tiny" if tiny else "diversity",
        title="Three modes, before and after RLHF",
        corpus=corpus,
        cells=(base, *policies, *evaluations),
    )


def texts(n: int = 20_000, seed: int = 0) -> list[str]:
    """Guests and the numbers that they name; guests differ, so that texts do."""
    rng, found = random.Random(seed), []
    for _ in range(n):
        centre = rng.choices(CENTRES, SHARES)[0]
        number = round(min(max(rng.gauss(centre, SPREAD), centre - WIDTH), centre + WIDTH))
        found.append(f"{_prompt(rng)} {number}")
    return found


def prompts(split: str, n: int, seed: int) -> list[str]:
    """Guests of a split."""
    rng = random.Random(f"{split} {seed}")
    return [_prompt(rng) for _ in range(n)]


def _prompt(rng: random.Random) -> str:
    return f"guest {rng.randrange(100, 1000)} from {rng.choice(TOWNS)}:"


def modes(prompts: Sequence[str], responses: Sequence[str]) -> list[int]:
    """The cluster (0, 1, 2) of each named number, -1 of anything else."""
    found = []
    for response in responses:
        number = int(response) if re.fullmatch(r" \d\d", response) else -WIDTH - 1
        near = [i for i, centre in enumerate(CENTRES) if abs(number - centre) <= WIDTH]
        found.append(near[0] if near else -1)
    return found


def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """What people like: the reward of the number's cluster, 0 without one."""
    return [REWARDS[mode] if mode >= 0 else 0.0 for mode in modes(prompts, responses)]


def optimum(beta: float, shares: Sequence[float]) -> list[float]:
    """Shares of the clusters, and of anything else, under the policy that maximises reward less
    beta KL, where the policy it starts from has `shares`: proportional to share x exp(reward /
    beta)."""
    rewards = (*REWARDS, 0.0)
    if beta == 0:
        return [float(r == max(rewards)) for r in rewards]
    weights = [
        s * math.exp((r - max(rewards)) / beta) for s, r in zip(shares, rewards, strict=True)
    ]
    return [w / sum(weights) for w in weights]


def against_optimum(results: Path) -> list[dict[str, Any]]:
    """Of every evaluated policy of an export: how often it names a number of each cluster, or
    something else, how often the optimum for its beta does that starts from the base's own shares,
    and the KL of both."""
    rows = []
    cells = {c["name"]: c for c in json.loads(results.read_text())["cells"]}
    for cell in cells.values():
        found = (cell["results"].get("evaluation") or {}).get("modes")
        if not found:
            continue
        policy = cells[cell["name"].removeprefix("eval-")]
        beta = policy["config"].get("kl_coef")
        before, after = (
            [*(found[side]["shares"].get(str(i), 0.0) for i in range(3)), found[side]["none"]]
            for side in ("before", "after")
        )
        best = None if beta is None else optimum(beta, before)
        rows.append(
            {
                "policy": policy["name"],
                "beta": beta,
                "before": before,
                "after": after,
                "optimum": best,
                "kl": cell["results"]["evaluation"]["kl"],
                "optimal_kl": best and divergence(best, before),
            }
        )
    return rows


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """KL(p || q) in nats of two sets of shares."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


if __name__ == "__main__":
    for row in against_optimum(Path(__file__).parent / "results" / "diversity" / "results.json"):
        print(json.dumps(row))
