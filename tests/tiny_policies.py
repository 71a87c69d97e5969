"""Policies and rewards whose every probability and score is known, and a study of them on a tiny
corpus.

A policy here is a `Table`: attention and MLP write nothing, the embedding gives the class of a
token, and the unembedding holds the logits that follow each class. A prompt ends in a word of
`OPENINGS`, which decides the first word of the response; the words of `SAID` follow each other at
random. A reward reads the class of the last token. So the tests compute with numpy what a cell
must report, from the tokens or the texts alone.
"""

from __future__ import annotations

import functools
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_models import WORDS, tiny_corpus
from tiny_results import whole

from rlhf_jax.data.feedback import Demonstration
from rlhf_jax.data.tokenizer import BOS, EOS
from rlhf_jax.kinds import Compare, Pretrain, Reward, TaskConfig
from rlhf_jax.kinds.context import Context
from rlhf_jax.model import init, param_axes
from rlhf_jax.model.sharding import AXES, place
from rlhf_jax.study import Study
from rlhf_jax.study.config import ModelConfig, OptimConfig
from rlhf_jax.study.files import write_json
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.runs import Runs
from rlhf_jax.train import Runtime, init_state, train
from rlhf_jax.train.loop import final_checkpoint
from rlhf_jax.worker import run_cell

CLASSES, VOCAB = 16, 340
MODEL = ModelConfig(layers=1, width=CLASSES, heads=2, vocab=VOCAB, max_positions=64, tied=False)
WIDE = ModelConfig(layers=1, width=32, heads=2, vocab=VOCAB, max_positions=64, tied=False)
SAID = ("good", "bad", "love", "hate", "happy", "sad")
OPENINGS = ("king", "river", "house", "the")
MARKERS = {"train": "love", "validation": "hate", "test": "sad"}  # how a prompt of a split begins
UTILITY = dict(zip(SAID, (1.0, -1.0, 0.7, -0.6, 0.4, -0.3), strict=True))
FIRST = {  # the first word of a response to a prompt that ends in an opening
    "a": dict(zip(OPENINGS, ("good", "bad", "love", "hate"), strict=True)),
    "b": dict(zip(OPENINGS, ("happy", "sad", "good", "bad"), strict=True)),
}
FIXED = OptimConfig(lr=1e-9, schedule="constant", warmup=0.0, weight_decay=0.0)  # moves nothing


# --- what a study names by import path ------------------------------------------------------------


def prompts(split: str, n: int, seed: int) -> list[str]:
    """Different prompts of four to six tokens that begin with the marker of their split."""
    found = []
    for i in range(n):
        text = " ".join([MARKERS[split], *(WORDS[int(digit)] for digit in str(i))])
        found.append(f" {text} {OPENINGS[zlib.crc32(text.encode()) % len(OPENINGS)]}")
    return found


def fits(prompts: Any, responses: Any) -> list[float]:
    """1 for a response that begins as policy a or b begins after this prompt, else 0."""
    return [
        float(any(r.split()[:1] == [first[p.split()[-1]]] for first in FIRST.values()))
        for p, r in zip(prompts, responses, strict=True)
    ]


def gold(prompts: Any, responses: Any) -> list[float]:
    """10 for a response that fits its prompt, plus the mean utility of its words."""
    each = [[UTILITY.get(w, 0.0) for w in r.split()] for r in responses]
    return [
        10 * fit + float(np.mean(u or [0.0]))
        for fit, u in zip(fits(prompts, responses), each, strict=True)
    ]


def last_word(prompts: Any, responses: Any) -> list[float]:
    """The utility of the last word of a response."""
    return [UTILITY.get((r.split() or [""])[-1], 0.0) for r in responses]


def proxy(prompts: Any, responses: Any) -> list[float]:
    """The number of letters of a response, less those of the last word of its prompt."""
    return [float(len(r) - len(p.split()[-1])) for p, r in zip(prompts, responses, strict=True)]


def demonstrations(split: str, n: int, seed: int) -> list[Demonstration]:
    """Answers of one to three words to the prompts of a split."""
    words = [
        [w for w, b in zip(SAID, f"{i:06b}", strict=True) if b == "1"][:3] for i in range(1, 64)
    ]
    asked = prompts(split, n, seed)
    return [Demonstration(p, "".join(f" {w}" for w in words[i % 63])) for i, p in enumerate(asked)]


def first_words(prompts: Any, responses: Any) -> list[str]:
    """The first word of each response, as its mode."""
    return [(r.split() or [""])[0] for r in responses]


