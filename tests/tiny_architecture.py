"""A second architecture, in one file as a study's author would write it: gated convolutions over
the last three tokens of a segment. And losses that a study names."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.model import forward, logits
from rlhf_jax.model.dense import dense, lookup
from rlhf_jax.model.parameters import Parameter
from rlhf_jax.model.pointwise import norm

TAPS = 3


class Cache(NamedTuple):
    """The tokens so far: every step computes them again."""

    tokens_BS: jax.Array
    segments_BS: jax.Array
    positions_BS: jax.Array
    length: jax.Array

    def repeated(self, rows_B, axes):
        ids = axes.spec("batch", None)
        return Cache(*(x.at[rows_B].get(out_sharding=ids) for x in self[:3]), self.length)


class Convolution:
    @staticmethod
    def describe(cfg):
        L, D, F = cfg.layers, cfg.width, cfg.F
        matrix = partial(Parameter, counts_as="feed_forward", decays=True, multiplies=True)
        read = matrix((L, D, F), (None, "embed", "ff"), std=D**-0.5)
        return {
            "table": Parameter(
                (cfg.vocab, D), ("vocab", "embed"), "embedding", std=D**-0.5, multiplies=True
            ),
            "blocks": {
                "gain": Parameter((L, D), (None, None), "norms", mean=1.0),
                "read": read,
                "open": read,
                "taps": Parameter((L, TAPS, F), (None, None, "ff"), "attention", std=0.5, mean=0.5),
                "write": matrix((L, F, D), (None, "ff", "embed"), std=F**-0.5),
            },
            "last_gain": Parameter((D,), (None,), "norms", mean=1.0),
        }

    @staticmethod
    def attended(cfg):
        return 0

    @staticmethod
    def init_cache(cfg, batch, length, axes):
        ids = axes.constrain(jnp.zeros((batch, length), jnp.int32), "batch", None)
        return Cache(ids, ids, ids, jnp.int32(0))

    @staticmethod
    def forward(params, cfg, tokens, segments, positions, axes, cache=None, last=None):
        T, start = tokens.shape[1], 0
        if cache is not None:
            start, new = cache.length, (tokens, segments, positions)
            rows = [
                jax.lax.dynamic_update_slice(old, x, (0, start))
                for old, x in zip(cache[:3], new, strict=True)
            ]
            cache = Cache(*rows, start + T)
            tokens, segments, positions = rows
        (B, S), D = tokens.shape, cfg.width
        table = ("vocab", "embed")
        x_BSD = lookup(
            params["table"], tokens, axes.spec("batch", None, None), axes, table, cfg.compute
        )
        x_DN = x_BSD.reshape(B * S, D, out_sharding=axes.spec("batch", None)).T
        for i in range(cfg.layers):
            w = jax.tree.map(lambda p, i=i: p[i], params["blocks"])
            x_DN += _block(w, norm(x_DN, w["gain"], None), segments, positions, axes)
        x_DN = norm(x_DN, params["last_gain"], None)
        x_DBS = x_DN.reshape(D, B, S, out_sharding=axes.spec(None, "batch", None))
        x_DBT = jax.lax.dynamic_slice_in_dim(x_DBS, start, T, axis=2)
        return x_DBT[..., T - min(T, last or T) :], cache

    @staticmethod
    def logits(params, cfg, x_DBT, axes):
        D, B, T = x_DBT.shape
        x_DN = x_DBT.reshape(D, B * T, out_sharding=axes.spec(None, "batch"))
        out, names = axes.spec("vocab", "batch"), ("embed", "vocab")
        y_VN = dense(params["table"].T, x_DN, out, axes, names, dtype=jnp.float32)
        return y_VN.reshape(-1, B, T, out_sharding=axes.spec("vocab", "batch", None))


class Renamed(Convolution):
    """The same under the name that PPO gives a policy among its models."""

    @staticmethod
    def describe(cfg):
        return {"policy": Convolution.describe(cfg)}


def _block(w, x_DN, segments_BS, positions_BS, axes):
    (B, S), out, names = segments_BS.shape, axes.spec("ff", "batch"), ("embed", "ff")
    h_FN, gate_FN = (dense(w[n], x_DN, out, axes, names) for n in ("read", "open"))
    h_FBS = h_FN.reshape(-1, B, S, out_sharding=axes.spec("ff", "batch", None))
    mixed_FBS = jnp.zeros_like(h_FBS)
    for j in range(TAPS):
        before = lambda x, j=j: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(j, 0)])[..., :S]  # noqa: E731
        seen_BS = (before(segments_BS) == segments_BS) & (segments_BS > 0)
        seen_BS &= positions_BS - before(positions_BS) == j
        mixed_FBS += w["taps"][j][:, None, None] * jnp.where(seen_BS, before(h_FBS), 0.0)
    y_FN = mixed_FBS.reshape(-1, B * S, out_sharding=out) * jax.nn.sigmoid(gate_FN)
    return dense(w["write"], y_FN, axes.spec(None, "batch"), axes, ("ff", "embed"))


# --- objectives ----------------------------------------------------------------------------------


SMOOTHING, Z = 0.1, 1e-2


def smoothed(params, batch, cfg, axes):
    """Cross-entropy with label smoothing (Szegedy et al. 2016) and z-loss (PaLM 2022)."""
    x_DBT, _ = forward(params, cfg, batch["tokens"], batch["segments"], batch["positions"], axes)
    scores_VBT = logits(params, cfg, x_DBT, axes)
    log_z_BT = jax.nn.logsumexp(scores_VBT, axis=0)
    log_p_VBT = scores_VBT - log_z_BT
    hit_VBT = jnp.arange(cfg.vocab)[:, None, None] == batch["targets"]
    nll_BT = -jnp.sum(jnp.where(hit_VBT, log_p_VBT, 0.0), axis=0)
    loss_BT = (1 - SMOOTHING) * nll_BT - SMOOTHING * jnp.mean(log_p_VBT, axis=0)
    loss_BT += Z * jnp.square(log_z_BT)
    weights = batch["weights"]
    return jnp.sum(loss_BT * weights), jnp.sum(weights), {"nll": jnp.sum(nll_BT * weights)}


def by_row(params, batch, cfg, axes):
    return jnp.sum(batch["weights"], axis=1), jnp.sum(batch["weights"]), {}


def alone(params, batch, cfg, axes):
    return jnp.sum(batch["weights"])


def taken(params, batch, cfg, axes):
    return jnp.sum(batch["weights"]), jnp.sum(batch["weights"]), {"lr": jnp.float32(0)}


def failing(params, batch, cfg, axes):
    return params["no such parameter"]


def of_three(params, batch, cfg):
    return 0.0, 1.0, {}
