"""Trains, samples and runs PPO on one mesh after the other; prints a line of JSON for each.

python tests/tiny_sharded.py data=8 fsdp=2,tensor=2 ...    (with 8 devices; `data=1` with one)
"""

import dataclasses
import functools
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import GQA, noisy_params, packed_batch

from rlhf_jax.kinds import PPO, Pretrain, TaskConfig
from rlhf_jax.kinds.context import Context
from rlhf_jax.kinds.pretrain import job as language
from rlhf_jax.model import decays, network, param_axes, with_scalar_head
from rlhf_jax.model.sampler import generate
from rlhf_jax.model.sharding import AXES, make_mesh, place, place_batch, shardings
from rlhf_jax.objectives import language_modelling
from rlhf_jax.placement.mesh import parse_mesh
from rlhf_jax.rl.ppo import make_ppo_step
from rlhf_jax.rl.rollout import Networks
from rlhf_jax.rl.scores import Member, model_reward
from rlhf_jax.study.config import ModelConfig, OptimConfig
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.train import Runtime, init_state, make_train_step
from rlhf_jax.train.checkpoints import fingerprint

CFG = dataclasses.replace(GQA, layers=1)
DECAYS = functools.partial(decays, CFG)
OPTIM = OptimConfig(lr=1e-2, schedule="constant", warmup=0.0)


def trained(mesh, params):
    """Parameters after three steps, and the losses."""
    step = make_train_step(lambda p, b: language_modelling(p, b, CFG, AXES), OPTIM, DECAYS, AXES)
    state, losses = init_state(params, OPTIM, 3), []
    rows = [[16], [3, 9], [7], [16], [1], [5, 5, 5], [12], [10]]
    for t in range(3):
        tokens, segments, positions = packed_batch(CFG, rows, 16, seed=t)
        batch = {
            "tokens": tokens,
            "segments": segments,
            "positions": positions,
            "targets": np.roll(tokens, -1, 1),
            "weights": (segments > 0).astype(np.float32),
            "bytes": np.ones_like(tokens),
        }
        state, metrics = step(state, place_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return state.params, losses


def sampled(mesh, params, prompts):
    out = jax.jit(lambda p, x, k: generate(p, CFG, x, k, length=6, temperature=0.8, axes=AXES))(
        params, prompts, jax.random.key(0)
    )
    return jax.device_get(out)


def improved(mesh, params, prompts):
    """Parameters and metrics after an iteration of PPO against a reward model."""
    cell = PPO("p", task=TaskConfig(6, 4), batch=8, epochs=2, iterations=1, optim=OPTIM)
    critic = with_scalar_head(jax.tree.map(jnp.copy, params), CFG, None)
    critic = place(critic, param_axes(CFG, True), mesh)
    reward = with_scalar_head(jax.tree.map(jnp.copy, params), CFG, jax.random.key(1))
    reward = place(reward, param_axes(CFG, True), mesh)
    scored = model_reward([Member(reward, 1.5, 0.2)], [CFG], AXES)
    frozen = {
        "reference": jax.tree.map(jnp.copy, params),
        "reward": scored.arrays,
        "seed": jnp.uint32(0),
    }
    state = init_state({"policy": params, "critic": critic}, OPTIM, 1, kl_coef=jnp.float32(0.1))
    step = make_ppo_step(cell, Networks(CFG, CFG), AXES, scored.score)
    state, metrics = step(state, frozen, prompts)
    return state.params, metrics


def born(mesh):
    """What a device holds of a model that is made on the mesh, of its moments, of copies and heads,
    and the memory that making it takes; and the parameters' bytes."""
    cfg, key = ModelConfig(layers=2, width=64, heads=4, vocab=512, ff=256), jax.random.key(3)
    # The way of a pretraining cell.
    cell = Pretrain("p", model=cfg, batch=2, tokens=2 * 32, seed=3)
    folder = CellFolder(Path("nowhere"))
    study = SimpleNamespace(corpus=SimpleNamespace(seq_len=32), model_of=lambda cell: cell.model)
    corpus = SimpleNamespace(left_out={})
    ctx = Context(study, cell, {"p": folder}, corpus, Runtime(mesh, AXES), None)
    state = language._pretrain_member(ctx, alone=True).state
    head = place(with_scalar_head(state.params, cfg, key), param_axes(cfg, True), mesh)
    trees = {
        "params": state.params,
        "opt": state.opt,
        "copy": jax.tree.map(jnp.copy, state.params),
        "head": head,
    }
    compiled = network.initialiser(cfg, mesh, AXES).lower(key).compile().memory_analysis()
    digest = hashlib.sha256(
        b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state.params))
    )
    return {
        "whole": sum(x.nbytes for x in jax.tree.leaves(state.params)),
        "held": {
            n: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(t))
            for n, t in trees.items()
        },
        "making": compiled.output_size_in_bytes + compiled.temp_size_in_bytes,
        "layout": all(
            jax.tree.leaves(
                jax.tree.map(
                    lambda x, s: x.sharding == s, state.params, shardings(mesh, param_axes(cfg))
                )
            )
        ),
        "digest": digest.hexdigest(),
    }


def numbers(tree):
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(jax.device_get(tree))]
    return np.concatenate(leaves).tolist()


def main():
    what, *meshes = sys.argv[1:]
    for text in meshes:
        mesh = make_mesh(parse_mesh(text))
        with jax.set_mesh(mesh):

            def fresh(mesh=mesh):
                return place(jax.tree.map(jnp.asarray, noisy_params(CFG)), param_axes(CFG), mesh)

            prompts = np.random.default_rng(0).integers(3, 64, (8, 6)).astype(np.int32)
            prompts[::2, :2] = 0
            prompts = place_batch({"p": prompts}, mesh)["p"]
            line = {"mesh": text, "devices": len(mesh.devices.ravel())}
            if what == "born":
                line |= born(mesh)
            if what == "train":
                out = sampled(mesh, fresh(), prompts)
                params, losses = trained(mesh, fresh())
                line |= {
                    "shards": len({s.index for s in params["layers"]["w_in"].addressable_shards}),
                    "losses": losses,
                    "params": numbers(params),
                    "fingerprint": [int(x) for x in jax.tree.leaves(jax.jit(fingerprint)(fresh()))],
                    "tokens": out.tokens_BR.tolist(),
                    "log_probs": out.log_probs_BR.tolist(),
                }
            if what == "ppo":
                params, metrics = improved(mesh, fresh(), prompts)
                scalars = {k: float(v) for k, v in metrics.items() if np.ndim(v) == 0}
                line |= {"ppo": numbers(params), "ppo_metrics": scalars}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
