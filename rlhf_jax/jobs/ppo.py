"""PPO cells: what `rlhf_jax.rl.ppo` computes, wired to prompts, a reward and the loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.cells import PPO
from rlhf_jax.data.annotators import gold_score
from rlhf_jax.data.loader import batch_rows
from rlhf_jax.data.prompts import prompts_from
from rlhf_jax.evals.diversity import distinct_n
from rlhf_jax.jobs.context import Context
from rlhf_jax.model import param_axes, with_scalar_head
from rlhf_jax.parallel import place, place_batch
from rlhf_jax.rl.ppo import Score, check_sampler, make_ppo_step
from rlhf_jax.study import load_callable
from rlhf_jax.train import init_state, train

LOGGED = (
    "reward_proxy", "kl", "kl_coef", "entropy", "response_length", "stop_rate", "approx_kl",
    "clip_frac", "policy_loss", "value_loss", "loss", "explained_variance", "max_ratio_error",
    "max_logprob_gap", "approx_kl_before", "clip_frac_before", "lr", "grad_norm",
)  # fmt: skip


def ppo(ctx: Context, cell: PPO) -> dict[str, Any]:
    """Improve a policy against a reward. The critic starts from the reward model's trunk (from the
    policy's where the reward is a callable) with a zero head."""
    run, cfg, task = ctx.runtime, ctx.model, cell.task
    policy = ctx.language_model(cell.policy)
    frozen: dict[str, Any] = {"reference": jax.tree.map(jnp.copy, policy)}
    score: Score | None = None
    if ":" in cell.reward:
        score, trunk = callable_score(ctx, cell), policy
    else:
        frozen |= ctx.reward_model(cell.reward)
        trunk = {k: v for k, v in frozen["reward"].items() if k != "scalar"}
    critic = with_scalar_head(jax.tree.map(jnp.copy, trunk), None)
    critic = place(critic, param_axes(cfg, True), run.mesh, run.axes)
    models = {"policy": policy, "critic": critic}
    state = init_state(models, cell.optim, cell.iterations, kl_coef=jnp.float32(cell.kl_coef))
    n = cell.batch * min(cell.iterations, 16)  # prompts come round again after 16 iterations
    prompts = prompts_from(ctx.corpus, "train", n, task.prompt_len, cell.seed, task.response_len)
    ids = np.array([p.prompt_ids for p in prompts], np.int32)
    iteration = make_ppo_step(cell, cfg, run.axes, score, run.accumulate)

    def batch_at(t: int) -> dict[str, jax.Array]:
        return place_batch({"prompts": ids[batch_rows(n, cell.batch, cell.seed, t)]}, run.mesh)

    def step(state: Any, batch: dict[str, jax.Array]) -> Any:
        return iteration(state, frozen, batch["prompts"])

    def row(metrics: dict[str, Any], totals: dict[str, float]) -> dict[str, float]:
        responses = np.asarray(metrics["responses"])
        gold = gold_score([ctx.corpus.tokenizer.decode(r.tolist()) for r in responses])
        return {
            **{k: float(metrics[k]) for k in LOGGED},
            "reward_gold": float(gold.mean()),
            "distinct_2": distinct_n(responses, np.asarray(metrics["mask"]), 2),
        }

    def check(k: int, metrics: dict[str, Any]) -> None:
        if cfg.compute == "float32":
            check_sampler(k, metrics)

    train(ctx.folder, state, step, batch_at, cell.iterations, run, row, ctx.beat, check)
    return {"ppo": ctx.folder.metrics()[-1]}


def callable_score(ctx: Context, cell: PPO) -> Score:
    """A reward that is any `(prompts, responses) -> scores` over texts, called from inside the
    compiled iteration."""
    reward = load_callable(cell.reward)
    decode = ctx.corpus.tokenizer.decode

    def on_host(prompts_BP: np.ndarray, tokens_BR: np.ndarray) -> np.ndarray:
        prompts = [decode(p.tolist()) for p in np.asarray(prompts_BP)]
        responses = [decode(r.tolist()) for r in np.asarray(tokens_BR)]
        return np.asarray(reward(prompts, responses), np.float32)

    def score(frozen: Any, prompts_BP: jax.Array, tokens_BR: jax.Array) -> jax.Array:
        out = jax.ShapeDtypeStruct((prompts_BP.shape[0],), jnp.float32)
        return jax.pure_callback(on_host, out, prompts_BP, tokens_BR)

    return score
