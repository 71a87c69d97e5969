"""Which modes of a known distribution a policy still visits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.study.config import ConfigError

KEPT = 0.01  # a mode is kept where at least this share of all responses is in it


def mode_names(labels: Sequence[Any]) -> list[str | None]:
    """Labels as names; None, -1 and the empty text are no mode."""
    return [None if x is None or str(x) in ("-1", "") else str(x) for x in labels]


def mode_report(before: Sequence[Any], after: Sequence[Any]) -> dict[str, Any]:
    """Modes before and after, from a label of each response.

    Returns {"names": of all modes seen on either side, "before", "after": {"counts": {name:
    responses}, "shares": {name: of all responses}, "none": share in no mode, "kept": modes with a
    share of at least `KEPT`, "entropy": nats, over the responses that are in a mode},
    "total_variation": half the sum of |share after - share before|, with "none" as one more mode}.
    """
    sides = {"before": mode_names(before), "after": mode_names(after)}
    if not all(sides.values()):
        raise ConfigError(f"{len(before)} and {len(after)} labels of modes; give one a response")
    names = sorted({n for side in sides.values() for n in side if n is not None}, key=_in_order)
    found: dict[str, Any] = {"names": names}
    shares: dict[str, np.ndarray] = {}
    for side, labels in sides.items():
        counts = np.array([labels.count(n) for n in (*names, None)], float)
        share = shares[side] = counts / len(labels)
        inside = counts[:-1][counts[:-1] > 0] / max(counts[:-1].sum(), 1)
        found[side] = {
            "counts": {n: int(c) for n, c in zip(names, counts[:-1], strict=True)},
            "shares": {n: float(s) for n, s in zip(names, share[:-1], strict=True)},
            "none": float(share[-1]),
            "kept": int((share[:-1] >= KEPT).sum()),
            "entropy": float(-(inside * np.log(inside)).sum()) + 0.0,
        }
    found["total_variation"] = float(0.5 * np.abs(shares["after"] - shares["before"]).sum())
    return found


def _in_order(name: str) -> tuple[bool, float, str]:
    """Numbers by value, then words."""
    is_number = name.lstrip("-").isdigit()
    return not is_number, float(name) if is_number else 0.0, name
