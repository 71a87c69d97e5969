"""Four kinds of human feedback on one policy, from the same number of prompts each: demonstrations,
corrections, critiques and orderings, and every way from each to a better policy.

    rlhf-jax run experiments/feedback_kinds.py
    rlhf-jax run experiments/feedback_kinds.py --tiny

| kind | what people give for 512 prompts | what learns from it |
|---|---|---|
| demonstrations | true continuations that they like | SFT |
| corrections | edits of the policy's samples | SFT on edits; edit over sample: DPO, rewards |
| critiques | critique, verdict, perhaps revision of each sample | SFT on all; verdict as reward |
| orderings | rankings of the samples of a prompt | DPO; reward model and PPO |

Corrections, critiques and orderings are of the same samples, 4 to a prompt. People, who are
simulated, find good what scores at least 0.05, the compound score from which VADER calls a text
positive, and take negative words out of what they edit. They edit few samples, about 1 in 16: most
have no negative word. Each of four seeds has its own prompts, feedback and policies; all are
evaluated against the policy that they started from, on the same 512 held-out prompts (in the tiny
form, only what PPO made).

A critique's revision is the edit that a correction is, so SFT on revisions alone is SFT on
corrections. The model of critiques is evaluated as a policy as well, to see what judging costs it;
`results/judge.json` of `sft-critiques-s*` says how its verdicts agree with the critic's on held-out
samples.

Cost: see `rlhf-jax plan`; about 10 minutes on 2 CPU cores. Expected: orderings gain most, because
they alone say how good a response is; edits are few, and only take away; the critique model ranks
held-out samples better than chance, and as a policy writes critiques where it should continue a
sentence (seen on one seed with a slower rate: KL 26 nats, gold down by 0.08).
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

from rlhf_jax.kinds import DPO, PPO, SFT, Compare, Evaluate, Feedback, Reward
from rlhf_jax.study import OptimConfig, Study
from rlhf_jax.study.cell import Cell

PROMPTS, HELDOUT, SAMPLES = 512, 128, 4
LIKED = 0.05  # gold score
BATCH = {"orderings": 8, "corrections": 4}  # prompts a step: 64 and about 30 steps of one epoch
MORE_SFT = OptimConfig(lr=5e-4, weight_decay=0.0)


def study(tiny: bool = False) -> Study:
    cells: list[Cell] = [
        base("policy-base", model(2, 64), 65_536 if tiny else 4_000_000),
        demonstrated("sft", "policy-base", tiny),
    ]
    for seed in SEEDS[:1] if tiny else SEEDS:
        cells += asked(seed, tiny)
        cells += learned(seed, tiny)
    return Study(
        name="feedback-kinds-tiny" if tiny else "feedback-kinds",
        title="Four kinds of human feedback",
        corpus=CORPUS,
        cells=tuple(cells),
    )


def asked(seed: int, tiny: bool) -> list[Cell]:
    """What people say of one set of samples. Demonstrations come from the corpus."""
    prompts, heldout = (128, 64) if tiny else (PROMPTS, HELDOUT)
    return [
        Feedback(
            f"corrections-s{seed}",
            policy="sft",
            task=TASK,
            gives="corrections",
            prompts=prompts,
            heldout_prompts=heldout,
            k=SAMPLES,
            min_gold=LIKED,
            seed=seed,
        ),
        Feedback(
            f"critiques-s{seed}",
            policy="sft",
            task=TASK,
            gives="critiques",
            prompts=prompts,
            heldout_prompts=heldout,
            k=SAMPLES,
            min_gold=LIKED,
            seed=seed,
        ),
        Compare(
            f"orderings-s{seed}",
            policy="sft",
            task=TASK,
            prompts=prompts,
            heldout_prompts=heldout,
            k=SAMPLES,
            noise=0.1,
            seed=seed,
        ),
    ]


def learned(seed: int, tiny: bool) -> list[Cell]:
    """A policy by every way from feedback, and its evaluation."""
    corrections, critiques, orderings = (
        f"{kind}-s{seed}" for kind in ("corrections", "critiques", "orderings")
    )
    by_orderings, by_corrections = f"reward-orderings-s{seed}", f"reward-corrections-s{seed}"
    critic = f"sft-critiques-s{seed}"
    prompts = 128 if tiny else PROMPTS
    policies: list[tuple[Cell, str]] = [  # and the reward that its evaluation names
        (sft("demonstrations", None, prompts, seed), by_orderings),
        (sft("corrections", corrections, prompts, seed), by_corrections),
        (dpo("corrections", corrections, seed), by_corrections),
        (ppo("corrections", by_corrections, seed, tiny), by_corrections),
        (sft("critiques", critiques, 2 * SAMPLES * prompts, seed), critic),
        (ppo("critiques", critic, seed, tiny), critic),
        (dpo("orderings", orderings, seed), by_orderings),
        (ppo("orderings", by_orderings, seed, tiny), by_orderings),
    ]
    cells: list[Cell] = [
        reward(by_orderings, orderings, seed),
        reward(by_corrections, corrections, seed),
    ]
    for policy, scored_by in policies:
        evaluation = Evaluate(
            f"eval-{policy.name}",
            before="sft",
            after=policy.name,
            reward=scored_by,
            task=TASK,
            prompts=64 if tiny else 512,
        )
        cells += [policy, evaluation] if isinstance(policy, PPO) or not tiny else [policy]
    return cells


def sft(kind: str, records: str | None, examples: int, seed: int) -> SFT:
    """More of it, by small batches; demonstrations are others than those that "sft" has seen first.
    To judge is new to the model and takes more: at a rate of 5e-4, one epoch, it ranked 58% of
    held-out pairs of a good and a bad sample right instead of 73%."""
    judges = kind == "critiques"
    return SFT(
        f"sft-{kind}-s{seed}",
        base="sft",
        task=TASK,
        records=records,
        examples=examples,
        min_gold=LIKED,
        epochs=4,
        batch=16 if judges else 4,
        optim=REWARD_OPTIM if judges else MORE_SFT,
        seed=100 + seed,
    )


def reward(name: str, comparisons: str, seed: int) -> Reward:
    return Reward(
        name,
        base="sft",
        comparisons=comparisons,
        batch=BATCH[comparisons.split("-")[0]],
        optim=REWARD_OPTIM,
        seed=seed,
    )


def dpo(kind: str, comparisons: str, seed: int) -> DPO:
    return DPO(
        f"dpo-{kind}-s{seed}",
        policy="sft",
        comparisons=comparisons,
        batch=BATCH[kind],
        seed=seed,
    )


def ppo(kind: str, reward: str, seed: int, tiny: bool) -> PPO:
    """All with one KL coefficient: every reward has mean 0 and variance 1 on what it learned
    from."""
    return PPO(
        f"ppo-{kind}-s{seed}",
        policy="sft",
        reward=reward,
        task=TASK,
        seed=seed,
        kl_coef=0.05,
        iterations=3 if tiny else 40,
        optim=POLICY_OPTIM,
    )
