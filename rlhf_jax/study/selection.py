"""Which cells of a study a command is about: those to run, and those to forget first."""

from __future__ import annotations

import resource
from collections.abc import Collection, Sequence
from contextlib import ExitStack

from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.graph import Study


def needed(
    study: Study, done: set[str], only: Sequence[str] = (), kept: Collection[str] = ()
) -> set[str]:
    """The cells that `only` (globs; none: all) selects and are neither `done` nor `kept`, with the
    ancestors that they need: a kept cell has results and no checkpoints to start from."""
    todo: set[str] = set()
    queue = [cell.name for cell in study.select(only or ["*"]) if cell.name not in kept]
    while queue:
        if (name := queue.pop()) not in todo and name not in done:
            todo.add(name)
            queue += study[name].parents()
    return todo


def without(
    study: Study, names: Collection[str], failing: Collection[str], asked: Sequence[str]
) -> list[str]:
    """Of the cells `names`, the globs to run in place of `asked` so that no cell runs that starts
    from a `failing` one: the selected cells and the last ones of each chain."""
    parents = {p for c in study.cells for p in c.parents()}
    ends = {c.name for c in study.select(asked)} | {c.name for c in study.cells} - parents
    return sorted((set(names) & ends) - forgotten(study, list(failing)))


def forgotten(study: Study, force: Sequence[str]) -> set[str]:
    """The cells that `force` (globs) selects and all that start from them."""
    doomed = {c.name for c in study.select(force)}
    for cell in study.order():
        if doomed & set(cell.parents()):
            doomed.add(cell.name)
    return doomed


def clear(study: Study, folders: dict[str, CellFolder], force: Sequence[str]) -> list[str]:
    """Empties the folders of the cells that `force` (globs) selects and of all that start from
    them.

    Raises:
      ConfigError: a live process holds one of them; then nothing has been cleared.
    """
    doomed = forgotten(study, force)
    _allow_open_files(len(doomed) + 64)
    with ExitStack() as locks:
        # Equal cells share a folder.
        one_each = {folders[name].path: name for name in sorted(doomed)}
        for name in one_each.values():
            folder = folders[name]
            if folder.path.is_dir() and not locks.enter_context(folder.held()):
                raise ConfigError(
                    f"cell {name!r} is being run by another process; nothing was cleared. "
                    "Stop that process first, then use --force again"
                )
        names = [c.name for c in study.order() if c.name in doomed]
        # First none is done any more: a process killed below leaves no done cell without files.
        for name in names:
            folders[name].unfinish()
        for name in names:
            folders[name].clear()
    return names


def _allow_open_files(count: int) -> None:
    """Raises this process's limit on open files, or a ConfigError where that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    if hard != resource.RLIM_INFINITY and count > hard:
        raise ConfigError(
            f"--force would clear {count - 64:,} cells at once, but a process may open {hard:,} "
            f"files here (ulimit -n); name fewer cells at a time"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
