"""A finished cell's model as a reward model."""

from __future__ import annotations

from rlhf_jax.kinds.context import Context, read_model
from rlhf_jax.rl.scores import Member
from rlhf_jax.study.cell import Cell
from rlhf_jax.study.config import ConfigError


def member(ctx: Context, cell: Cell, result: str = "report") -> Member:
    """Its parameters, and the `gain` and `bias` that one of its results has.

    Raises:
        ConfigError: it has no such result.
    """
    found = getattr(ctx.result(cell.name), result, None)
    if found is None:
        raise ConfigError(
            f"{ctx.cell.name}.reward = {cell.name!r}, which has learned no verdicts; let it learn "
            f"from critiques with verdicts, or name a reward cell"
        )
    params = read_model(ctx.folders[cell.name], ctx.study.model_of(cell), ctx.runtime)
    return Member(params, found.gain, found.bias)
