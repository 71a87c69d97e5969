"""The command line of `rlhf-jax cost`. No jax, and at import no numpy or scipy."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from rlhf_jax.cost.hardware import HARDWARE
from rlhf_jax.cost.presets import PRESETS
from rlhf_jax.laws.tables.numbers import parse
from rlhf_jax.report.terminal import show, table_of
from rlhf_jax.study.config import ConfigError


def quantity(text: str) -> float:
    """A number on the command line: 70e9, 70B, 1.4T."""
    try:
        return parse(text.strip().removeprefix("$"))[0]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a number, such as 70e9, 70B or 0.4"
        ) from None


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    p.add_argument(
        "--hardware",
        metavar="NAME",
        help=f"one of {', '.join(HARDWARE)} (default: the preset's, else h100)",
    )
    for name, metavar, text in (
        ("params", "N", "or a bare number of parameters: 70e9"),
        ("tokens", "D", "trained on (default: the preset's published ones)"),
        ("mfu", "SHARE", "of the peak, 0 to 1 (default: the preset's, else 0.4)"),
        ("price", "DOLLARS", "a chip-hour (default: list prices, low and high)"),
        (
            "inference-tokens",
            "D_INF",
            "read or written in the model's life: which model would be cheapest then",
        ),
    ):
        p.add_argument(f"--{name}", type=quantity, metavar=metavar, help=text)
    p.add_argument(
        "--table",
        action="store_true",
        help="known models against the laws (always shown after a preset)",
    )
    p.add_argument("--json", action="store_true")


def command(args: argparse.Namespace) -> int:
    """Returns 0."""
    from rlhf_jax.cost.prices import serving, training_cost, undertrained_table
    from rlhf_jax.laws.published import FRONTIERS

    priced = ("preset", "params", "tokens", "hardware", "mfu", "price")
    wanted = [name for name in priced if getattr(args, name) is not None]
    if not wanted and not args.table:
        raise ConfigError(
            "nothing to price: give --preset NAME, or --params N with --tokens D, or --table"
        )
    cost: dict[str, Any] = {}
    if wanted:
        cost = training_cost(
            args.preset, args.params, args.tokens, args.hardware, args.mfu, args.price
        )
        if args.inference_tokens is not None:
            cost["inference"] = serving(cost["params"], cost["tokens"], args.inference_tokens)
    elif args.inference_tokens is not None:
        raise ConfigError("--inference-tokens is of a model: give --preset or --params too")
    known = undertrained_table() if args.table or args.preset else None
    if args.json:
        if known:
            laws = {name: frontier.source for name, frontier in FRONTIERS.items()}
            cost |= {"known_models": known, "law_sources": laws}
        print(json.dumps(cost, indent=1))
        return 0
    if cost:
        print_cost(cost)
        print_laws(cost)
        if "inference" in cost:
            print_serving(cost["inference"])
    if known:
        print_known(known, args.preset)
    return 0


# --- printing --------------------------------------------------------------------------------


def _show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Prints a table; its first column is aligned left."""
    table = table_of(columns[:1], columns[1:])
    for row in rows:
        table.add_row(*row)
    show(title, table)


def _amount(value: float) -> str:
    """`540.4B`, `1.4T`: parameters and tokens."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _dollars(value: float) -> str:
    return f"${value / 1e6:,.2f}M" if value >= 1e6 else f"${value:,.0f}"


def print_cost(cost: dict[str, Any]) -> None:
    """FLOPs under each convention, and chip-hours and dollars of the ideal and the published
    run."""
    name = f"{cost['model']}: " if cost["model"] else ""
    title = f"{name}{_amount(cost['params'])} parameters, {_amount(cost['tokens'])} tokens"
    _show(
        f"{title} ({_ratio(cost['tokens_per_param'])} a parameter)",
        ("convention", "FLOPs"),
        [(key, f"{value:.4g}") for key, value in cost["flops"].items()],
    )
    chip = cost["hardware"]
    low, high = cost["prices"]
    rates = [f"at ${p:.4g}" for p in ((low,) if low == high else (low, high))]

    def row(what: str, mfu: float, spent: dict[str, Any]) -> tuple[str, ...]:
        dollars = [_dollars(d) for d in spent["dollars"][: len(rates)]]
        return what, f"{100 * mfu:.1f}%", f"{spent['chip_hours']:,.0f}", *dollars

    rows = [row(f"FLOPs alone ({cost['convention']})", cost["mfu"], cost["ideal"])]
    if cost["campaign"]:
        rows.append(
            row("campaign as published", cost["campaign"]["effective_mfu"], cost["campaign"])
        )
    print()
    _show(
        f"{chip['name']}, {chip['flops'] / 1e12:.4g} TFLOP/s a chip",
        ("", "MFU", "chip-hours", *rates),
        rows,
    )
    print(f"Peak: {chip['peak_source']}. MFU: {cost['mfu_source']}. Price: {cost['price_source']}.")
    if cost["campaign"] and cost["campaign"]["estimate"]:
        said = " to ".join(map(_dollars, cost["campaign"]["estimate"]))
        prices = " to ".join(f"${p:.2f}" for p in cost["campaign"]["estimate_prices"])
        print(f"Others estimated {said}: {prices} for each published chip-hour.")


def print_laws(cost: dict[str, Any]) -> None:
    """The run against the optimum of every published law."""
    rows = []
    for r in cost["laws"]:
        wanted = (_amount(r["tokens_wanted"]), f"{r['flops_wanted']:.3g}")
        best = (_amount(r["params_best"]), _amount(r["tokens_best"]))
        gap = "" if r["loss_gap"] is None else f"{r['loss']:.4f} ({r['loss_gap']:+.4f})"
        needed = "" if r["compute_needed"] is None else f"{100 * r['compute_needed']:.1f}%"
        rows.append((r["law"], *wanted, _ratio(r["tokens_ratio"]), *best, gap, needed))
    columns = "law,D* for this N,C* for this N,D / D*,N* for this C,D* for this C"
    columns += ",loss (above the best),C that would do"
    print()
    _show("What published laws would have done (C = 6 N D)", columns.split(","), rows)


def print_serving(inference: dict[str, Any]) -> None:
    """The cheapest model of the same loss, training and serving together."""
    rows = [
        (
            r["law"],
            f"{r['loss']:.4f}",
            _amount(r["params"]),
            _amount(r["tokens"]),
            f"{r['flops']:.3g}",
            f"{r['given_flops']:.3g}",
            f"{100 * r['saving']:.1f}%",
        )
        for r in inference["laws"]
    ]
    print()
    _show(
        f"The same loss, cheapest to train and to serve {_amount(inference['tokens'])} tokens with "
        "(6 N D + 2 N D_inf)",
        ("law", "loss", "N", "D", "FLOPs in all", "of the model given", "saved"),
        rows,
    )


def print_known(rows: Sequence[dict[str, Any]], here: str | None = None) -> None:
    """Known models by tokens a parameter, with D / D* under each law; `here` stands out."""
    laws = list(rows[0]["ratios"])
    lines = [
        [
            Text(text, style="bold" if r["model"] == here else "")
            for text in (
                r["model"],
                _amount(r["params"]),
                _amount(r["tokens"]),
                f"{r['flops']:.3g}",
                _ratio(r["tokens_per_param"]),
                *(_ratio(r["ratios"][k]) for k in laws),
            )
        ]
        for r in rows
    ]
    print()
    _show(
        "Known models: D / D*, below 1 is undertrained",
        ("model", "parameters", "tokens", "6 N D", "D / N", *laws),
        lines,
    )
