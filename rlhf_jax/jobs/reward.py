"""Reward-model cells: the K-wise loss on rankings, and a report that says how far to trust it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rlhf_jax.cells import Reward
from rlhf_jax.data.loader import batch_rows
from rlhf_jax.data.tokenizer import PAD
from rlhf_jax.evals.intervals import wilson_interval
from rlhf_jax.jobs.context import Context
from rlhf_jax.model import param_axes, with_scalar_head
from rlhf_jax.objectives import kwise, ranked_scores
from rlhf_jax.parallel import place, place_batch
from rlhf_jax.train import init_state, make_train_step, train

Arrays = dict[str, np.ndarray]


def reward(ctx: Context, cell: Reward) -> dict[str, Any]:
    """Train on the training comparisons, report on the held-out ones. The score is normalised so that
    the comparisons' own completions, samples of the policy to be trained, have mean 0 and variance 1
    (Ziegler et al. 2019): the KL coefficient then means the same for every reward model."""
    run, cfg = ctx.runtime, ctx.model
    results = ctx.folders[cell.comparisons].results
    data = {
        split: _rows(dict(np.load(results / f"{split}.npz"))) for split in ("train", "validation")
    }
    n = len(data["train"]["ranks"])
    steps = cell.epochs * (n // cell.batch)

    def batch_at(t: int) -> dict[str, jax.Array]:
        chosen = batch_rows(n, cell.batch, cell.seed, t)
        inputs = ("tokens", "segments", "positions", "last", "ranks")
        return place_batch({k: data["train"][k][chosen] for k in inputs}, run.mesh, run.axes)

    head = with_scalar_head(ctx.language_model(cell.base), jax.random.key(cell.seed))
    state = init_state(place(head, param_axes(cfg, True), run.mesh, run.axes), cell.optim, steps)

    def row(metrics: dict[str, float], totals: dict[str, float]) -> dict[str, float]:
        accuracy = metrics["accuracy"] / max(metrics["weight"], 1.0)
        return {k: metrics[k] for k in ("loss", "lr", "grad_norm")} | {"accuracy": accuracy}

    step = make_train_step(
        lambda p, b: kwise(p, b, cfg, run.axes), cell.optim, run.axes, run.accumulate
    )
    trained = train(ctx.folder, state, step, batch_at, steps, run, row, ctx.beat).params
    ctx.beat.progress(phase="held-out report")
    scores = {split: _scores(ctx, trained, rows, cell.batch) for split, rows in data.items()}
    mean, std = float(scores["train"].mean()), float(scores["train"].std())
    return {
        "report": {
            "gain": 1.0 / max(std, 1e-6),
            "bias": -mean / max(std, 1e-6),
            "prompts": n,
            **ranking_report(scores["validation"], data["validation"]),
        }
    }


def _rows(data: Arrays) -> Arrays:
    """NKT inputs of prompts and completions side by side; `last` is the last real token."""
    K = data["responses"].shape[1]
    prompts = np.repeat(data["prompts"][:, None], K, axis=1)
    tokens = np.concatenate([prompts, data["responses"]], axis=-1).astype(np.int32)
    segments = np.concatenate([prompts != PAD, data["mask"] > 0], axis=-1).astype(np.int32)
    length = data["mask"].sum(-1).astype(np.int32)
    return {
        **data,
        "tokens": tokens,
        "segments": segments,
        "positions": np.cumsum(segments, axis=-1, dtype=np.int32) - segments,
        "last": prompts.shape[-1] + length - 1,
        "ranks": data["ranks"].astype(np.int32),
        "length": length,
    }


def _scores(ctx: Context, params: Any, rows: Arrays, batch: int) -> np.ndarray:
    """Raw scores (N, K)."""
    run = ctx.runtime
    score = jax.jit(lambda p, b: ranked_scores(p, b, ctx.model, run.axes))
    out = []
    for i in range(0, len(rows["ranks"]), batch):
        part = {k: rows[k][i : i + batch] for k in ("tokens", "segments", "positions", "last")}
        n = len(part["last"])
        part = {k: np.pad(v, [(0, batch - n)] + [(0, 0)] * (v.ndim - 1), mode="edge") for k, v in part.items()}  # fmt: skip
        out.append(np.asarray(jax.device_get(score(params, place_batch(part, run.mesh))))[:n])
    return np.concatenate(out)


def ranking_report(scores_NK: np.ndarray, rows: Arrays) -> dict[str, Any]:
    """Held-out accuracy over untied pairs with its interval, by gold margin and by length difference;
    calibration of sigmoid(margin); and what the number must be compared with: the gold score itself
    (no model can do much better than the labels allow), length alone, and scores of other prompts."""
    ranks, gold, length = rows["ranks"], rows["gold"], rows["length"].astype(float)
    better = ranks[:, :, None] < ranks[:, None, :]
    pairs = np.argwhere(better)

    def margins(values: np.ndarray) -> np.ndarray:
        return np.array([values[i, w] - values[i, lo] for i, w, lo in pairs])

    def accuracy(m: np.ndarray) -> float:
        return float(np.mean((m > 0) + 0.5 * (m == 0)))

    margin, gold_margin, longer = margins(scores_NK), margins(gold), margins(length)
    n = len(pairs)
    right = float(np.sum((margin > 0) + 0.5 * (margin == 0)))
    cuts = [(0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 2.01)]
    by_margin = [
        {"from": a, "to": b, "n": int(hit.sum()), "accuracy": accuracy(margin[hit])}
        for a, b in cuts
        if (hit := (np.abs(gold_margin) >= a) & (np.abs(gold_margin) < b)).any()
    ]
    by_length = [
        {"winner": name, "n": int(hit.sum()), "accuracy": accuracy(margin[hit])}
        for name, hit in (("longer", longer > 0), ("same", longer == 0), ("shorter", longer < 0))
        if hit.any()
    ]
    shuffled_scores = np.roll(scores_NK, 1, axis=0)
    return {
        "accuracy": accuracy(margin),
        "accuracy_interval": wilson_interval(right, n),
        "n_pairs": n,
        "baselines": {
            "gold score (label ceiling)": accuracy(gold_margin),
            "longer wins": accuracy(longer),
            "scores of other prompts": accuracy(margins(shuffled_scores)),
        },
        "accuracy_by_margin": by_margin,
        "accuracy_by_length": by_length,
        "calibration": _calibration(margin),
    }


def _calibration(margin: np.ndarray, bins: int = 8) -> dict[str, Any]:
    """Reliability of sigmoid(|margin|) as the probability that the higher score is the winner, and
    the expected calibration error (Guo et al. 2017)."""
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = (margin > 0).astype(float)
    order = np.array_split(np.argsort(confidence, kind="stable"), bins)
    rows = [
        {"confidence": float(confidence[b].mean()), "accuracy": float(right[b].mean()), "n": len(b)}
        for b in order
        if len(b)
    ]
    error = sum(r["n"] * abs(r["confidence"] - r["accuracy"]) for r in rows) / len(margin)
    return {"expected_calibration_error": float(error), "bins": rows}
