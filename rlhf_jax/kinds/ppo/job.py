"""PPO cells: what `rlhf_jax.rl` computes, wired to prompts, a reward and the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.cost.memory import available_bytes, written
from rlhf_jax.data.loader import batch_rows
from rlhf_jax.evals.diversity import distinct_n
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.ppo.cell import PPO
from rlhf_jax.kinds.ppo.memory import rlhf_bytes
from rlhf_jax.kinds.ppo.result import LastIteration, PPOResult
from rlhf_jax.model import param_axes, with_scalar_head, without_scalar_head
from rlhf_jax.model.sharding import place, place_batch
from rlhf_jax.rl.diagnosis import diagnose
from rlhf_jax.rl.ppo import make_ppo_step
from rlhf_jax.rl.rollout import Networks, check_sampler
from rlhf_jax.rl.scores import Reward
from rlhf_jax.study.config import ModelConfig
from rlhf_jax.study.results import from_json
from rlhf_jax.train import init_state, train

TEXTS = ("prompts", "responses", "mask")  # arrays among an iteration's metrics


def run(ctx: Context, cell: PPO) -> PPOResult:
    """Improve a policy against a reward. The result is the last iteration's metrics and what the
    logged iterations show to have gone wrong (`rlhf_jax.rl.diagnosis`), by name."""
    run, cfg, task = ctx.runtime, ctx.model, cell.task
    policy = ctx.language_model(cell.policy)
    reward = ctx.reward(cell.reward)
    frozen = {
        "reference": jax.tree.map(jnp.copy, policy),
        "reward": reward.arrays,
        "seed": jnp.uint32(cell.seed),
    }
    models, critic = _trained(ctx, cell, policy, reward)
    networks = Networks(cfg, critic)
    print_memory_plan(ctx, cell, networks)
    state = init_state(models, cell.optim, cell.iterations, kl_coef=jnp.float32(cell.kl_coef))
    if cell.ema is not None:
        average = jax.tree.map(jnp.copy, models["policy"])
        state = state.replace(params={**models, "ema": average})
    prompts = ctx.prompts(task, "train", cell.prompts, cell.seed)
    texts = dict(zip(map(bytes, prompts.ids), prompts.texts, strict=True))
    iteration = make_ppo_step(cell, networks, run.axes, reward.score, run.accumulate)
    corpus_rows = cell.ptx_batch * cell.epochs * cell.minibatches if cell.ptx_coef else 0

    def batch_at(t: int) -> dict[str, Any]:
        chosen = {"prompts": prompts.ids[prompt_rows(cell, t)]}
        if not corpus_rows:
            return place_batch(chosen, run.mesh)
        text = ctx.corpus.batch("train", corpus_rows, cell.seed, t)
        return {**place_batch(chosen, run.mesh), "text": place_batch(text, run.mesh, run.axes)}

    def step(state: Any, batch: dict[str, Any]) -> Any:
        return iteration(state, frozen, batch["prompts"], batch.get("text"))

    def row(metrics: dict[str, Any], totals: dict[str, float]) -> dict[str, float]:
        responses = [ctx.corpus.tokenizer.decode(r.tolist()) for r in metrics["responses"]]
        gold = ctx.gold(task, [texts[bytes(p)] for p in metrics["prompts"]], responses)
        return {
            **{k: v for k, v in metrics.items() if k not in TEXTS},
            "reward_gold": float(gold.mean()),
            "distinct_2": distinct_n(metrics["responses"], metrics["mask"], 2),
        }

    seen: set[str] = set()  # in this process, for the log

    def check(k: int, metrics: dict[str, Any]) -> None:
        check_sampler(k, metrics, cfg)
        for name, said in diagnose(cell, cfg, metrics).items():
            if name not in seen:
                run.log(f"{cell.name}, iteration {k}: {name}: {said}")
                seen.add(name)

    train(ctx.folder, state, step, batch_at, cell.iterations, run, row, ctx.beat, check)
    rows = ctx.folder.metrics()
    last = {**rows[-1], "diagnoses": diagnoses(cell, cfg, rows)}
    return PPOResult(from_json(LastIteration, last))


def prompt_rows(cell: PPO, t: int) -> np.ndarray:
    """Rows (B,) of the prompts of iteration t: one batch after the other, and when all have been
    used, all of them again in another order. A cell of fewer iterations begins with the same
    ones."""
    if (t + 1) * cell.batch <= cell.prompts:
        return np.arange(t * cell.batch, (t + 1) * cell.batch)
    return batch_rows(cell.prompts, cell.batch, cell.seed, t)


def diagnoses(cell: PPO, cfg: ModelConfig, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What went wrong, from the rows of metrics.jsonl, and when it was first seen. They are the
    same however often the cell was interrupted."""
    found: dict[str, str] = {}
    for row in rows:
        for name, said in diagnose(cell, cfg, row).items():
            found.setdefault(name, f"first in iteration {row['step']}: {said}")
    return found


def _trained(
    ctx: Context, cell: PPO, policy: Any, reward: Reward
) -> tuple[dict[str, Any], ModelConfig | None]:
    """The trained models, `policy` and `critic`, and the critic's shape. The value head starts at
    0. A critic of a reward without a trunk starts from the policy's."""
    run, cfg = ctx.runtime, ctx.model
    if not cell.has_critic:
        return {"policy": policy}, None
    if cell.critic == "shared":
        head = with_scalar_head(policy, cfg, None)
        return {"policy": place(head, param_axes(cfg, True), run.mesh, run.axes)}, cfg
    trunk, critic_cfg = policy, cfg
    if cell.critic == "reward" and reward.trunk:
        trunk, critic_cfg = reward.trunk
    trunk = jax.tree.map(jnp.copy, without_scalar_head(trunk))
    critic = with_scalar_head(trunk, critic_cfg, None)
    critic = place(critic, param_axes(critic_cfg, True), run.mesh, run.axes)
    return {"policy": policy, "critic": critic}, critic_cfg


def print_memory_plan(ctx: Context, cell: PPO, networks: Networks) -> None:
    """What every model will take, before anything is compiled."""
    study = ctx.study
    rewards = [study.model_of(study[n]) for n in study.reward_models(cell.reward)]
    parts = rlhf_bytes(cell, networks.policy, networks.critic, rewards, ctx.runtime.accumulate)
    total, free = sum(parts.values()), available_bytes()
    listed = "; ".join(f"{what} {written(size)}" for what, size in parts.items())
    ctx.runtime.log(f"{cell.name}: memory plan: {listed}; in all {written(total)} a process")
    if free is not None and total > free:
        ctx.runtime.log(
            f"{cell.name}: that is more than the {written(free)} that are free: lower batch or "
            f"samples, raise minibatches or --accumulate, or shard the models (--mesh fsdp=N)"
        )
