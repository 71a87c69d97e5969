"""A tiny model, shared jitted functions, and a forward pass in plain numpy to compare with."""

from __future__ import annotations

import functools
import json
import os
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data import prepare
from rlhf_jax.data.corpus import Corpus
from rlhf_jax.model import forward, logits
from rlhf_jax.model.parameters import Parameter, describe
from rlhf_jax.model.sharding import AXES, make_mesh
from rlhf_jax.study.config import CorpusConfig, ModelConfig

# Compiling takes most of the tests' time; code that is not optimised is compiled in half of it.
# The second device is for populations. `test_numerics` runs some of the tests as users run models.
USER_FLAGS = "RLHF_JAX_USER_FLAGS"
if USER_FLAGS not in os.environ:
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 "
        + os.environ.get("XLA_FLAGS", "")
    )

GQA = ModelConfig(layers=2, width=16, heads=4, kv_heads=2, vocab=64, max_positions=64)
LEARNED = ModelConfig(
    layers=1,
    width=16,
    heads=2,
    vocab=64,
    ff=24,
    max_positions=64,
    positions="learned",
    norm="layer",
    activation="swiglu",
    tied=False,
)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    """A mesh of one device; import it into a test module to run under it."""
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


def noisy_params(cfg: ModelConfig, seed: int = 0):
    """Parameters of the scale of `init`'s, in which gains are not 1 and biases are not 0."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name = path[-1].key
        noise = rng.standard_normal(shape).astype(np.float32)
        if "norm" in name or "bias" in name:
            return 0.1 * noise + ("norm" in name)
        return noise * cfg.width**-0.5

    return jax.tree_util.tree_map_with_path(
        lambda path, p: draw(path, p.shape),
        describe(cfg),
        is_leaf=lambda x: isinstance(x, Parameter),
    )


@functools.partial(jax.jit, static_argnums=1)
def full_logits(params, cfg, tokens_BT, segments_BT, positions_BT):
    """Logits (B, T, V)."""
    x_DBT, _ = forward(params, cfg, tokens_BT, segments_BT, positions_BT, AXES)
    return jnp.transpose(logits(params, cfg, x_DBT, AXES), (1, 2, 0))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def packed_batch(cfg: ModelConfig, rows, T: int, seed: int = 0):
    """tokens, segments, positions (B, T) of rows given as lists of document lengths; the rest of a
    row is padding whose tokens are arbitrary."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, cfg.vocab, (len(rows), T)).astype(np.int32)
    segments, positions = np.zeros((2, len(rows), T), np.int32)
    for b, lengths in enumerate(rows):
        at = 0
        for segment, n in enumerate(lengths, 1):
            segments[b, at : at + n] = segment
            positions[b, at : at + n] = np.arange(n)
            at += n
    return tokens, segments, positions


# --- the forward pass once more, in float64 and loops ------------------------------------------


def numpy_hidden(params, cfg: ModelConfig, tokens_T, segments_T, positions_T):
    """Final hidden states (T, D) of one row: token by token, head by head."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = [p["embed"][t].copy() for t in tokens_T]
    T = len(x)
    if cfg.positions == "learned":
        x = [x[t] + p["positions"][positions_T[t]] for t in range(T)]
    for i in range(cfg.layers):
        w = {name: value[i] for name, value in p["layers"].items()}
        h = [_norm(v, w["norm1"], w.get("bias1")) for v in x]
        q = [
            [_head(cfg, w, "q", head, h[t], positions_T[t]) for head in range(cfg.heads)]
            for t in range(T)
        ]
        k = [
            [_head(cfg, w, "k", head, h[t], positions_T[t]) for head in range(cfg.K)]
            for t in range(T)
        ]
        v = [[h[t] @ w["wv"][:, head] for head in range(cfg.K)] for t in range(T)]
        out = [np.zeros(cfg.width) for _ in range(T)]
        for t in range(T):
            seen = [
                s
                for s in range(T)
                if segments_T[s] == segments_T[t] != 0 and positions_T[s] <= positions_T[t]
            ]
            for head in range(cfg.heads if seen else 0):
                group = head // (cfg.heads // cfg.K)
                a = np.array([q[t][head] @ k[s][group] / np.sqrt(cfg.C) for s in seen])
                a = np.exp(a - a.max())
                mixed = sum(a_s / a.sum() * v[s][group] for a_s, s in zip(a, seen, strict=True))
                out[t] += mixed @ w["wo"][head]
        x = [x[t] + out[t] for t in range(T)]
        x = [x[t] + _mlp(cfg, w, _norm(x[t], w["norm2"], w.get("bias2"))) for t in range(T)]
    return np.array([_norm(v, p["final_norm"], p.get("final_bias")) for v in x])


def numpy_logits(params, cfg, tokens_T, segments_T, positions_T):
    x_TD = numpy_hidden(params, cfg, tokens_T, segments_T, positions_T)
    table = np.asarray(params["embed"]).T if cfg.tied else np.asarray(params["unembed"])
    return x_TD @ table.astype(np.float64)


def _norm(x, gain, bias):
    if bias is None:
        return x / np.sqrt(np.mean(x * x) + 1e-6) * gain
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * gain + bias


def _head(cfg, w, kind, head, h, position):
    y = h @ w["w" + kind][:, head]
    if cfg.qk_norm:
        y = _norm(y, w[kind + "_norm"], None)
    if cfg.positions != "rope":
        return y
    turned, half = np.empty_like(y), cfg.C // 2
    for i in range(half):
        angle = position * cfg.rope_base ** (-2 * i / cfg.C)
        z = complex(y[i], y[i + half]) * np.exp(1j * angle)
        turned[i], turned[i + half] = z.real, z.imag
    return turned


def _mlp(cfg, w, h):
    y = h @ w["w_in"]
    if cfg.activation == "swiglu":
        gate = h @ w["w_gate"]
        y = y * gate / (1 + np.exp(-gate))
    elif cfg.activation == "relu2":
        y = np.maximum(y, 0) ** 2
    else:
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return y @ w["w_out"]


# --- a corpus ------------------------------------------------------------------------------------

WORDS = ["the", "good", "bad", "king", "love", "hate", "river", "happy", "sad", "house"]


def tiny_corpus_config(folder: Path) -> CorpusConfig:
    """Short generated sentences in `folder`/a.jsonl."""
    rng = random.Random(0)
    with (folder / "a.jsonl").open("w") as file:
        for i in range(150):
            lines = [" ".join(rng.choices(WORDS, k=6)).capitalize() + "." for _ in range(8)]
            file.write(json.dumps({"text": f"Story {i}. {' '.join(lines)}"}) + "\n")
    return CorpusConfig(
        (str(folder / "a.jsonl"),),
        vocab=340,
        seq_len=32,
        validation=0.2,
        test=0.2,
        heldout_tokens=600,
        dedup=False,
    )


def tiny_corpus(folder: Path) -> Corpus:
    return prepare(tiny_corpus_config(folder), folder / "runs", lambda _: None)


def same_bits(a, b) -> bool:
    """Whether two trees of arrays are equal bit for bit."""
    a, b = jax.device_get((a, b))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def copied(tree):
    """A copy that donation does not touch."""
    return jax.tree.map(lambda x: np.array(jax.device_get(x)), tree)


__all__ = [
    "GQA",
    "LEARNED",
    "copied",
    "full_logits",
    "log_softmax",
    "mesh",
    "noisy_params",
    "numpy_hidden",
    "numpy_logits",
    "packed_batch",
    "same_bits",
    "tiny_corpus",
    "tiny_corpus_config",
]
