"""Programs measured in turns, and what other programs took from them meanwhile. No jax here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from rlhf_jax.tools.bench.machine import busy_seconds

Answer = dict[str, Any]  # of a timed question, with `seconds` and `cpu_seconds`
IDLE_SECONDS = 0.2  # before a turn: idle thread pools stop spinning after some milliseconds
QUIET = 0.05  # others may take this share of the CPU before we warn


def in_rounds(
    name: str,
    asks: Mapping[str, Callable[[], Answer]],
    rounds: int,
    said: Callable[[Mapping[str, Answer]], str],
    log: Callable[[str], None],
) -> tuple[dict[str, list[Answer]], float]:
    """Every side's answer in every round, and `others`, the share of the machine's CPU time that
    went elsewhere in the meantime. The order turns round each time, so that none always follows the
    same one.

    `said` puts the answers of a round in words, for the log.
    """
    answers: dict[str, list[Answer]] = {side: [] for side in asks}
    elsewhere = wall = 0.0
    for n in range(rounds):
        for side in list(asks)[:: 1 if n % 2 == 0 else -1]:
            time.sleep(IDLE_SECONDS)
            before = busy_seconds()
            answer = asks[side]()
            elsewhere += max(0.0, busy_seconds() - before - answer["cpu_seconds"])
            wall += answer["seconds"]
            answers[side].append(answer)
        latest = {side: a[-1] for side, a in answers.items()}
        log(f"{name}: round {n + 1} of {rounds}{said(latest)}")
    others = elsewhere / (wall * (os.cpu_count() or 1))
    if others > QUIET:
        log(
            f"{name}: other programs took {others:.0%} of the CPU. Measure again on a quiet "
            f"machine: threads that wait by spinning, as torch's do, lose most to that"
        )
    return answers, others