TASK = TaskConfig(8, 6, prompts="tiny_policies:prompts", gold="tiny_policies:gold")


# --- policies and rewards -------------------------------------------------------------------------


@functools.cache
def corpus() -> Any:
    """One corpus for all test modules of a process."""
    folder = tempfile.TemporaryDirectory()
    made = tiny_corpus(Path(folder.name))
    made.__dict__["kept"] = folder  # removed with the process
    return made


@functools.cache
def word_ids() -> dict[str, int]:
    """The one token of each word, its space included."""
    ids = {w: corpus().tokenizer.encode(f" {w}") for w in WORDS}
    assert all(len(x) == 1 for x in ids.values())
    return {w: x[0] for w, x in ids.items()}


@functools.cache
def classes() -> np.ndarray:
    """(V,): the class of each token: the words, EOS, BOS, and four of the others."""
    found = 12 + np.arange(VOCAB) % 4
    for i, word in enumerate((*SAID, *OPENINGS)):
        found[word_ids()[word]] = i
    found[EOS], found[BOS] = 10, 11
    return found


class Table(NamedTuple):
    """A policy: logits (CLASSES, V) of the token that follows each class."""

    logits: np.ndarray

    def log_softmax(self, temperature: float = 1.0) -> np.ndarray:
        x = self.logits / temperature
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    def log_probs(self, before: Any, tokens: Any, temperature: float = 1.0) -> np.ndarray:
        """log p of each token after the one before it."""
        return self.log_softmax(temperature)[classes()[np.asarray(before)], np.asarray(tokens)]

    def entropy(self, before: Any, temperature: float = 1.0) -> np.ndarray:
        """Nats of the choice that follows each token."""
        lp = self.log_softmax(temperature)[classes()[np.asarray(before)]]
        return -(np.exp(lp) * lp).sum(-1)


def table(first: str, seed: int, stops: bool = True) -> Table:
    """The two likeliest tokens after every word of `SAID` are equally likely; each word has the
    same logits in another order, so the same entropy. EOS is among them if it `stops`."""
    rng = np.random.default_rng(seed)
    logits = np.full((CLASSES, VOCAB), -20.0)
    logits[10:] = rng.standard_normal((6, VOCAB))
    choices = [word_ids()[w] for w in SAID] + [EOS]
    values = np.array([3.0, 3.0, 1.0, 1.0, 0.0, -0.5, -1.0])
    for i in range(len(SAID)):
        order = rng.permutation(len(choices) - 1)
        order = np.insert(order, rng.integers(0, 4), len(SAID)) if stops else [*order, len(SAID)]
        logits[i, np.array(choices)[order]] = values
    if not stops:
        logits[: len(SAID), EOS] = -20.0
    for i, word in enumerate(OPENINGS, len(SAID)):
        logits[i, choices] = 0.0
        logits[i, word_ids()[FIRST[first][word]]] = 16.0
    return Table(logits)


TABLES = {"a": ("a", 1), "b": ("b", 2), "near": ("a", 3), "endless": ("a", 4, False)}
"""`near` begins as `a` does, and goes on otherwise; `endless` never stops."""


@functools.cache
def policy(name: str) -> Table:
    return table(*TABLES[name])


def trunk(cfg: ModelConfig, logits: np.ndarray | None = None) -> dict[str, Any]:
    """Parameters of a table; without logits of one whose hidden states are the classes."""
    params = jax.device_get(init(cfg, jax.random.key(0)))
    layers = dict(params["layers"])
    for name in ("wo", "w_out"):
        layers[name] = np.zeros_like(layers[name])
    onehot = np.eye(cfg.width, dtype=np.float32)[classes()]
    made = {**params, "layers": layers, "embed": 8 * onehot}
    made["final_norm"] = np.full(cfg.width, cfg.width**-0.5, np.float32)
    made["unembed"] = np.zeros((cfg.width, cfg.vocab), np.float32)
    if logits is not None:
        made["unembed"][:CLASSES] = logits
    return made


class Scores(NamedTuple):
    """A reward: gain x (weight of the last token's class + offset) + bias."""

    cfg: ModelConfig
    weights: np.ndarray
    offset: float
    gain: float
    bias: float

    def params(self) -> dict[str, Any]:
        w = np.zeros(self.cfg.width, np.float32)
        w[:CLASSES] = self.weights
        return {**trunk(self.cfg), "scalar": {"w": w, "b": np.float32(self.offset)}}

    def of(self, last: Any) -> np.ndarray:
        """Scores of responses whose last tokens these are."""
        return self.gain * (self.weights[classes()[np.asarray(last)]] + self.offset) + self.bias


