"""Which column of a table plays which role: by its name alone, or as the caller says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.config import suggest

SIZES = ("params", "tokens", "flops")  # any two give the third
# Names are compared without case, `_`, `-`, spaces and dots. A column of training loss is not
# among the losses: fits are to held-out loss, and a user who means it can say so.
ALIASES: dict[str, tuple[str, ...]] = {
    "params": ("params", "N", "n_params", "num_params", "total_params", "params_total",
               "parameters", "n_parameters", "num_parameters", "parameter_count", "param_count",
               "model_params", "model_size", "size"),
    "tokens": ("tokens", "D", "n_tokens", "num_tokens", "train_tokens", "training_tokens",
               "tokens_seen", "total_tokens", "token_count", "data_size"),
    "flops": ("flops", "flop", "C", "compute", "train_flops", "training_flops", "train_compute",
              "training_compute", "total_flops", "num_flops", "n_flops", "budget_flops",
              "compute_budget"),
    "loss": ("loss", "L", "val_loss", "valid_loss", "validation_loss", "eval_loss", "test_loss",
             "heldout_loss", "final_loss", "final_val_loss", "loss_val", "loss_eval"),
    "stderr": ("stderr", "loss_stderr", "loss_se", "std_err", "standard_error", "sem", "se"),
    "unique_tokens": ("unique_tokens", "U", "n_unique", "num_unique", "unique", "n_unique_tokens",
                      "num_unique_tokens", "tokens_unique", "train_unique_tokens"),
    "error": ("error", "err", "error_rate", "downstream_error", "average_error", "avg_error",
              "top1_error"),
    "budget": ("budget", "isoflop", "isoflop_group", "budget_name"),
    "label": ("label", "name", "run", "run_name", "model", "model_name"),
    "run_id": ("run_id", "id", "uid"),
}  # fmt: skip
NUMERIC = (*SIZES, "loss", "stderr", "unique_tokens", "error")
COLUMNS = tuple(ALIASES)


class FitError(ValueError):
    """Data that no law can be fitted to: says which row and column, and what to do."""


def assign(
    header: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    given: Mapping[str, str],
    where: str,
) -> tuple[dict[str, str], list[str]]:
    """(role -> column, notes on what was recognised) for the columns of a table.

    What `given` names is taken at its word. Where it names two of params, tokens and flops, the
    third is taken only from a column of exactly that name: otherwise C = 6 N D is meant.

    Raises:
      FitError: a role or column that does not exist, several columns for one role, or no loss.
    """
    for role, name in given.items():
        if role not in COLUMNS:
            raise FitError(f"columns: {role!r} is not one of the roles.{suggest(role, COLUMNS)}")
        if name not in header:
            raise FitError(f"{where} has no column {name!r} (for {role}).{suggest(name, header)}")
    names, notes = dict(given), []
    free = [name for name in header if name not in given.values()]
    two_sizes = sum(role in given for role in SIZES) >= 2
    for role in COLUMNS:
        if role in given:
            continue
        aliases = (role,) if role in SIZES and two_sizes else ALIASES[role]
        known = [_key(alias) for alias in aliases]
        found = [name for name in free if _key(name) in known]
        if role in NUMERIC:  # a column of words cannot be meant
            found = [name for name in found if any(_numeric(r.get(name)) for r in records)] or found
        else:
            found = sorted(found, key=lambda name: known.index(_key(name)))[:1]
        if len(found) > 1:
            raise FitError(
                f"{where}: the columns {' and '.join(map(repr, found))} could each be the {role}; "
                f"say which: --columns {role}={found[0]}"
            )
        if role == "loss" and not found:  # such as loss_c4_val, where it is the only one
            found = [n for n in free if "loss" in _key(n) and "train" not in _key(n)]
            found = found if len(found) == 1 else []
        if found:
            names[role] = found[0]
            if found[0] != role:
                notes.append(f"column {found[0]!r} taken as {role}")
    if "loss" not in names:
        raise FitError(
            f"{where} has no column 'loss', nor another name known for it; it has "
            f"{', '.join(header)}. Say which one it is: --columns loss=NAME"
        )
    return names, notes


def number_hint(text: Any) -> str:
    """What to write instead, for numbers with units or separators; or nothing."""
    if not isinstance(text, str):
        return ""
    unit = re.fullmatch(r"\s*([\d.]+)\s*([kmgbt])\w*\s*", text, re.IGNORECASE)
    if unit:
        power = {"k": 3, "m": 6, "g": 9, "b": 9, "t": 12}[unit[2].lower()]
        return f"; write it without a unit, as {unit[1]}e{power}"
    if re.fullmatch(r"\s*\d{1,3}([,_' ]\d{3})+\s*", text):
        return f"; write it without separators, as {re.sub(r'[^0-9]', '', text)}"
    return ""


def _key(name: str) -> str:
    return re.sub(r"[\s_.\-]", "", name).casefold()


def _numeric(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and float(value) == float(value)
    except (TypeError, ValueError):
        return bool(number_hint(value))
