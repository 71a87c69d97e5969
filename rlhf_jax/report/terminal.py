"""Tables that commands print: plans, states, fits, next-token distributions."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_jax.laws.learning_rate import LAW_IN_WORDS
from rlhf_jax.report.headline import headline
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.plan import StudyPlan

STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "bold red",
    "ready": "default",
    "elsewhere": "cyan",
    "queued": "default",
    "kept": "green",
    "damaged": "bold red",
    "blocked": "yellow",
    "stopped": "yellow",
    "waiting": "dim",
}
ROWS = 300  # larger tables are printed without rich, which takes a millisecond a row


def last_metrics(folder: CellFolder) -> dict[str, Any]:
    """The last whole row of metrics.jsonl, without reading the others; empty where it is
    unreadable."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(folder.path / "metrics.jsonl", "rb") as f,
    ):
        f.seek(max(0, f.seek(0, os.SEEK_END) - 8192))
        lines = f.read().split(b"\n")
        found = json.loads(lines[-2]) if len(lines) > 1 else {}
        return found if isinstance(found, dict) else {}
    return {}


def duration(seconds: float | None) -> str:
    """`8 s`, `3 m 20 s`, `2 h 05 m`."""
    if seconds is None:
        return ""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    return f"{s // 60} m {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} m"


def number(value: float | None, form: str) -> str:
    """A formatted number; empty where it is unknown."""
    return "" if value is None else format(value, form)


def _console() -> Console:
    """180 columns where the output is no terminal, so that tables are not cut."""
    return Console() if sys.stdout.isatty() else Console(width=180)