@functools.cache
def scores(name: str) -> Scores:
    draw = np.random.default_rng({"rm": 5, "wide-rm": 6}[name]).standard_normal(CLASSES)
    return (
        Scores(MODEL, draw, 0.3, 0.8, -0.2) if name == "rm" else Scores(WIDE, draw, 0.1, 1.7, 0.4)
    )


# --- a study --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Keeps compiled programs for the cells that come later, which are traced anew; import it
    with `mesh`."""
    settings = {
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR")
        or _compiled().name,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is settings:
            yield


@functools.cache
def _compiled() -> Any:
    return tempfile.TemporaryDirectory()


class Bench:
    """Runs the cells of a study in this process, below those policies and rewards of this file
    that are named."""

    def __init__(self, folder: Path, mesh: Any, *names: str) -> None:
        self.corpus, self.runs = corpus(), Runs(folder)
        self.logged: list[str] = []
        self.runtime = Runtime(mesh, AXES, log=self.logged.append)
        study = self.study()
        for name in names:
            if name in TABLES:
                self.finished(study, name, MODEL, trunk(MODEL, policy(name).logits))
                continue
            model = scores(name)
            where = self.finished(study, name, model.cfg, model.params(), scalar=True)
            report = {"gain": model.gain, "bias": model.bias, "accuracy": 0.5}
            files = whole(Reward.RESULT, {"report": report})
            write_json(where.results / "report.json", files["report"])

    def study(self, *cells: Any) -> Study:
        small = {"batch": 2, "tokens": 64}
        return Study(
            "seams",
            (
                *(Pretrain(name, model=MODEL, seed=i, **small) for i, name in enumerate(TABLES)),
                Pretrain("wide", model=WIDE, **small),
                Compare("never-run", policy="a", task=TASK, prompts=4, heldout_prompts=4),
                Reward("rm", base="a", comparisons="never-run"),
                Reward("wide-rm", base="wide", comparisons="never-run"),
                *cells,
            ),
            self.corpus.cfg,
        )

    def finished(
        self, study: Study, name: str, cfg: ModelConfig, params: Any, scalar: bool = False
    ):
        """A cell's folder as if it had ended with these parameters."""
        ctx = self.context(study, name)
        placed = place(params, param_axes(cfg, scalar), self.runtime.mesh)
        state = init_state(placed, FIXED, 0)
        train(ctx.folder, state, None, None, 0, self.runtime, None, ctx.beat)
        write_json(ctx.folder.path / "done.json", {"finished": "", "seconds": 0.0})
        return ctx.folder

    def context(self, study: Study, name: str) -> Context:
        folders = self.runs.folders(study, self.corpus.content_hash)
        folders[name].path.mkdir(parents=True, exist_ok=True)
        return Context(
            study, study[name], folders, self.corpus, self.runtime, Heartbeat(folders[name])
        )

    def run(self, *cells: Any, beside: tuple[Any, ...] = ()) -> Context:
        """Runs the cells in their order, in a study that has others `beside`; the last one's
        context."""
        study = self.study(*beside, *cells)
        for cell in cells:
            ctx = self.context(study, cell.name)
            run_cell(ctx)
        return ctx

    def checkpoint(self, ctx: Context) -> Any:
        """The parameters of a finished cell as they were saved, on the host."""
        whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def placed(shapes: Any) -> Any:
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes
            )

        return jax.device_get(final_checkpoint(ctx.folder, placed))

    def decoded(self, tokens: Any) -> list[str]:
        return [self.corpus.tokenizer.decode(row) for row in np.asarray(tokens).tolist()]


def last_tokens(texts: list[str]) -> np.ndarray:
    """The last token of each prompt."""
    return np.array([corpus().tokenizer.encode(text)[-1] for text in texts])


def before_each(texts: list[str], tokens_BR: np.ndarray) -> np.ndarray:
    """(B, R): the token before each response token."""
    return np.concatenate([last_tokens(texts)[:, None], tokens_BR[:, :-1]], axis=1)


def up_to_eos(tokens_BR: np.ndarray) -> np.ndarray:
    """(B, R): 1 up to and including the first EOS."""
    stopped = np.cumsum(tokens_BR == EOS, axis=1)
    return ((stopped - (tokens_BR == EOS)) == 0).astype(float)
