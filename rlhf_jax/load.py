"""Finished cells in a notebook: `load_run(path)` gives parameters, tokenizer and config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import ConfigError, ModelConfig, from_json
from rlhf_jax.context import read_model
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.generate import BOS, generate, positions_of
from rlhf_jax.model import forward, logits
from rlhf_jax.parallel import AXES, make_mesh, place_batch
from rlhf_jax.runs import CellFolder, read_json
from rlhf_jax.train import Runtime


@dataclass
class Run:
    """A finished cell's model: `params` is a plain dict of arrays."""

    params: Any
    tokenizer: Tokenizer
    model: ModelConfig
    config: dict[str, Any]
    runtime: Runtime


def load_run(path: str | Path) -> Run:
    """Read a cell folder (a pretraining, SFT, PPO or reward cell that is done)."""
    folder = CellFolder(Path(path))
    config = read_json(folder.path / "config.json")
    if config is None or not folder.checkpoints.is_dir():
        raise ConfigError(
            f"{path} is not a folder of a trained cell (no config.json or no checkpoints); "
            "`rlhf-jax status STUDY` lists the folders"
        )
    mesh = make_mesh()
    jax.set_mesh(mesh)
    runtime = Runtime(mesh, AXES)
    model = from_json(ModelConfig, config["model"])
    data = folder.path.parent.parent / "data" / config["corpus"]
    tokenizer = Tokenizer.load(data / "tokenizer.model")
    params = read_model(folder, model, runtime, scalar_head=config["kind"] == "reward")
    return Run(params, tokenizer, model, config, runtime)


def _prompt(run: Run, prompt: str) -> jax.Array:
    ids = [BOS, *run.tokenizer.encode(prompt)]
    if len(ids) >= run.model.max_positions:
        raise ConfigError(
            f"the prompt is {len(ids)} tokens long; the model was trained on at most "
            f"{run.model.max_positions}"
        )
    rows = {"prompt": np.array([ids], np.int32)}
    return place_batch(rows, run.runtime.mesh, run.runtime.axes)["prompt"]


def sample_text(
    run: Run, prompt: str, tokens: int = 40, temperature: float = 0.8, seed: int = 0
) -> str:
    """A continuation of `prompt`."""
    out = jax.jit(
        lambda p, x, k: generate(
            p, run.model, x, k, length=tokens, temperature=temperature, axes=run.runtime.axes
        )
    )(run.params, _prompt(run, prompt), jax.random.key(seed))
    return run.tokenizer.decode(np.asarray(out.tokens_BR)[0].tolist())


def next_tokens(run: Run, prompt: str, top: int = 10) -> list[tuple[str, float]]:
    """The `top` likeliest next tokens and their probabilities."""
    ids = _prompt(run, prompt)
    ones = jnp.ones_like(ids)
    axes = run.runtime.axes
    x_BTD, _ = forward(run.params, run.model, ids, ones, positions_of(ones), axes)
    p_V = np.asarray(jax.nn.softmax(logits(run.params, run.model, x_BTD, axes)[0, -1]))
    return [(run.tokenizer.piece(int(i)), float(p_V[i])) for i in np.argsort(-p_V)[:top]]