def table_of(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def show(title: str, table: Table) -> None:
    console = _console()
    console.print(Text(title, style="italic"), soft_wrap=True)
    if table.row_count <= ROWS:
        console.print(table)
    else:
        print(_plain(table))


def _plain(table: Table) -> str:
    """The table as text, without colours and line breaks in cells."""
    columns = []
    for column in table.columns:
        texts = [str(cell) for cell in (column.header, *column.cells)]
        width = max(map(cell_len, texts))
        pad = str.rjust if column.justify == "right" else str.ljust
        columns.append([pad(text, width - cell_len(text) + len(text)) for text in texts])
    return "\n".join(" ".join(row).rstrip() for row in zip(*columns, strict=True))


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"


def print_plan(plan: StudyPlan, corpus_known: bool) -> None:
    """Prints every cell's cost, the totals, and what the times are based on."""
    table = table_of(
        ("cell", "kind", "state"),
        ("parameters", "sequences", "tokens", "FLOPs", "memory", "disk", "time"),
    )
    for c in plan.cells:
        kind = c.kind if c.members == 1 else f"{c.kind}, 1 of {c.members} together"
        table.add_row(
            c.name,
            kind,
            Text(c.state, style=STYLES[c.state]),
            f"{c.params:,}",
            f"{c.sequences:,}",
            f"{c.tokens:,}",
            f"{c.flops:.2e}",
            _bytes(c.memory),
            _bytes(c.disk),
            duration(c.seconds),
        )
    t = plan.totals()
    table.add_section()
    table.add_row(
        "total",
        "",
        "",
        "",
        "",
        f"{t['tokens']:,}",
        f"{t['flops']:.2e}",
        _bytes(t["memory"]),
        _bytes(t["disk"]),
        duration(t["seconds"]),
    )
    show(plan.study, table)
    print(
        f"\nWith {plan.workers} workers x {plan.threads} threads: about "
        f"{duration(t['wall_seconds'])} in all, {duration(t['remaining_wall_seconds'])} for the "
        f"{t['remaining_cells']} cells left. Memory: the {plan.workers} hungriest cells at once."
    )
    if plan.calibrated:
        print(f"Times are corrected by {plan.calibrated} finished cells in the runs folder.")
    else:
        print("Times are by a table of typical rates; no finished cell has corrected them yet.")
    if not corpus_known:
        print("The corpus is not prepared yet: `run` does that first, and checks its size then.")


def print_grid(rows: Sequence[dict[str, Any]], hardware: str, mfu: float) -> None:
    """Prints the runs of a scaling study under every FLOP convention, with their price."""
    conventions = list(rows[0]["flops"])
    table = table_of(
        ("run",),
        (
            "seeds",
            "N",
            "D",
            "D/N",
            "batch",
            "steps",
            "peak lr",
            *conventions,
            "chip-hours",
            "dollars",
        ),
    )
    for r in rows:
        table.add_row(
            r["cell"],
            str(r["seeds"]),
            f"{r['params']:,}",
            f"{r['tokens']:,}",
            f"{r['tokens_per_param']:.3g}",
            f"{r['batch_tokens']:,}",
            f"{r['steps']:,}",
            f"{r['lr']:.3g}",
            *(f"{v:.2e}" for v in r["flops"].values()),
            f"{r['chip_hours']:.2g}",
            f"{r['dollars']:.2g}",
        )
    hours, dollars = (sum(r[key] for r in rows) for key in ("chip_hours", "dollars"))
    table.add_section()
    table.add_row("total", *[""] * (len(table.columns) - 3), f"{hours:.3g}", f"{dollars:.3g}")
    show(f"The grid (tokens a batch; FLOPs of one seed; {hardware} at {mfu:.0%} MFU)", table)
    print(
        f"Peak learning rates are the study's; sweeps take them from the law {LAW_IN_WORDS},\n"
        "N parameters, B tokens a batch.\n"
    )


def describe(row: dict[str, Any], folder: CellFolder, head: str | None) -> None:
    """Adds to a cell's row its headline result and commits if it is finished, else its last
    metrics."""
    if "loss" in row:
        row["training_loss"] = row.pop("loss")
    if row["state"] not in ("done", "kept"):
        last = last_metrics(folder)
        row.setdefault("step", last.get("step"))
        row.setdefault("training_loss", last.get("loss"))
        if row["state"] == "running":
            row.setdefault("tokens_per_second", last.get("tokens_per_second"))
        return
    folder = folder.snapshot()
    row["step"] = folder.last_metrics().get("step")
    found = headline(row["kind"], folder)
    row["headline"] = found.to_json() if found else None
    sessions = (folder.json("provenance.json") or {}).get("sessions", [])
    row["commits"] = sorted({s["commit"] for s in sessions if s.get("commit")})
    row["other_commit"] = head is not None and row["commits"] not in ([], [head])


def print_status(found: dict[str, Any]) -> None:
    """Prints the cells of `rlhf_jax.study.runs.status`, each with a remark."""
    table = table_of(("cell", "kind", "state"), ("step", "training loss", "tokens/s"))
    table.add_column("result", overflow="fold")
    for row in found["cells"]:
        step, steps = row.get("step"), row.get("steps")
        table.add_row(
            row["name"],
            row["kind"],
            Text(row["state"], style=STYLES[row["state"]]),
            f"{step}/{steps}" if steps else number(step, "d"),
            number(row.get("training_loss"), ".4f"),
            number(row.get("tokens_per_second"), ",.0f"),
            Text(_remark(row), style="dim"),
        )
    show(found["study"], table)
    states = [row["state"] for row in found["cells"]]
    counts = [f"{states.count(s)} {s}" for s in ("done", "running", "failed", "waiting")]
    counts += [f"{n} {s}" for s in ("kept", "damaged") if (n := states.count(s))]
    print(f"{len(states)} cells: {', '.join(counts)}")


def _remark(row: dict[str, Any]) -> str:
    match row["state"]:
        case "failed" | "damaged":
            return str(row.get("reason", ""))
        case "running" if row.get("silent_seconds"):
            return f"no heartbeat for {duration(row['silent_seconds'])}"
        case "running":
            left = row.get("eta_seconds")
            return f"{duration(left)} left" if left is not None else str(row.get("phase") or "")
        case "waiting" if row.get("waiting_for"):
            return f"for {', '.join(row['waiting_for'])}"
        case "waiting" if row.get("stopped_at") is not None:
            return f"stopped at step {row['stopped_at']}"
        case "done" | "kept":
            said = [row["headline"]["text"]] if row.get("headline") else []
            if row.get("other_commit"):
                said.append(f"made by another commit ({', '.join(c[:10] for c in row['commits'])})")
            return "; ".join(said)
    return ""


def print_fit(title: str, fit: dict[str, Any]) -> None:
    """Prints the numbers of a fitted law with intervals, refusals and notes."""
    table = table_of(("",), ("fit", "95% interval"))
    intervals = fit.get("intervals") or {}
    found = {**fit, **(fit.get("parameters") or {}), **(fit.get("derived") or {})}
    for key, value in found.items():
        if isinstance(value, float) and key not in ("level", "window"):
            interval = " .. ".join(f"{edge:.4g}" for edge in intervals.get(key) or ())
            table.add_row(key, f"{value:.6g}", interval)
    show(title, table)
    if fit.get("refused"):
        print(f"Refused: {fit['refused']}")
    ahead = fit.get("extrapolation") or {}
    if "rms_log_error" in ahead:
        print(
            f"Fitted below {ahead['below']:.3g} FLOPs, it misses the {ahead['scored']} runs above "
            f"by {number(ahead['rms_log_error'], '.2%')} rms (ln)"
        )
    elif "n_log_error" in ahead:
        print(
            f"Fitted up to {ahead['below']:.3g} FLOPs, it misses N* at {ahead['flops']:.3g} by "
            f"{ahead['n_log_error']:+.1%} (ln)"
        )
    for note in [*(fit.get("warnings") or []), *(fit.get("notes") or [])]:
        print(f"Note: {note}")


def print_prediction(said: dict[str, Any]) -> None:
    """Prints N*, D* and loss at a larger budget, by each approach."""
    table = table_of(("approach",), ("a", "N*", "95%", "D*", "95%", "loss", "95%"))
    for approach, of in said["approaches"].items():
        if of.get("refused"):
            table.add_row(f"{approach}: refused: {of['refused']}")
            continue
        cells = [f"{of['a']:.3f}"]
        for key, form in (("n_star", ",.0f"), ("d_star", ",.0f"), ("loss_star", ".4f")):
            ends = of["intervals"].get(key)
            cells.append(number(of.get(key), form))
            cells.append(" .. ".join(number(end, form) for end in ends) if ends else "")
        table.add_row(approach, *cells)
    show(
        f"At {said['flops']:.4g} FLOPs, from {said['fitted']} runs of up to {said['below']:.3g}",
        table,
    )
    if said.get("far"):
        print(f"Note: this is far: {said['far']}")
    for run in said["runs"]:
        print(f"{run['label']}: {run['loss']:.4f} nats a token by approach 3")


def print_next_tokens(prompt: str, likeliest: Sequence[tuple[str, float]]) -> None:
    """Prints a next-token distribution with bars."""
    table = table_of(("token",), ("probability",))
    table.add_column("")
    for token, probability in likeliest:
        bar = Text("█" * round(40 * probability), style="cyan")
        table.add_row(Text(repr(token)), f"{100 * probability:.1f}%", bar)
    show(f"next token after {prompt!r}", table)


def print_continuation(prompt: str, text: str) -> None:
    _console().print(Text(prompt, style="dim") + Text(text, style="bold"), soft_wrap=True)
