"""Over-optimization: what a gold score does while a policy is optimised against a proxy of it.

Gao, Schulman & Hilton 2022, "Scaling Laws for Reward Model Overoptimization", section 3: with
d = sqrt(KL from the initial policy, nats), the gold score less its value at d = 0 is

    best of n   R(d) = d (alpha - beta d)
    RL          R(d) = d (alpha - beta ln d)

Both are linear in alpha and beta. It is no law of a training run's size, so it stands outside
`LAWS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlhf_jax.evals.intervals import percentile_interval, resampled_counts
from rlhf_jax.laws.points import FitError, plain

Form = Literal["best_of_n", "rl"]
FORMULAS = {"best_of_n": "R(d) = d (alpha - beta d)", "rl": "R(d) = d (alpha - beta ln d)"}
SOURCE = "Gao, Schulman & Hilton 2022, Scaling Laws for Reward Model Overoptimization"
ITERATIONS = 20  # of RL, in all: fewer noisy points make peaks out of nothing
SPAN = 2.0  # largest over smallest d above 0, at least
SHARE = 0.75  # of the range of d that the extrapolation is fitted to
NEAR = 0.9  # the last value: the mean over this share of that range and above
GRID = 60  # places of a fit's band


@dataclass(frozen=True)
class Curve:
    """Gold score against d of one optimisation, in blocks that can be resampled: prompts of a
    best-of-n run, stretches of iterations of an RL run. NaN where a block has fewer points.

    Attributes:
      label: its name. d_BM: sqrt(KL), (blocks, points). gold_BM: mean gold score there.
    """

    label: str
    d_BM: np.ndarray
    gold_BM: np.ndarray


def of_iterations(label: str, kl: Sequence[float], gold: Sequence[float], block: int = 5) -> Curve:
    """An RL run's curve from what each iteration logged. A KL estimate below 0 counts as 0."""
    fill = -len(kl) % block
    d = np.sqrt(np.maximum(np.asarray(kl, float), 0))
    padded = [np.append(x, np.full(fill, np.nan)) for x in (d, np.asarray(gold, float))]
    return Curve(label, *(x.reshape(-1, block) for x in padded))


@dataclass(frozen=True)
class OverOptimization:
    """The law of one form."""

    form: Form
    alpha: float
    beta: float

    def gain(self, d: Any) -> np.ndarray:
        """R(d)."""
        d = np.asarray(d, float)
        bend = d if self.form == "best_of_n" else np.log(np.where(d > 0, d, 1.0))
        return d * (self.alpha - self.beta * bend)

    @property
    def peak(self) -> tuple[float, float] | None:
        """(d*, R(d*)) where the gold score is highest: alpha / 2 beta for best-of-n, exp(alpha /
        beta - 1) for RL. None where it only rises, or only falls."""
        if self.beta <= 0 or (self.form == "best_of_n" and self.alpha <= 0):
            return None
        if self.form == "best_of_n":
            return self.alpha / (2 * self.beta), self.alpha**2 / (4 * self.beta)
        d = math.exp(min(self.alpha / self.beta - 1, 300.0))
        return d, d * self.beta


