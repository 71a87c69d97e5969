"""The product's PPO iteration on a shape, in a process that `bench.ppo` talks to.

Of the compiled iteration, generation and the rollout are compiled by themselves too, from the
functions that it is made of: scoring is the rollout less generation, updating the iteration less
the rollout.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from rlhf_jax.data.tokenizer import EOS
from rlhf_jax.kinds.ppo.cell import PPO
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.model import has_scalar_head, init, param_axes, with_scalar_head
from rlhf_jax.model.sampler import generate
from rlhf_jax.model.scoring import join, response_log_probs, response_values
from rlhf_jax.model.sharding import AXES, make_mesh, place, place_batch
from rlhf_jax.objectives import reward_modelling
from rlhf_jax.rl.ppo import make_ppo_step
from rlhf_jax.rl.rollout import Networks, check_sampler, rollout
from rlhf_jax.rl.scores import Member, model_reward
from rlhf_jax.study.config import ModelConfig, OptimConfig, from_json
from rlhf_jax.tools.bench.peers import serve
from rlhf_jax.tools.bench.ppo import EPOCHS
from rlhf_jax.tools.bench.shapes import Shape
from rlhf_jax.tools.bench.train_program import named, peak_memory
from rlhf_jax.train import gradients, init_state
from rlhf_jax.train.metrics import matmul_peak

MODELS = ("policy", "reference", "critic", "reward")
COMPLETIONS = 9  # the most that InstructGPT's labellers ranked together


def cell_of(shape: Shape) -> PPO:
    """TRL's formulas (whitening with n - 1, no clipping of gradients), and a learning rate with
    which an iteration moves log-probs by far more than rounding does, and by far less than what PPO
    clips."""
    half = shape.seq_len // 2
    return PPO(
        "ppo",
        task=TaskConfig(half, shape.seq_len - half),
        batch=shape.batch,
        minibatches=1,
        epochs=EPOCHS,
        temperature=0.7,
        no_eos="keep",
        score_at="last",
        whiten_advantages="batch",
        bessel=True,
        optim=OptimConfig(
            lr=3e-5,
            schedule="constant",
            warmup=0.0,
            weight_decay=0.0,
            b1=0.9,
            b2=0.999,
            eps=1e-5,
            clip=1e9,
        ),
    )


def without_eos(params: Any) -> Any:
    """The same model, but that it gives EOS a probability of about exp(-100): every embedding has
    the same first entry, so the state has one too, and EOS's own is far on the other side. The
    other tokens' logits all move alike. So every response has its full length."""
    embed_VD = params["embed"].at[:, 0].set(1.0)
    return {**params, "embed": embed_VD.at[EOS, 0].set(-20.0)}


def models(cfg: ModelConfig) -> dict[str, Any]:
    """Four different ones; the last two have a scalar head."""
    made = {}
    for name, key in zip(MODELS, jax.random.split(jax.random.key(0), len(MODELS)), strict=True):
        params = without_eos(init(cfg, key))
        made[name] = with_scalar_head(params, cfg, key) if name in ("critic", "reward") else params
    return made


class Iterations:
    """A state that iterates, and pieces of the iteration that leave it as it is."""

    def __init__(self, shape: Shape) -> None:
        self.cfg, self.cell = shape.llama, cell_of(shape)
        self.mesh = make_mesh(devices=jax.devices()[:1])
        jax.set_mesh(self.mesh)
        made = jax.jit(lambda: models(self.cfg))()
        self.models = {
            name: place(
                made[name], param_axes(self.cfg, has_scalar_head(made[name])), self.mesh, AXES
            )
            for name in MODELS
        }
        one = jnp.ones(())
        reward = model_reward([Member(self.models["reward"], one, 0 * one)], [self.cfg], AXES)
        self.frozen = {
            "reference": self.models["reference"],
            "reward": reward.arrays,
            "seed": jnp.uint32(0),
        }
        size = (shape.batch, self.cell.task.prompt_len)
        self.ids = np.random.default_rng(0).integers(EOS + 1, shape.vocab, size, np.int32)
        self.prompts = place_batch({"prompts": self.ids}, self.mesh)["prompts"]
        networks = Networks(self.cfg, self.cfg)
        self.score = reward.score
        self.iteration = make_ppo_step(self.cell, networks, AXES, reward.score)
        self.state = self.start()
        key = jax.random.key(1)
        generated, rolled = (
            jax.jit(self._generate),
            jax.jit(
                lambda state, frozen, prompts: rollout(
                    self.cell, networks, AXES, reward.score, state, frozen, prompts, key
                )
            ),
        )
        self.pieces: dict[str, Callable[[], Any]] = {
            "generate": lambda: generated(self.state.params["policy"], self.prompts, key),
            "rollout": lambda: rolled(self.state, self.frozen, self.prompts),
            "iteration": self.step,
        }
        self.scored = jax.jit(self._scored)

    def start(self) -> Any:
        """The state before the first iteration; made anew, because an iteration takes over its
        memory."""
        trained = {name: self.models[name] for name in ("policy", "critic")}
        return init_state(
            jax.tree.map(jnp.copy, trained),
            self.cell.optim,
            1000,
            kl_coef=jnp.float32(self.cell.kl_coef),
        )

    def step(self) -> dict[str, jax.Array]:
        self.state, metrics = self.iteration(self.state, self.frozen, self.prompts)
        return metrics

    def _generate(self, policy: Any, prompts_BP: jax.Array, key: jax.Array) -> Any:
        cell = self.cell
        return generate(
            policy,
            self.cfg,
            prompts_BP,
            key,
            length=cell.task.response_len,
            temperature=cell.temperature,
            axes=AXES,
        )

    def _scored(self, params: Any, frozen: Any, responses_BR: jax.Array) -> dict[str, jax.Array]:
        """What every model says of whole responses."""
        R, temperature = self.cell.task.response_len, self.cell.temperature
        ones_BR = jnp.ones_like(responses_BR)
        rows = join(self.prompts, responses_BR, ones_BR)

        def log_probs(policy: Any) -> jax.Array:
            return response_log_probs(policy, self.cfg, rows, R, temperature, AXES)[0]

        return {
            "log_probs": log_probs(params["policy"]),
            "reference": log_probs(frozen["reference"]),
            "values": response_values(params["critic"], self.cfg, rows, R, AXES),
            "scores": self.score(frozen["reward"], rows, ones_BR.astype(jnp.float32)),
        }


