"""The grid of a scaling study, run by run: what `rlhf-jax plan` prints beside the cost of cells
here."""

from __future__ import annotations

from typing import Any

from rlhf_jax.cost.flops import all_conventions, param_counts
from rlhf_jax.cost.hardware import run_cost
from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.study.graph import Study


def grid(study: Study, hardware: str, mfu: float) -> list[dict[str, Any]]:
    """One row a distinct run of the study's `isoflop` analyses, seeds together.

    Returns [{cell, seeds, params, tokens, tokens_per_param, batch_tokens, steps, lr, schedule,
    flops: {convention: FLOPs}, chip_hours, dollars}], FLOPs of one seed, hours and dollars of all
    of them on `hardware` at the model-FLOPs utilisation `mfu` (`exact` convention). A branch counts
    what it adds to the cell that it continues.

    Raises:
      ConfigError: unknown hardware, or an MFU outside (0, 1].
    """
    run_cost(0.0, hardware, mfu)  # says no before anything is counted
    wanted = {c.name for a in study.analyses if a.kind == "isoflop" for c in study.select(a.cells)}
    rows: dict[tuple, dict[str, Any]] = {}
    for cell in study.cells:
        if cell.name not in wanted or not isinstance(cell, Pretrain):
            continue
        before = study[cell.continues] if cell.continues else None
        tokens = cell.tokens - (before.tokens if isinstance(before, Pretrain) else 0)
        key = (cell.model, cell.tokens, tokens, cell.batch, cell.optim)
        if key not in rows:
            params, batch = param_counts(cell.model)["total"], cell.batch * study.corpus.seq_len
            rows[key] = {
                "cell": cell.name,
                "seeds": 0,
                "params": params,
                "tokens": cell.tokens,
                "tokens_per_param": cell.tokens / params,
                "batch_tokens": batch,
                "steps": tokens // batch,
                "lr": cell.optim.lr,
                "schedule": cell.optim.schedule,
                "flops": all_conventions(cell.model, study.corpus.seq_len, tokens),
            }
        rows[key]["seeds"] += 1
    for row in rows.values():
        hours, dollars = run_cost(row["seeds"] * row["flops"]["exact"], hardware, mfu)
        row |= {"chip_hours": hours, "dollars": dollars}
    return list(rows.values())
