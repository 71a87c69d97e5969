"""How often the 90% intervals of the fits hold the truth, in 200 synthetic studies a noise level.

    OPENBLAS_NUM_THREADS=1 python experiments/interval_coverage.py experiments/results/coverage.json

Each study has 5 budgets over two decades and 7 sizes a budget, of a known law, and is fitted as
real ones are. A study that 90% intervals cover in 70% of cases reports certainty that it does not
have. Beside the intervals of the fits, those of the plain case bootstrap (runs drawn with
replacement) are scored. About 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.evals.intervals import percentile_interval, resampled_counts
from rlhf_jax.laws.chinchilla import Chinchilla
from rlhf_jax.laws.fit import fit
from rlhf_jax.laws.isoflop import fit_isoflop
from rlhf_jax.laws.points import Points

LEVEL = 0.9
LAW = Chinchilla(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
BUDGETS = tuple(np.geomspace(1e18, 1e20, 5).tolist())  # FLOPs
NAMES = ("alpha", "beta", "a", "a, approach 2")

Intervals = dict[str, dict[str, tuple[float, float]]]  # kind -> quantity -> (low, high)


def synthetic_runs(
    noise: float,
    seed: int,
    sizes: int = 7,
    budgets: Sequence[float] = BUDGETS,
    law: Chinchilla = LAW,
) -> Points:
    """`sizes` runs a budget, spread 4x each way of its optimum, with lognormal noise on the loss.

    Args:
      noise: standard deviation of ln loss. seed: of the noise.
    """
    n, c = [], []
    for budget in budgets:
        n += (law.compute_optimal(budget)[0] * np.geomspace(0.25, 4, sizes)).tolist()
        c += [budget] * sizes
    params, flops = np.array(n), np.array(c)
    tokens = flops / (6 * params)
    wobble = np.random.default_rng(seed).normal(size=len(params)) * noise
    return Points(params, tokens, flops, law.loss(params, tokens) * np.exp(wobble))


def intervals(points: Points, resamples: int, seed: int, level: float = 0.9) -> Intervals:
    """Of `NAMES`: "reported", as the fits give them, and "case", by resampling runs."""
    found, law = reported(points, resamples, seed, level)
    return {"reported": found, "case": _case(points, law, resamples, seed, level)}


def reported(
    points: Points, resamples: int, seed: int, level: float = 0.9
) -> tuple[dict[str, tuple[float, float]], Chinchilla]:
    """The intervals that the fits give for each of `NAMES`, and approach 3's law."""
    three, two = fit(Chinchilla, points, resamples, seed), fit_isoflop(points, resamples, seed)
    found = three.intervals(level)
    out = {name: (found[name][0], found[name][1]) for name in NAMES[:3]}
    line = two.n_law.interval(level) if two.n_law else None
    out[NAMES[3]] = (line[0], line[1]) if line else (np.nan, np.nan)
    return out, three.law


def _case(points: Points, law: Chinchilla, resamples: int, seed: int, level: float):
    rng = np.random.default_rng(seed)
    problem = Chinchilla.problem(points, None, {})
    weights = resampled_counts(len(points), resamples, rng)
    alpha, beta = problem.lowest([problem.theta(law.values)], resamples, weights=weights).T[3:]
    draws = {"alpha": alpha, "beta": beta, "a": beta / (alpha + beta)}
    draws[NAMES[3]] = _case_isoflop(points, resamples, rng)
    return {name: tuple(percentile_interval(values, level)) for name, values in draws.items()}


def _case_isoflop(points: Points, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Exponents of resampled parabolas: runs drawn within each budget, at least 3 of them
    distinct."""
    budgets = np.unique(points.flops)
    log_n = np.full((resamples, len(budgets)), np.nan)
    for k, budget in enumerate(budgets):
        runs = points.take(points.flops == budget)
        n, x = len(runs), np.log(runs.params) - np.log(runs.params).mean()
        counts = np.zeros((resamples, n), np.int64)
        while len(few := np.flatnonzero((counts > 0).sum(1) < 3)):
            counts[few] = rng.multinomial(n, np.full(n, 1 / n), len(few))
        X = np.stack([np.ones_like(x), x, x * x], 1)
        A = np.einsum("rn,ni,nj->rij", counts, X, X)
        c = np.linalg.solve(A, np.einsum("rn,ni,n->ri", counts, X, runs.loss)[..., None])[..., 0]
        minimum = np.log(runs.params).mean() - c[:, 1] / (2 * c[:, 2])
        log_n[:, k] = np.where(c[:, 2] > 0, minimum, np.nan)
    x = np.log(budgets) - np.log(budgets).mean()
    return log_n @ x / (x @ x)


def score(
    studies: Sequence[Intervals], law: Chinchilla = LAW
) -> dict[str, dict[str, dict[str, float]]]:
    """kind -> quantity -> {"coverage", "mean_width", "median_width"} over studies."""
    truth: Mapping[str, float] = {"alpha": law.alpha, "beta": law.beta, "a": law.a, NAMES[3]: law.a}
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in studies[0]:
        out[kind] = {}
        for name in NAMES:
            low, high = np.array([found[kind][name] for found in studies]).T
            out[kind][name] = {
                "coverage": float(np.mean((low < truth[name]) & (truth[name] < high))),
                "mean_width": float(np.mean(high - low)),
                "median_width": float(np.median(high - low)),
            }
    return out


def one(seed: int, noise: float, sizes: int, resamples: int) -> Intervals:
    return intervals(synthetic_runs(noise, seed, sizes), resamples, seed, LEVEL)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("out", type=Path, help="the JSON file to write")
    p.add_argument("--studies", type=int, default=200)
    p.add_argument("--resamples", type=int, default=300)
    p.add_argument("--sizes", type=int, default=7)
    p.add_argument("--noise", type=float, nargs="+", default=[0.002, 0.005, 0.01])
    p.add_argument("--workers", type=int, default=2)
    args = p.parse_args()
    found = []
    with ProcessPoolExecutor(args.workers) as pool:
        for noise in args.noise:
            run = partial(one, noise=noise, sizes=args.sizes, resamples=args.resamples)
            scores = score(list(pool.map(run, range(args.studies), chunksize=5)))
            found.append({"noise": noise, **scores})
            print(json.dumps(found[-1]), flush=True)
    law = {name: getattr(LAW, name) for name in ("E", "A", "B", "alpha", "beta", "a")}
    head = {
        "studies": args.studies,
        "resamples": args.resamples,
        "sizes": args.sizes,
        "budgets": BUDGETS,
        "law": law,
        "level": LEVEL,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**head, "noise_levels": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
