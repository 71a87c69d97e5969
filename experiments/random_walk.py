"""A task with a known optimum: find the shortest way through a graph, having only seen random
walks.

    rlhf-jax run experiments/random_walk.py
    rlhf-jax run experiments/random_walk.py --tiny

The task is that of Chen et al. 2021 (Decision Transformer, "illustrative example"), as a language:
21 nodes with animals for names, a sentence is a walk. A language model learns 20,000 random walks;
then PPO, GRPO, RLOO and REINFORCE ask for short ways to the `ant`. A response scores 1 if it is a
shortest way, less the longer it is, and 0 if it is none; so the best policy's mean is 1.

Cost: 1e13 FLOPs, 11 minutes of a one-thread worker. Measured: PPO 0.998 to 1, the others above
0.99, every seed.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import deque
from collections.abc import Sequence

from rlhf_jax.kinds import PPO, Evaluate, Pretrain, TaskConfig
from rlhf_jax.study import CorpusConfig, ModelConfig, OptimConfig, Study
from rlhf_jax.study.cell import Cell

# Walks end at the first. Each is one token.
NODES = (
    "ant",
    "bee",
    "cat",
    "dog",
    "elk",
    "fox",
    "gnu",
    "hen",
    "imp",
    "jay",
    "kid",
    "lark",
    "mole",
    "newt",
    "owl",
    "pig",
    "quail",
    "ram",
    "seal",
    "toad",
    "urchin",
)
LONGEST = 10  # steps of a walk
SEEDS = (0, 1, 2, 3)
SCORE, PROMPTS = "random_walk:score", "random_walk:prompts"


def study(tiny: bool = False) -> Study:
    corpus = CorpusConfig(
        sources=("random_walk:walks",), vocab=VOCAB, seq_len=64, heldout_tokens=1024, dedup=False
    )
    model = ModelConfig(layers=2, width=64, heads=4, vocab=VOCAB)
    task = TaskConfig(prompt_len=2, response_len=LONGEST + 1, prompts=PROMPTS, gold=SCORE)
    walker = Pretrain(
        "walker",
        model=model,
        tokens=65_536 if tiny else 1_000_000,
        batch=16,
        repeat=True,
        optim=OptimConfig(lr=5e-3),
    )
    cells: list[Cell] = [walker]
    for algorithm in ("ppo", "grpo", "rloo", "reinforce"):
        grouped = algorithm in ("grpo", "rloo")
        for seed in SEEDS[:1] if tiny else SEEDS:
            name = f"{algorithm}-{seed}"
            learner = PPO(
                name,
                policy="walker",
                reward=SCORE,
                task=task,
                seed=seed,
                algorithm=algorithm,
                critic="policy",
                iterations=5 if tiny else 120,
                batch=16 if grouped else 128,
                samples=8 if grouped else 1,
                epochs=4 if algorithm == "ppo" else 1,
                kl_coef=0.0,
                no_eos="keep",
                optim=OptimConfig(
                    lr=1e-3, schedule="linear", final=0.0, weight_decay=0.0, eps=1e-5, b2=0.999
                ),
            )
            evaluate = Evaluate(
                f"eval-{name}",
                before="walker",
                after=name,
                reward=SCORE,
                task=task,
                prompts=64 if tiny else 400,
            )
            cells += [learner, evaluate]
    return Study(
        name="random-walk-tiny" if tiny else "random-walk",
        title="Shortest ways from random walks: a task whose optimum is known",
        corpus=corpus,
        cells=tuple(cells),
    )


VOCAB = 362  # with fewer, some animals take two tokens


@functools.cache
def graph() -> dict[str, list[str]]:
    """Every node's neighbours: each ordered pair is an edge with probability 0.1, and again until
    every node leads to the first."""
    for seed in range(1000):
        rng = random.Random(seed)
        edges = {n: [m for m in NODES if m != n and rng.random() < 0.1] for n in NODES}
        edges[NODES[0]] = []
        if len(distances(edges)) == len(NODES):
            return edges
    raise AssertionError("no seed gives a connected graph")


def distances(edges: dict[str, list[str]]) -> dict[str, int]:
    """Steps of the shortest way from each node to the first, of those that have one."""
    known, queue = {NODES[0]: 0}, deque(NODES[:1])
    while queue:
        node = queue.popleft()
        for before in (n for n in NODES if node in edges[n] and n not in known):
            known[before] = known[node] + 1
            queue.append(before)
    return known


def walks(n: int = 20_000, seed: int = 0) -> list[str]:
    """Random walks from random nodes that end at the first node or after `LONGEST` steps."""
    rng, found = random.Random(seed), []
    for _ in range(n):
        walk = [rng.choice(NODES[1:])]
        while walk[-1] != NODES[0] and len(walk) <= LONGEST and graph()[walk[-1]]:
            walk.append(rng.choice(graph()[walk[-1]]))
        found.append("".join(f" {node}" for node in walk))
    return found


def prompts(split: str, n: int, seed: int) -> list[str]:
    """Start nodes in turn: the same ones for every split, since there are only twenty."""
    starts = [f" {node}" for node in NODES[1:]]
    random.Random(seed).shuffle(starts)
    return [starts[i % len(starts)] for i in range(n)]


def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """(LONGEST + 1 - steps) / (LONGEST + 1 - fewest steps) of a way along edges that ends at the
    first node; 0 of anything else."""
    shortest = distances(graph())
    scores = []
    for prompt, response in zip(prompts, responses, strict=True):
        walk = [*prompt.split(), *response.split()]
        valid = all(b in graph()[a] for a, b in itertools.pairwise(walk))
        ends = valid and walk[-1] == NODES[0]
        steps = len(walk) - 1
        scores.append((LONGEST + 1 - steps) / (LONGEST + 1 - shortest[walk[0]]) if ends else 0.0)
    return scores
