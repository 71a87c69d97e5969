"""How often the 90% intervals of the fits hold the truth, in 200 synthetic studies a noise level.

    OPENBLAS_NUM_THREADS=1 python experiments/interval_coverage.py experiments/results/coverage.json

Each study has 5 budgets over two decades and 7 sizes a budget. About 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from rlhf_jax.laws.coverage import BUDGETS, LAW, Intervals, intervals, score, study

LEVEL = 0.9


def one(seed: int, noise: float, sizes: int, resamples: int) -> Intervals:
    return intervals(study(noise, seed, sizes), resamples, seed, LEVEL)


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
