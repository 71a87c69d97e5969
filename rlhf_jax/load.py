"""Finished cells in a notebook: `load_run(path)` gives parameters, tokenizer and config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.config import ConfigError, CorpusConfig, ModelConfig, from_json
from rlhf_jax.cpu import keep_compiled
from rlhf_jax.data.corpus import Corpus
from rlhf_jax.data.integrity import read_manifest
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evals.next_tokens import encode_prompt
from rlhf_jax.evals.next_tokens import next_tokens as likeliest
from rlhf_jax.generate import generate
from rlhf_jax.jobs.context import read_model
from rlhf_jax.parallel import AXES, make_mesh, place_batch
from rlhf_jax.runs import CellFolder
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
    """Read the folder of a cell that trains a model; of one that is not done, its newest checkpoint."""
    folder = CellFolder(Path(path))
    config = folder.json("config.json")
    if folder.kept():
        raise ConfigError(
            f"{path} holds results alone (--kept), no model; to train it here: "
            f"rlhf-jax run STUDY --force {folder.cell_name}"
        )
    if config is None or not folder.checkpoints.is_dir():
        raise ConfigError(
            f"{path} is not a folder of a trained cell (no config.json or no checkpoints); "
            "`rlhf-jax status STUDY` lists the folders"
        )
    mesh = make_mesh(devices=jax.devices()[:1])  # a single prompt cannot be spread over more
    jax.set_mesh(mesh)
    runtime = Runtime(mesh, AXES)
    model = from_json(ModelConfig, config["model"])
    root = folder.path.parent.parent
    keep_compiled(root / "compiled")
    data = root / "data" / config["corpus"]
    tokenizer = Corpus(data, CorpusConfig(), read_manifest(data)).tokenizer
    params = read_model(folder, model, runtime)
    return Run(params, tokenizer, model, config, runtime)


def sample_text(
    run: Run, prompt: str, tokens: int = 40, temperature: float = 0.8, seed: int = 0
) -> str:
    """A continuation of `prompt`."""
    ids = encode_prompt(run.tokenizer, run.model, prompt)
    out = jax.jit(
        lambda p, x, k: generate(
            p, run.model, x, k, length=tokens, temperature=temperature, axes=run.runtime.axes
        )
    )(run.params, place_batch({"ids": ids}, run.runtime.mesh)["ids"], jax.random.key(seed))
    return run.tokenizer.decode(np.asarray(out.tokens_BR)[0].tolist())


def next_tokens(run: Run, prompt: str, top: int = 10) -> list[tuple[str, float]]:
    """The `top` likeliest next tokens and their probabilities."""
    return likeliest(run.params, run.model, run.tokenizer, prompt, run.runtime, top)
