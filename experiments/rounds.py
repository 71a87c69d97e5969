"""RLHF in rounds: new comparisons of the current policy's samples, a new reward model from all
comparisons so far, a new policy, three times; against one round with as many comparisons.

    rlhf-jax run experiments/rounds.py
    rlhf-jax run experiments/rounds.py --tiny

Ouyang et al. 2022 and Bai et al. 2022 collect comparisons on their best policy and train again.
Every policy starts from the same demonstrations and is held near them, so that only what the reward
model was asked differs. Each of four seeds has its own prompts, annotators, reward models and
policies; all are evaluated on the same 512 held-out prompts.

Cost: 3.8e13 FLOPs, 18 minutes of one-thread workers. Measured: the second round is above the single
one on three of four seeds with two thirds of its labels; the third adds nothing, and costs one seed
half.
"""

from __future__ import annotations

from small_policies import (
    CORPUS,
    POLICY_OPTIM,
    REWARD_OPTIM,
    SEEDS,
    TASK,
    base,
    demonstrated,
    model,
)

from rlhf_jax.kinds import PPO, Compare, Evaluate, Reward
from rlhf_jax.study import Study
from rlhf_jax.study.cell import Cell

ROUNDS = 3
PROMPTS = 384  # a round, with 6 ranked completions each
ITERATIONS = 60  # of PPO, a round


def study(tiny: bool = False) -> Study:
    cells: list[Cell] = [
        base("policy-base", model(2, 64), 65_536 if tiny else 4_000_000),
        demonstrated("sft", "policy-base", tiny),
    ]
    for seed in SEEDS[:2] if tiny else SEEDS:
        policy, asked = "sft", list[str]()
        for r in range(1, ROUNDS + 1):
            compare = comparisons(f"compare-{r}-{seed}", policy, 1, 10 * seed + r, tiny)
            reward = Reward(
                f"reward-{r}-{seed}",
                base="sft",
                comparisons=compare.name,
                earlier=tuple(asked),
                epochs=2,
                optim=REWARD_OPTIM,
                seed=seed,
            )
            asked.append(compare.name)
            ppo = improved(f"ppo-{r}-{seed}", reward.name, seed, tiny)
            cells += [
                compare,
                reward,
                ppo,
                evaluated(f"eval-{r}-{seed}", ppo.name, reward.name, tiny),
            ]
            policy = ppo.name
        compare = comparisons(f"compare-once-{seed}", "sft", ROUNDS, 10 * seed, tiny)
        reward = Reward(
            f"reward-once-{seed}",
            base="sft",
            comparisons=compare.name,
            epochs=2,
            optim=REWARD_OPTIM,
            seed=seed,
        )
        ppo = improved(f"ppo-once-{seed}", reward.name, seed, tiny)
        cells += [compare, reward, ppo, evaluated(f"eval-once-{seed}", ppo.name, reward.name, tiny)]
    return Study(
        name="rounds-tiny" if tiny else "rounds",
        title="RLHF in rounds",
        corpus=CORPUS,
        cells=tuple(cells),
    )


def comparisons(name: str, policy: str, rounds: int, seed: int, tiny: bool) -> Compare:
    return Compare(
        name,
        policy=policy,
        task=TASK,
        prompts=rounds * (32 if tiny else PROMPTS),
        heldout_prompts=64,
        k=6,
        noise=0.1,
        seed=seed,
    )


def improved(name: str, reward: str, seed: int, tiny: bool) -> PPO:
    return PPO(
        name,
        policy="sft",
        reward=reward,
        task=TASK,
        seed=seed,
        kl_coef=0.05,
        iterations=3 if tiny else ITERATIONS,
        optim=POLICY_OPTIM,
    )


def evaluated(name: str, policy: str, reward: str, tiny: bool) -> Evaluate:
    return Evaluate(
        name, before="sft", after=policy, reward=reward, task=TASK, prompts=64 if tiny else 512
    )
