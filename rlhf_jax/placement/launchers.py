"""The launchers that are installed, found by entry point, and what each of them is asked to run.

`launch.launcher` has the interface that a launcher fulfils.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from rlhf_jax.study.callables import raised, said
from rlhf_jax.study.config import ConfigError, override
from rlhf_jax.study.graph import Study
from rlhf_jax.study.messages import suggest
from rlhf_jax.study.runs import Runs

GROUP = "rlhf_jax.launchers"
WORKER: tuple[str, ...] = (sys.executable, "-m", "rlhf_jax.worker")


@dataclass(frozen=True)
class Launch:
    """What is to be run; the same for every launcher.

    Attributes:
      study_path, tiny, overrides: how a worker loads the same study.
      corpus_hash: empty before the corpus is prepared, which is before a `--dry-run` alone.
      only: globs of cells; their unfinished ancestors run too. force: globs of cells to clear
        first, with all that start from them.
      display: `auto`, `table`, `lines` or `none`.
      mesh, accumulate: of each worker, as `rlhf_jax.placement.mesh.check_placement` approved them.
      again: the command that continues, shown when something is left.
      worker_command: what a worker process is started with.
    """

    study: Study
    study_path: str | Path
    runs: Runs
    corpus_hash: str
    tiny: bool = False
    overrides: Sequence[str] = ()
    only: Sequence[str] = ()
    force: Sequence[str] = ()
    display: str = "auto"
    wandb: str = "disabled"
    mesh: str = ""
    accumulate: int = 1
    again: str = ""
    worker_command: Sequence[str] = field(default_factory=lambda: WORKER)

    def worker(self, threads: int) -> list[str]:
        """The command line of a worker with so many CPU threads. It reads the names of cells on
        stdin (a population's on one line) and answers one JSON line a cell on stdout."""
        options = {"--runs": self.runs.root, "--threads": threads, "--wandb": self.wandb}
        if self.mesh:
            options["--mesh"] = self.mesh
        options["--accumulate"] = self.accumulate
        return [
            *self.worker_command,
            str(self.study_path),
            *(["--tiny"] if self.tiny else []),
            *(str(word) for option in options.items() for word in option),
            *self.overrides,
        ]


def installed() -> dict[str, EntryPoint]:
    """The launchers by name. A checkout's pyproject.toml counts beside the metadata of installed
    packages, which may be older than the checkout."""
    found = {}
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        groups = tomllib.loads(project.read_text())["project"].get("entry-points", {})
        own = groups.get(GROUP, {})
        found = {name: EntryPoint(name, value, GROUP) for name, value in own.items()}
    return found | {entry.name: entry for entry in entry_points(group=GROUP)}


def chosen(name: str, options: Sequence[str]) -> partial[Any]:
    """Makes the launcher `name`, with its options set by `key=value` texts, from a Launch.

    Raises:
      ConfigError: no such launcher is installed, it cannot be imported, or it does not declare
        one of the options.
    """
    known = installed()
    if name not in known:
        near = suggest(name, list(known)).partition(" Known")[0]
        raise ConfigError(
            f"unknown launcher {name!r}.{near} Installed: {', '.join(sorted(known)) or 'none'}; "
            f"a package adds one by an entry point in the group {GROUP!r}"
        )
    try:
        launcher = known[name].load()
        defaults = launcher.Options()
        names = [f.name for f in dataclasses.fields(defaults)]
    except Exception as e:
        raise ConfigError(
            f"launcher {name!r} ({known[name].value}) cannot be loaded: {said(e)}{raised(e)}; "
            f"repair or remove the package that brings it"
        ) from e
    for word in options:
        if "=" not in word[1:]:
            raise ConfigError(
                f"--launch {word!r}: expected OPTION=VALUE; options of launcher {name}: "
                f"{', '.join(names) or 'none'}"
            )
    return partial(launcher, options=override(defaults, options, f"launcher {name}"))


@contextlib.contextmanager
def failures_of(name: str) -> Iterator[None]:
    """Errors in the block become a ConfigError that names the launcher and the line.

    Raises:
      ConfigError: also one that is raised in the block, as it is.
    """
    try:
        yield
    except (ConfigError, OSError):
        raise
    except Exception as e:
        raise ConfigError(
            f"launcher {name!r} failed: {said(e)}{raised(e)}; finished cells stay, and the same "
            f"command goes on from them. --debug shows the traceback"
        ) from e
