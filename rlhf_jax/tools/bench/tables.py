"""What `rlhf-jax bench` prints for people: one table, a row a shape, and a line on what it
means."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

# Keys of a row, `outer.inner` for what lies in a dictionary; one that no row has is left out.
TIMES = "total generate score update tokens_per_second"
RATIO = "ratio ratio_low ratio_high"
COLUMNS = {
    "train": f"ours torch torch_eager torch_compiled {RATIO} ceiling model_flops_per_second "
    "fraction_of_peak torch_fraction_of_peak compile_seconds torch_compile_seconds "
    "peak_memory_bytes others_share_of_cpu",
    "population": f"sequential workers population {RATIO} ratio_to_workers ratio_to_workers_low "
    "ratio_to_workers_high peak_memory_bytes others_share_of_cpu",
    "ppo": " ".join(f"{side}.{time}" for side in ("ours", "trl") for time in TIMES.split())
    + f" {RATIO} decode_ratio share_of_floor reward_step.ratio others_share_of_cpu",
}


def show(what: str, found: dict[str, Any]) -> None:
    """Prints the result of one benchmark."""
    rows = [_flat(row) for row in found["shapes"]]
    columns = [key for key in COLUMNS[what].split() if any(key in row for row in rows)]
    table = Table(box=None, pad_edge=False)
    table.add_column("shape")
    for key in columns:
        table.add_column(_heading(key), justify="right")
    for row in rows:
        table.add_row(row["name"], *(_written(key, row[key]) for key in columns))
    # Wide where the output is not a terminal, so that the table is not cut.
    console = Console() if sys.stdout.isatty() else Console(width=180)
    console.print(table)
    at = found["machine"]
    print(f"\n{found['threads']} threads on {at['cpu']}, {at['cores']} cores.")
    if "peak_flops" in found:
        print(f"Peak: {found['peak_flops']:.3g} FLOP/s, the best float32 product of 2048 x 2048.")
    if what == "ppo":
        print(
            "An iteration's time, and tokens/s while it generates; floor: the least that its "
            "arithmetic takes, as a share; reward step: FLOPs on 9 ranked completions over those "
            "on one."
        )
    if what == "ppo" and "trl" in found["versions"]:
        print(
            f"Times of TRL over ours (above 1: rlhf-jax is faster), medians of {found['rounds']} "
            f"rounds; others: share of the CPU that other programs took meanwhile."
        )
    if "members" in found:
        print(
            f"Tokens/s of {found['members']} members: one after the other with all threads, in "
            f"one-thread workers side by side, and as one program."
        )
    if "geomean" in found:
        print(
            f"Tokens/s over torch's, geometric mean: {found['geomean']:.2f} (above 1: rlhf-jax is "
            f"faster). Medians of {found['rounds']} rounds; ceiling: the ratio if we reached the "
            f"peak; others: share of the CPU that other programs took meanwhile."
        )


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what lies in its dictionaries as `outer.inner`."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{key}.{name}": v for name, v in inner.items()} or {key: value}
    return flat


def _heading(key: str) -> str:
    unit = " ms" if key.endswith("total") else " MB" if key.endswith("_bytes") else ""
    return key.removesuffix("_bytes").replace("_", " ").replace(".", " ") + unit


def _written(key: str, value: float) -> str:
    """By what the key's words say of the number."""
    last = key.rpartition(".")[2]
    if last in ("total", "generate", "score", "update"):
        return f"{1000 * value:,.2f}"
    if last.endswith("_bytes"):
        return f"{value / 1e6:,.0f}"
    if "share" in last or "fraction" in last:
        return f"{value:.1%}"
    if "flops" in last:
        return f"{value:.3g}"
    if "ratio" in last or last == "ceiling":
        return f"{value:.2f}"
    return f"{value:.1f}" if last.endswith("_seconds") else f"{value:,.0f}"
