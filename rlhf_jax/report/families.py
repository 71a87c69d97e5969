"""How a study's cells belong together: seeds of one thing, proxies and what they learned from,
rounds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_jax.cost.flops import param_counts
from rlhf_jax.report.study_results import CellResult, StudyResults
from rlhf_jax.report.style import SERIES
from rlhf_jax.study.cell import KNOWN
from rlhf_jax.study.config import ConfigError, ModelConfig, from_json

_SEED = re.compile(r"(^|[-_])s(eed)?\d+(?=[-_]|$)")
_LAST_DIGIT = re.compile(r"[-_]\d$")
STROKES = ("-", "--", ":", "-.")


def family(name: str) -> str:
    """A cell's name without its seed, a part `s3` or `seed3`, or else one digit at the end:
    `ppo-s3-r2` and `ppo-s0-r2` are `ppo-r2`, `reward-256-3` is `reward-256`."""
    shorter = _SEED.sub("", name) if _SEED.search(name) else _LAST_DIGIT.sub("", name)
    return shorter.strip("-_") or name


def by_family(cells: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Cells by the family of their name, in the order of the study."""
    found: dict[str, list[CellResult]] = {}
    for cell in cells:
        found.setdefault(family(cell.name), []).append(cell)
    return found


@dataclass(frozen=True)
class Stroke:
    """How a cell's line is drawn. label: None where another line of its group has one."""

    color: str
    linestyle: str
    linewidth: float
    label: str | None


def strokes(cells: Sequence[CellResult], most: int = 6) -> list[Stroke]:
    """A colour a cell, up to `most` cells; then a colour a family, its seeds thin and all shown."""
    groups = by_family(cells)
    if len(cells) <= most:
        names, width = [c.name for c in cells], 1.4
    else:
        names, width = [family(c.name) for c in cells], 0.9
    order = list(dict.fromkeys(names))
    found, seen = [], set()
    for name in names:
        i, size = order.index(name), len(groups.get(name, []))
        label = f"{name} ({size} seeds)" if width < 1 and size > 1 else name
        line = STROKES[i // len(SERIES) % len(STROKES)]
        found.append(Stroke(SERIES[i % len(SERIES)], line, width, None if name in seen else label))
        seen.add(name)
    return found


@dataclass(frozen=True)
class Proxy:
    """A reward that policies were optimised against. params, labels (training prompts with a
    ranking), accuracy: None where it is a callable or not known; an ensemble's parameters are all
    its members'."""

    name: str
    params: int | None = None
    labels: int | None = None
    accuracy: float | None = None


def proxy_of(study: StudyResults, cell: CellResult) -> Proxy:
    """The reward that a PPO, best-of-n or evaluation cell names."""
    named = cell.config.get("reward")
    if isinstance(named, str) and ":" in named:
        return Proxy(named)
    reward = study.cell(cell.parents[-1]) if cell.parents else None
    return proxy(study, reward) if reward else Proxy(str(named))


def proxy(study: StudyResults, cell: CellResult) -> Proxy:
    """What a reward cell or an ensemble is."""
    report = getattr(cell.result, "report", None)
    members = getattr(report, "members", ())  # of an ensemble
    parts = [study.cell(name) for name in members] if members else [cell]
    sizes = [size(part) for part in parts if part]
    labels = report.prompts if report else cell.config.get("prompts")
    accuracy = report.accuracy if report else None
    return Proxy(cell.name, sum(s for s in sizes if s) or None, labels, accuracy)


def size(cell: CellResult) -> int | None:
    """Parameters of a cell's model, from its configuration."""
    try:
        return param_counts(from_json(ModelConfig, cell.config["model"]))["total"]
    except (ConfigError, KeyError, TypeError):
        return None


def asks_for(kind: str, *roles: str) -> bool:
    """Whether cells of a kind have parents that play one of the roles."""
    return kind in KNOWN and not set(roles).isdisjoint(KNOWN[kind].PARENTS.values())


def plays(kind: str, role: str) -> bool:
    return kind in KNOWN and role in KNOWN[kind].ROLES


def climbs_a_reward(kind: str) -> bool:
    """Whether cells of a kind make a policy by optimising a reward, as PPO does."""
    return plays(kind, "language_model") and asks_for(kind, "reward")


def rounds(study: StudyResults) -> dict[str, int]:
    """Of every policy that was optimised against feedback, how many such policies it comes from,
    itself included: its round. A policy counts that has a parent that is a reward or comparisons
    (PPO, DPO), or records that a reward has chosen (fine-tuning on the best of n)."""
    found: dict[str, int] = {}
    below: dict[str, int] = {}  # the highest round among a cell and its ancestors

    def optimised(cell: CellResult) -> bool:
        kinds = [parent.kind for p in cell.parents if (parent := study.cell(p))]
        chosen = any(plays(k, "records") and asks_for(k, "reward") for k in kinds)
        return plays(cell.kind, "language_model") and (
            chosen or asks_for(cell.kind, "reward", "comparisons")
        )

    def highest(name: str) -> int:
        if name not in below and (cell := study.cell(name)):
            below[name] = 0
            top = max(map(highest, cell.parents), default=0)
            if optimised(cell):
                top = found[name] = top + 1
            below[name] = top
        return below.get(name, 0)

    for cell in study.cells:
        highest(cell.name)
    return found


def ancestors(study: StudyResults, name: str) -> set[str]:
    """Names of all cells that a cell comes from."""
    found: set[str] = set()
    queue = [name]
    while queue:
        cell = study.cell(queue.pop())
        fresh = [p for p in (cell.parents if cell else ()) if p not in found]
        found.update(fresh)
        queue += fresh
    return found


def evaluated(cell: CellResult) -> str | None:
    """Name of the policy that an evaluation looks at: its `after`."""
    return cell.parents[1] if len(cell.parents) > 1 else None
