"""The three steps of InstructGPT (Ouyang et al. 2022), on one's own machine: demonstrations, a
reward model from rankings of nine outputs, PPO held near its reference; and what that does to the
model.

    rlhf-jax run experiments/rlhf_instructgpt.py
    rlhf-jax run experiments/rlhf_instructgpt.py --tiny

A language model of 431k parameters continues the openings of real sentences; simulated people like
cheerful continuations that do not repeat themselves. Step 1 fine-tunes it on true continuations;
step 2 asks for rankings of 9 samples a prompt (36 pairs in one element) and trains four reward
models, seeds of one another; step 3 optimises four policies with PPO, with and without the
pretraining gradients of PPO-ptx. Beside them DPO on the same rankings and fine-tuning on the best
of 16 (rejection sampling). Every policy is compared with step 1's on the same 512 held-out prompts.

Cost: 7.9e13 FLOPs, 44 minutes of one-thread workers. Measured: PPO gains most and loses most (KL,
diversity, perplexity, calibration); PPO-ptx gives half of the gain back, and all of the perplexity;
DPO grows long.
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

from rlhf_jax.kinds import DPO, PPO, SFT, BestOfN, Compare, Evaluate, Reward
from rlhf_jax.study import OptimConfig, Study
from rlhf_jax.study.cell import Cell

KL_COEF = 0.1
PTX_COEF = 1.0  # weight of a text token's loss beside a response token's


def study(tiny: bool = False) -> Study:
    cells: list[Cell] = [
        base("base", model(3, 96), 65_536 if tiny else 4_000_000),
        demonstrated("sft", "base", tiny),
        Compare(
            "compare",
            policy="sft",
            task=TASK,
            prompts=64 if tiny else 2048,
            heldout_prompts=64 if tiny else 256,
            k=9,
            noise=0.1,
        ),
    ]
    for seed in SEEDS[:1] if tiny else SEEDS:
        reward = Reward(
            f"reward-{seed}", base="sft", comparisons="compare", optim=REWARD_OPTIM, seed=seed
        )
        best = BestOfN(
            f"best-{seed}",
            policy="sft",
            reward=reward.name,
            task=TASK,
            split="train",
            prompts=64 if tiny else 1024,
            n=16,
            seed=seed,
        )
        policies: list[Cell] = [
            improved(f"ppo-{seed}", reward.name, seed, tiny),
            improved(f"ppo-ptx-{seed}", reward.name, seed, tiny, PTX_COEF),
            DPO(
                f"dpo-{seed}",
                policy="sft",
                comparisons="compare",
                beta=0.1,
                seed=seed,
                optim=OptimConfig(lr=5e-4, weight_decay=0.0),
            ),
            SFT(
                f"rejection-{seed}",
                base="sft",
                task=TASK,
                records=best.name,
                seed=seed,
                batch=8,
                epochs=2,
            ),
        ]
        cells += [reward, best, *policies]
        cells += [
            Evaluate(
                f"eval-{cell.name}",
                before="sft",
                after=cell.name,
                reward=reward.name,
                task=TASK,
                prompts=64 if tiny else 512,
            )
            for cell in policies
        ]
    return Study(
        name="instructgpt-tiny" if tiny else "instructgpt",
        title="The three steps of InstructGPT",
        corpus=CORPUS,
        cells=tuple(cells),
    )


def improved(name: str, reward: str, seed: int, tiny: bool, ptx_coef: float = 0.0) -> PPO:
    return PPO(
        name,
        policy="sft",
        reward=reward,
        task=TASK,
        seed=seed,
        kl_coef=KL_COEF,
        iterations=3 if tiny else 60,
        ptx_coef=ptx_coef,
        ptx_batch=8,
        optim=POLICY_OPTIM,
    )