def fit_overoptimization(
    form: Form, curves: Sequence[Curve], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Least squares of alpha and beta, as JSON values.

    A best-of-n curve's gain is over its own point at d = 0, block by block: the same prompts. An RL
    curve has a noisy batch of samples at each d, so the gold score at d = 0 is fitted with alpha
    and beta. Intervals are 95% bootstrap intervals: curves (seeds, proxies) are drawn and blocks
    within them; of a single curve only its blocks are, and a few curves make intervals too narrow.

    Returns {form, formula, source, alpha, beta, gold_at_0, intervals, peak: {d, gain, beyond} or
    None, refused: why there is no peak, or None, curves: labels, n, d_max, rms, extrapolation,
    band: {d, gain, low, high}, resamples, seed, notes}.

    Raises:
      FitError: too few values of d, or too small a range of them.
    """
    if form not in FORMULAS:
        raise FitError(f"form is {form!r}; it is one of {', '.join(FORMULAS)}")
    data = _Normal(form, curves)
    data.check()
    best = data.solve(np.ones((1, data.blocks)))[0]
    law = OverOptimization(form, *best[-2:].tolist())
    drawn = data.solve(data.resampled(resamples, seed))
    drawn = drawn[np.isfinite(drawn).all(1)]
    laws = [OverOptimization(form, a, b) for a, b in drawn[:, -2:].tolist()]
    ends = {name: percentile_interval(drawn[:, -2 + i]) for i, name in enumerate(("alpha", "beta"))}
    refused = no_peak(law, ends, data.d_max)
    peaks = np.array([one.peak or (math.nan, math.nan) for one in laws])
    if refused is None:
        ends |= {
            name: percentile_interval(peaks[:, i]) for i, name in enumerate(("peak_d", "peak_gain"))
        }
    found = law.peak if refused is None else None
    d_best, most = found or (math.nan, math.nan)
    d, gold = data.pooled()
    residual = law.gain(d) + (best[0] if form == "rl" else 0.0) - gold
    return plain(
        {
            "form": form,
            "formula": FORMULAS[form],
            "source": SOURCE,
            "alpha": law.alpha,
            "beta": law.beta,
            "gold_at_0": data.gold_at_0(best),
            "intervals": ends,
            "peak": {"d": d_best, "gain": most, "beyond": d_best > data.d_max} if found else None,
            "refused": refused,
            "curves": [c.label for c in curves],
            "n": data.points,
            "d_max": data.d_max,
            "rms": float(np.sqrt(np.mean(residual**2))),
            "extrapolation": extrapolation(form, curves),
            "band": _band(law, laws, data.d_max),
            "resamples": len(drawn),
            "seed": seed,
            "notes": _notes(form, curves),
        }
    )


def _band(law: OverOptimization, laws: list[OverOptimization], d_max: float) -> dict[str, Any]:
    """The law and its 95% band on a grid of d."""
    d = np.linspace(0, 1.05 * d_max, GRID)
    low, high = np.quantile([one.gain(d) for one in laws], [0.025, 0.975], axis=0)
    found = {"d": d, "gain": law.gain(d), "low": low, "high": high}
    return {name: values.tolist() for name, values in found.items()}


def no_peak(law: OverOptimization, ends: dict[str, list[float]], d_max: float) -> str | None:
    """Why the data show no over-optimization, in words; None where they do."""
    low, high = ends["beta"]
    written = f"[{low:.3g}, {high:.3g}]"
    if high < 0:
        return (
            f"beta = {law.beta:.3g}, 95% interval {written}: the gold score rises ever faster up "
            f"to d = {d_max:.3g}; no over-optimization is seen"
        )
    if low <= 0:
        return (
            f"the 95% interval of beta, {written}, includes 0: no over-optimization is seen up to "
            f"d = {d_max:.3g}; optimise further, or with more prompts and seeds"
        )
    if law.form == "best_of_n" and law.alpha <= 0:
        return (
            f"alpha = {law.alpha:.3g}: the gold score falls from the start; the proxy is of no use"
        )
    return None


def extrapolation(form: Form, curves: Sequence[Curve]) -> dict[str, Any]:
    """The law of the first `SHARE` of the range of d, scored on the rest, beside the guess that the
    gold score stays where it was last.

    Returns {below, fitted, scored, rms_error, mean_error (predicted less observed gain),
    last_rms_error, last_mean_error}, in units of the gold score, or {"refused": reason}.
    """
    whole = _Normal(form, curves)
    d, gold = whole.pooled()
    below = SHARE * whole.d_max
    inside = d <= below
    near = [Curve(c.label, np.where(c.d_BM <= below, c.d_BM, np.nan), c.gold_BM) for c in curves]
    data = _Normal(form, near)
    try:
        data.check()
    except FitError as e:
        return {"refused": str(e)}
    best = data.solve(np.ones((1, data.blocks)))[0]
    said = OverOptimization(form, *best[-2:].tolist()).gain(d[~inside])
    said = said + (best[0] if form == "rl" else 0.0)
    last = gold[inside & (d >= NEAR * d[inside].max())].mean()
    error, naive = said - gold[~inside], last - gold[~inside]
    return {
        "below": float(below),
        "fitted": int(inside.sum()),
        "scored": int((~inside).sum()),
        "rms_error": float(np.sqrt(np.mean(error**2))),
        "mean_error": float(error.mean()),
        "last_rms_error": float(np.sqrt(np.mean(naive**2))),
        "last_mean_error": float(naive.mean()),
    }


class _Normal:
    """Normal equations of each block, so that a resample is a weighted sum."""

    def __init__(self, form: Form, curves: Sequence[Curve]) -> None:
        if not curves:
            raise FitError("no curves; give at least one best-of-n or RL run that is done")
        self.form, self.sizes = form, [len(c.d_BM) for c in curves]
        d, y, start = [], [], []
        for curve in curves:
            gold = curve.gold_BM
            if form == "best_of_n":
                if not (curve.d_BM[:, 0] == 0).all():
                    raise FitError(f"{curve.label}: the first point of a prompt is n = 1, at d = 0")
                start += gold[:, 0].tolist()
                gold = gold - gold[:, :1]
            d += list(curve.d_BM)
            y += list(gold)
        self.start = start
        known = [np.isfinite(a) & np.isfinite(b) for a, b in zip(d, y, strict=True)]
        self.d = [a[k] for a, k in zip(d, known, strict=True)]
        self.y = [b[k] for b, k in zip(y, known, strict=True)]
        X = [self._design(a) for a in self.d]
        self.A = np.array([x.T @ x for x in X])
        self.b = np.array([x.T @ v for x, v in zip(X, self.y, strict=True)])
        self.blocks, self.points = len(X), sum(map(len, self.d))
        self.d_max = max((float(a.max()) for a in self.d if len(a)), default=0.0)

    def _design(self, d: np.ndarray) -> np.ndarray:
        if self.form == "best_of_n":
            return np.stack([d, -(d**2)], axis=1)
        return np.stack([np.ones_like(d), d, -d * np.log(np.where(d > 0, d, 1.0))], axis=1)

    def check(self) -> None:
        d = np.unique(np.round(np.concatenate(self.d), 9))
        d, least = d[d > 0], self.A.shape[1] + 1
        if len(d) < least:
            raise FitError(
                f"{len(d)} values of d above 0; the law needs at least {least}: "
                + ("raise n" if self.form == "best_of_n" else "run more iterations")
            )
        if self.form == "rl" and self.points < ITERATIONS:
            raise FitError(
                f"{self.points} iterations with a KL and a gold score; the law needs at least "
                f"{ITERATIONS}: run more iterations or seeds"
            )
        if d[-1] < SPAN * d[0]:
            raise FitError(
                f"d spans {d[0]:.3g} to {d[-1]:.3g}, less than a factor of {SPAN:g}; optimise "
                "further"
            )

    def solve(self, weights_SB: np.ndarray) -> np.ndarray:
        """(S, k): coefficients of weighted fits, alpha and beta last; NaN where they are not
        determined."""
        A = np.einsum("sb,bij->sij", weights_SB, self.A)
        b = weights_SB @ self.b
        found = np.full(b.shape, np.nan)
        fine = np.linalg.cond(A) < 1e12
        found[fine] = np.linalg.solve(A[fine], b[fine][..., None])[..., 0]
        return found

    def resampled(self, resamples: int, seed: int) -> np.ndarray:
        """(resamples, blocks): how often each block is drawn, curves first and blocks within
        them."""
        rng = np.random.Generator(np.random.Philox(seed))
        times = resampled_counts(len(self.sizes), resamples, rng).astype(int)
        parts = [
            resampled_counts(size, resamples, rng, times[:, i] * size)
            for i, size in enumerate(self.sizes)
        ]
        return np.concatenate(parts, axis=1)

    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct values of d and the mean there: gain of best-of-n, gold score of RL."""
        d, at = np.unique(np.concatenate(self.d), return_inverse=True)
        y = np.concatenate(self.y)
        return d, np.bincount(at, y) / np.bincount(at)

    def gold_at_0(self, best: np.ndarray) -> float:
        return float(best[0]) if self.form == "rl" else float(np.mean(self.start))


def _notes(form: Form, curves: Sequence[Curve]) -> list[str]:
    notes = []
    if form == "best_of_n":
        notes.append("d is of the bound ln n - (n - 1) / n, too large where samples repeat")
    elif len(curves) < 4:
        notes.append(
            f"{len(curves)} RL run{'s' * (len(curves) > 1)}: intervals say little about other seeds"
        )
    return notes
