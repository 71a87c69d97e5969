"""How `rlhf-jax fit` grows with the rows of a table: CPU seconds and peak memory of whole commands.

    python -m rlhf_jax.tools.bench.scale_fit --rows 1000 10000 100000 --approach 3

Every size is a process of its own that reads a CSV of synthetic runs (a known law, 0.5% of noise, C
over four decades) and fits it with intervals.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.tools.bench.machine import command_use


def write_table(path: Path, rows: int, seed: int = 0) -> None:
    """A CSV of `rows` runs of a known law: name, params, tokens, loss."""
    import numpy as np

    from rlhf_jax.laws.chinchilla import Chinchilla

    law = Chinchilla(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
    rng = np.random.default_rng(seed)
    flops = np.exp(rng.uniform(np.log(1e18), np.log(1e22), rows))
    params = law.compute_optimal(flops)[0] * np.exp(rng.uniform(-1.4, 1.4, rows))
    tokens = flops / (6 * params)
    loss = law.loss(params, tokens) * np.exp(0.005 * rng.normal(size=rows))
    with path.open("w") as f:
        f.write("name,params,tokens,loss\n")
        for i, (n, d, value) in enumerate(zip(params, tokens, loss, strict=True)):
            f.write(f"run-{i},{n:.0f},{d:.0f},{value:.6f}\n")


def measure(rows: int, approach: str, resamples: int) -> dict[str, Any]:
    """{rows, seconds of CPU, peak MiB, a} of one `fit` command."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        write_table(path, rows)
        words = ["fit", str(path), "--approach", approach, "--resamples", str(resamples), "--json"]
        used = command_use([sys.executable, "-m", "rlhf_jax.cli", *words])
    found = json.loads(used.printed)
    return {
        "rows": rows,
        "seconds": used.cpu_seconds,
        "peak_mib": used.peak_mib,
        "a": found.get("a"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table of sizes, with the power of the rows that time grows by."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--approach", choices=("1", "2", "3"), default="3")
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args(argv)
    before: dict[str, Any] | None = None
    print(f"{'rows':>9} {'CPU s':>8} {'peak MiB':>9} {'a':>7} {'growth':>7}")
    for rows in sorted(args.rows):
        found = measure(rows, args.approach, args.resamples)
        growth = ""
        if before:
            power = math.log(found["seconds"] / before["seconds"]) / math.log(rows / before["rows"])
            growth = f"n^{power:.2f}"
        a = "-" if found["a"] is None else f"{found['a']:.4f}"
        line = f"{rows:>9,} {found['seconds']:>8.1f} {found['peak_mib']:>9.0f} {a:>7} {growth:>7}"
        print(line, flush=True)
        before = found
    return 0


if __name__ == "__main__":
    sys.exit(main())
