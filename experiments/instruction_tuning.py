"""Instruction tuning and prompting: zero-, one- and four-shot, before and after, on instructions of
trained types with new words, in phrasings that training held out, and of types that it held out.

    rlhf-jax run experiments/instruction_tuning.py
    rlhf-jax run experiments/instruction_tuning.py --tiny

Wei et al. 2021 (FLAN) and Ouyang et al. 2022 tune on instructions and ask for ones that they held
out. Here ten types of instructions are over common words, so that every answer can be checked
(`instructions`); a model of 431k parameters learns them in the chat template, one to four to a
conversation, with the loss on answers only. It and the base are then asked in that template, whose
control tokens the base has never seen, and in plain lines of questions and answers, which a base
model can go on from. Distractors repeat words of the instruction, so a model that does not follow
it, but likes to repeat, is below chance.

Cost: 2.5e13 FLOPs beyond the base, about 11 minutes of one core. Expected, of one seed, without
worked examples, in the chat template: exact matches 0.5 of trained types with new words, 0.2 in
held-out phrasings, 0.1 of held-out types; right choices 0.7, 0.5 and 0.2, by chance 0.3. So little
carries over to new types: "three times" is answered as "twice". Worked examples change nothing,
before or after.
"""

from __future__ import annotations

from typing import Literal

from small_policies import CORPUS, SEEDS, base, model

from rlhf_jax.kinds import SFT, Prompting, TaskConfig
from rlhf_jax.study import OptimConfig, Study
from rlhf_jax.study.cell import Cell

ITEMS, RECORDS = "instructions:items", "instructions:records"
# Lengths are of an average record; records bring their own.
TASK = TaskConfig(prompt_len=36, response_len=8, prompts="instructions:prompts", template="chat")


def study(tiny: bool = False) -> Study:
    cells: list[Cell] = [
        base("policy-base", model(3, 96), 65_536 if tiny else 4_000_000),
        *(asked("policy-base", template, tiny) for template in ("plain", "chat")),
    ]
    for seed in SEEDS[:2] if tiny else SEEDS:
        tuned = SFT(
            f"sft-{seed}",
            base="policy-base",
            task=TASK,
            records=RECORDS,
            seed=seed,
            examples=512 if tiny else 32_000,
            optim=OptimConfig(lr=4e-3, weight_decay=0.0),
        )
        cells += [tuned, *(asked(tuned.name, template, tiny) for template in ("plain", "chat"))]
    return Study(
        name="instruction-tuning-tiny" if tiny else "instruction-tuning",
        title="Instruction tuning and prompting",
        corpus=CORPUS,
        cells=tuple(cells),
    )


def asked(policy: str, template: Literal["plain", "chat"], tiny: bool) -> Prompting:
    return Prompting(
        f"prompting-{template}-{policy}",
        policy=policy,
        tasks=ITEMS,
        template=template,
        shots=(0, 1, 4),
        items=8 if tiny else 64,
        answer_len=10,
    )
