"""Finished cells in a notebook: `load_run(path)` gives parameters, tokenizer and config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.data.chat import Template
from rlhf_jax.data.corpus import Corpus
from rlhf_jax.data.integrity import read_manifest
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.evals.next_tokens import encode_prompt
from rlhf_jax.evals.next_tokens import next_tokens as likeliest
from rlhf_jax.kinds.context import read_model
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.model.architecture import architecture
from rlhf_jax.model.sampler import generate
from rlhf_jax.model.sharding import AXES, make_mesh, place_batch
from rlhf_jax.placement.cpu import keep_compiled
from rlhf_jax.study.cell import KNOWN
from rlhf_jax.study.config import ConfigError, CorpusConfig, ModelConfig, from_json
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.messages import warn
from rlhf_jax.train import Runtime


@dataclass
class Run:
    """A finished cell's model: `params` is a plain dict of arrays.

    Attributes:
        task: that it learned, or what it started from; None: text alone.
        template: of its prompts; `dataclasses.replace(run, template="plain")` asks in another one.
        seq_len: tokens in a row of its training, at most.
    """

    params: Any
    tokenizer: Tokenizer
    model: ModelConfig
    config: dict[str, Any]
    runtime: Runtime
    task: TaskConfig | None = None
    template: Template = "plain"
    seq_len: int | None = None


def load_run(path: str | Path) -> Run:
    """Read the folder of a cell that trains a model; of one that is not done, its newest
    checkpoint."""
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
    try:
        architecture(model)
    except ConfigError as e:
        raise ConfigError(f"{e}; set PYTHONPATH to the folder of its module") from None
    root = folder.path.parent.parent
    keep_compiled(root / "compiled")
    data = root / "data" / config["corpus"]
    manifest = read_manifest(data)
    tokenizer = Corpus(data, CorpusConfig(), manifest).tokenizer
    params = read_model(folder, model, runtime)
    learned = config.get("learned_task", config.get("task"))
    task = from_json(TaskConfig, learned) if learned else None
    template = task.template if task else "plain"
    return Run(params, tokenizer, model, config, runtime, task, template, manifest.get("seq_len"))


def sample_text(
    run: Run, prompt: str, tokens: int | None = None, temperature: float = 0.8, seed: int = 0
) -> str:
    """A continuation of `prompt`, up to EOS or `tokens` tokens; None: as many as the cell's task
    takes, or 40.

    Raises:
        ConfigError: a number that cannot be, or more positions than the model has.
    """
    _speaks(run)
    ids = encode_prompt(run.tokenizer, run.model, prompt, run.template)
    tokens = _length(run, ids.shape[1], tokens)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed = {seed}; expected 0 to 2^32 - 1")
    out = jax.jit(
        lambda p, x, k: generate(
            p, run.model, x, k, length=tokens, temperature=temperature, axes=run.runtime.axes
        )
    )(run.params, place_batch({"ids": ids}, run.runtime.mesh)["ids"], jax.random.key(seed))
    return run.tokenizer.decode(np.asarray(out.tokens_BR)[0].tolist())


def _speaks(run: Run) -> None:
    kind = KNOWN.get(run.config.get("kind", ""))
    if kind is not None and "language_model" not in kind.ROLES:
        name = run.config.get("name")
        what = (
            "reward model, which gives scores and" if "reward" in kind.ROLES else "cell that gives"
        )
        raise ConfigError(f"{name} is a {what} no text; name a policy")


def _length(run: Run, prompt: int, tokens: int | None) -> int:
    """Tokens to sample after a prompt of so many. Says where a model is asked for what it never
    learned."""
    most, task = run.model.max_positions, run.task
    given = tokens is not None
    if tokens is None:
        tokens = min(task.response_len if task else 40, most - prompt)
    if prompt + tokens > most and run.model.positions == "learned":
        raise ConfigError(
            f"prompt and continuation take {prompt} + {tokens} tokens, but the model has a table "
            f"of {most} positions; ask for at most {most - prompt}"
        )
    made_for = min(most, run.seq_len or most)
    if prompt + tokens > made_for:
        warn(
            f"prompt and continuation take {prompt} + {tokens} tokens; the model was trained on "
            f"rows of {made_for}, and what it says beyond them means little"
        )
    if task and run.template != task.template:
        warn(
            f"the cell has learned the {task.template} template, and is asked in the "
            f"{run.template} one"
        )
    if task and prompt > task.prompt_len:
        warn(f"the prompt takes {prompt} tokens; the cell's task has at most {task.prompt_len}")
    if task and given and tokens > task.response_len:
        warn(f"asked for {tokens} tokens; the cell's task has at most {task.response_len}")
    return tokens


def next_tokens(run: Run, prompt: str, top: int = 10) -> list[tuple[str, float]]:
    """The `top` likeliest next tokens and their probabilities."""
    _speaks(run)
    return likeliest(run.params, run.model, run.tokenizer, prompt, run.runtime, top, run.template)