def reward_step_flops(cfg: ModelConfig, completions: int, length: int) -> float:
    """FLOPs that XLA counts in the compiled gradients of one ranking."""
    tokens_NKT = jnp.ones((1, completions, length), jnp.int32)
    batch = {
        "tokens": tokens_NKT,
        "segments": tokens_NKT,
        "positions": jnp.broadcast_to(jnp.arange(length), tokens_NKT.shape),
        "last": jnp.full((1, completions), length - 1),
        "ranks": jnp.arange(completions)[None],
    }
    params = with_scalar_head(init(cfg, jax.random.key(0)), cfg, jax.random.key(1))
    step = jax.jit(
        lambda p, b: gradients(lambda p, b: reward_modelling(p, b, cfg, AXES), p, b, AXES)
    )
    cost = step.lower(params, batch).compile().cost_analysis()
    assert cost is not None
    return float(cost["flops"])


class Program:
    """The operations. `trl_peer` has the same, but for `export` and `reward_step`."""

    def load(self, shape: dict[str, Any]) -> dict[str, Any]:
        self.shape = from_json(Shape, shape)
        self.running = Iterations(self.shape)
        versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
        return {"versions": {**versions, "python": platform.python_version()}}

    def export(self, path: str) -> dict[str, Any]:
        """Writes the models and prompts, and answers with the numbers, that another implementation
        needs to take the same iteration."""
        cell, cfg = self.running.cell, self.running.cfg
        np.savez(path, prompts=self.running.ids, **named(self.running.models))
        task, optim = cell.task, cell.optim
        return {
            "model": {"vocab": cfg.vocab, "rope_base": cfg.rope_base},
            "ppo": {
                "response_length": task.response_len,
                "num_ppo_epochs": cell.epochs,
                "num_mini_batches": cell.minibatches,
                "temperature": cell.temperature,
                "kl_coef": cell.kl_coef,
                "cliprange": cell.clip,
                "cliprange_value": cell.value_clip,
                "vf_coef": cell.value_coef,
                "gamma": cell.gamma,
                "lam": cell.lam,
                "learning_rate": optim.lr,
                "adam_beta1": optim.b1,
                "adam_beta2": optim.b2,
                "adam_epsilon": optim.eps,
                "weight_decay": optim.weight_decay,
            },
        }

    def once(self, path: str) -> dict[str, Any]:
        """Takes the first iteration and writes its responses, and what the models said of them
        before and after."""
        run = self.running
        start, run.state = time.perf_counter(), run.start()
        metrics = run.step()
        jax.block_until_ready(run.state)
        seconds = time.perf_counter() - start
        check_sampler(0, jax.device_get(metrics), run.cfg)
        responses = metrics["responses"]
        before = run.scored(run.start().params, run.frozen, responses)
        after = run.scored(run.state.params, run.frozen, responses)
        np.savez(
            path,
            responses=responses,
            **before,
            **{f"{name}_after": after[name] for name in ("log_probs", "values")},
        )
        names = ("policy_loss", "value_loss", "stop_rate")
        return {"seconds": seconds, **{name: float(metrics[name]) for name in names}}

    def time(self, count: int) -> dict[str, Any]:
        """Mean seconds of each piece, one after the other `count` times; the first call
        compiles."""
        cpu, start, spent = time.process_time(), time.perf_counter(), {}
        for name, piece in self.running.pieces.items():
            begin = time.perf_counter()
            for _ in range(count):
                jax.block_until_ready(piece())
            jax.block_until_ready(self.running.state)
            spent[name] = (time.perf_counter() - begin) / count
        return {
            "total": spent["iteration"],
            "generate": spent["generate"],
            "score": spent["rollout"] - spent["generate"],
            "update": spent["iteration"] - spent["rollout"],
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "peak_memory_bytes": peak_memory(),
        }

    def reward_step(self) -> dict[str, Any]:
        """FLOPs of a reward step on one ranking, and on one completion alone."""
        cfg, length = self.running.cfg, self.shape.seq_len
        many, one = (reward_step_flops(cfg, n, length) for n in (COMPLETIONS, 1))
        return {"completions": COMPLETIONS, "flops": many, "flops_of_one": one, "ratio": many / one}

    def peak(self) -> dict[str, Any]:
        return {"flops": matmul_peak()}


if __name__ == "__main__":
    serve(Program())
