"""CPU seconds of the commands that look at a study, at several numbers of cells.

    python -m rlhf_jax.tools.bench.scale_study [--cells 500 1500 5000] [--json FILE]

The study is a sweep of small models in a temporary folder. Its cells are not trained: each folder
is written as a finished cell leaves it, with 50 rows of metrics and a held-out loss by a known law.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from rlhf_jax.tools.bench.machine import command_use, machine

STUDY = """
from pathlib import Path

from rlhf_jax.kinds import Pretrain
from rlhf_jax.study import CorpusConfig, ModelConfig, OptimConfig
from rlhf_jax.study import Analysis, Study


def study(tiny: bool) -> Study:
    cells = []
    for i in range(CELLS):
        size, rest = i % 10, i // 10
        width = 32 * (1 + size // 5)
        model = ModelConfig(
            layers=1 + size % 5, width=width, heads=2, vocab=300, max_positions=32
        )
        tokens = 32 * 8 * (20 + 10 * (rest % 25))
        cells.append(Pretrain(f"s{size}-{rest}", model=model, tokens=tokens, batch=8, repeat=True,
                              seed=rest // 25, optim=OptimConfig(lr=1e-3)))
    text = str(Path(__file__).with_name("text.jsonl"))
    corpus = CorpusConfig(
        sources=(text,), vocab=300, seq_len=32, heldout_tokens=256, validation=0.1, test=0.1
    )
    return Study("scale", tuple(cells), corpus, ANALYSES)
"""
COMMANDS: dict[str, list[str]] = {
    "plan": ["plan"],
    "status": ["status"],
    "run --dry-run": ["run", "--dry-run"],
    "report, first": ["report"],  # makes the fits of 1,000 of the runs
    "report": ["report"],
}


def write_study(folder: Path, cells: int, fits: bool = True) -> Path:
    """A study file over a small text. fits: with an analysis of its first cells."""
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(0)
    words = [
        "".join(random.choices("abcdefghijklmnop", k=random.randint(2, 8))) for _ in range(500)
    ]
    rows = [{"text": " ".join(random.choices(words, k=60)) + "."} for _ in range(400)]
    (folder / "text.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = folder / "scale.py"
    analyses = '(Analysis("isoflop", ("s*-?", "s*-??")),)' if fits else "()"
    path.write_text(STUDY.replace("CELLS", str(cells)).replace("ANALYSES", analyses))
    return path


def finish_cells(path: Path, root: Path) -> None:
    """Prepares the corpus, and writes the folder of every cell as a finished one's."""
    from rlhf_jax.cost.flops import param_counts, train_flops
    from rlhf_jax.data.corpus import prepare
    from rlhf_jax.study import load_study
    from rlhf_jax.study.config import to_json
    from rlhf_jax.study.files import write_json
    from rlhf_jax.study.provenance import provenance
    from rlhf_jax.study.runs import Runs, write_study

    study, runs = load_study(path, runs=root), Runs(root)
    corpus = prepare(study.corpus, root, lambda text: None)
    made_by = {"sessions": [provenance()]}
    folders = runs.folders(study, corpus.content_hash)
    for cell in study.cells:
        folder, model = folders[cell.name], study.model_of(cell)
        counts = param_counts(model)
        flops = train_flops(model, study.corpus.seq_len, cell.tokens)  # type: ignore[attr-defined]
        loss = 1.7 + 400 * counts["total"] ** -0.34 + 400 * cell.tokens**-0.28  # type: ignore[attr-defined]
        write_json(folder.path / "config.json", {"kind": cell.KIND, **to_json(cell)})
        write_json(folder.path / "provenance.json", made_by)
        rows = [
            {
                "step": s,
                "loss": loss + math.exp(-s / 10),
                "tokens": s * 256,
                "lr": 1e-3,
                "flops": flops * s / 50,
                "grad_norm": 0.5,
                "tokens_per_second": 1e5,
            }
            for s in range(1, 51)
        ]
        (folder.path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        held = {
            "loss": loss,
            "stderr": 0.01,
            "bits_per_byte": 2.0,
            "bits_per_byte_stderr": 0.01,
            "tokens": 256,
            "params": counts["total"],
            "param_counts": counts,
            "train_tokens": cell.tokens,  # type: ignore[attr-defined]
            "batch_tokens": 256,
            "flops": {"exact": flops},
        }
        write_json(folder.results / "heldout.json", held)
        folder.finish(seconds=1.0)
    write_study(study, runs, corpus.content_hash, "rlhf-jax run scale.py", path)


def measure(cells: int, log: Callable[[str], None]) -> dict[str, Any]:
    """CPU seconds and peak memory of each command, for a study whose cells are all finished."""
    found: dict[str, Any] = {"cells": cells}
    with tempfile.TemporaryDirectory(prefix="rlhf-jax-scale-") as where:
        folder = Path(where)
        path = write_study(folder, cells)
        finish_cells(path, folder / "runs")
        for name, words in COMMANDS.items():
            runs = ["--runs", str(folder / "runs")]
            argv = [sys.executable, "-m", "rlhf_jax.cli", *words, str(path), *runs]
            used = command_use(argv)
            log(f"{cells:,} cells, {name}: {used.cpu_seconds:.1f} s, {used.peak_mib:,.0f} MB")
            found[name] = {
                "cpu_seconds": round(used.cpu_seconds, 2),
                "peak_mb": round(used.peak_mib),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[500, 1500, 5000])
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    out = args.json.absolute() if args.json else None
    rows = [measure(n, lambda text: print(text, flush=True)) for n in args.cells]
    if out:
        out.write_text(json.dumps({"machine": machine(), "sizes": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
