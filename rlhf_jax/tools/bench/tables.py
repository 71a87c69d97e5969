"""What `rlhf-jax bench` prints for people: one table, a row a shape, and a line on what it
means."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

# (heading, key of a row, how its number is written); a column whose key no row has is left out.
Column = tuple[str, str, str]
COLUMNS: dict[str, tuple[Column, ...]] = {
    "train": (
        ("tokens/s", "ours", ",.0f"),
        ("torch", "torch", ",.0f"),
        ("eager", "torch_eager", ",.0f"),
        ("compiled", "torch_compiled", ",.0f"),
        ("ratio", "ratio", ".2f"),
        ("lowest", "ratio_low", ".2f"),
        ("highest", "ratio_high", ".2f"),
        ("ceiling", "ceiling", ".2f"),
        ("FLOP/s", "model_flops_per_second", ".3g"),
        ("of peak", "fraction_of_peak", ".1%"),
        ("torch's", "torch_fraction_of_peak", ".1%"),
        ("compile s", "compile_seconds", ".1f"),
        ("torch's", "torch_compile_seconds", ".1f"),
        ("memory MB", "peak_memory_bytes", "MB"),
        ("others", "others_share_of_cpu", ".0%"),
    ),
    "population": (
        ("one by one", "sequential", ",.0f"),
        ("workers", "workers", ",.0f"),
        ("population", "population", ",.0f"),
        ("ratio", "ratio", ".2f"),
        ("lowest", "ratio_low", ".2f"),
        ("highest", "ratio_high", ".2f"),
        ("to workers", "ratio_to_workers", ".2f"),
        ("lowest", "ratio_to_workers_low", ".2f"),
        ("highest", "ratio_to_workers_high", ".2f"),
        ("memory MB", "peak_memory_bytes", "MB"),
        ("others", "others_share_of_cpu", ".0%"),
    ),
    "ppo": (
        ("ms", "ours.total", "ms"),
        ("generate", "ours.generate", "ms"),
        ("score", "ours.score", "ms"),
        ("update", "ours.update", "ms"),
        ("tokens/s", "ours.tokens_per_second", ",.0f"),
        ("trl ms", "trl.total", "ms"),
        ("generate", "trl.generate", "ms"),
        ("score", "trl.score", "ms"),
        ("update", "trl.update", "ms"),
        ("tokens/s", "trl.tokens_per_second", ",.0f"),
        ("ratio", "ratio", ".2f"),
        ("lowest", "ratio_low", ".2f"),
        ("highest", "ratio_high", ".2f"),
        ("decoding", "decode_ratio", ".2f"),
        ("floor", "share_of_floor", ".1%"),
        ("reward step", "reward_step.ratio", ".2f"),
        ("others", "others_share_of_cpu", ".0%"),
    ),
    "decode": (
        ("tokens/s", "tokens_per_second", ",.0f"),
        ("prefill ms", "prefill_seconds", "ms"),
        ("decode ms", "decode_seconds", "ms"),
        ("a step, ms", "decode_step_seconds", "ms"),
        ("compile s", "compile_seconds", ".1f"),
    ),
    "data": (
        ("read ms", "read_seconds", "ms"),
        ("place ms", "place_seconds", "ms"),
        ("step ms", "step_seconds", "ms"),
        ("loader / step", "share_of_step", ".2%"),
        ("step without loader", "step_without_loader", "ms"),
    ),
    "compile": (
        ("trace and lower s", "lower_seconds", ".2f"),
        ("compile s", "compile_seconds", ".2f"),
        ("from cache s", "cached_seconds", ".2f"),
    ),
}


def show(what: str, found: dict[str, Any]) -> None:
    """Prints the result of one benchmark."""
    rows = [_flat(row) for row in found["shapes"]]
    columns = [c for c in COLUMNS[what] if any(c[1] in row for row in rows)]
    table = Table(box=None, pad_edge=False)
    table.add_column("shape")
    for heading, _, _ in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row["name"], *(_written(row[key], form) for _, key, form in columns))
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


def _written(number: float, form: str) -> str:
    if form == "ms":
        return f"{1000 * number:,.2f}"
    if form == "MB":
        return f"{number / 1e6:,.0f}"
    return format(number, form)
