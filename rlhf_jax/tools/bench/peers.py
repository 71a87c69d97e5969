"""Measured programs, each in a process of its own, and how to talk to them: one JSON line a
question, one JSON line an answer. A process that is not asked waits for its input, and takes no CPU
time.

They are separate processes because allocators, thread pools and XLA read their settings at start,
and because first steps, compilation and peak memory are those of a fresh process. No jax here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlhf_jax.placement.cpu import worker_environment
from rlhf_jax.study.config import ConfigError

LAST_WORDS = 1500  # characters of a dead process's stderr that are shown


class Asked(Protocol):
    """What answers questions."""

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]: ...


class Peer:
    """One running program. A context manager: the process ends with the block."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        threads: int,
        settings: Mapping[str, str],
        devices: int = 1,
    ) -> None:
        """Starts it as workers are started, with `threads` CPU threads (or one a device), and
        `settings` added to its environment."""
        self.name = name
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**worker_environment(threads, devices), **settings},
        )

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Its answer to one question.

        Raises:
          ConfigError: it has died, or did not answer in JSON; with its last words.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
            stdin.flush()
        line = stdout.readline()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            raise ConfigError(
                f"the {self.name} process failed at {operation!r}: {self._last_words() or line!r}"
            ) from None
        assert isinstance(answer, dict)
        return answer

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)  # it may be about to say why
        self._stderr.seek(0)
        return self._stderr.read().strip()[-LAST_WORDS:]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=0 if exc[0] else 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()


def ours(program: str, threads: int, devices: int = 1) -> Peer:
    """A program of this package. Nothing compiled is kept, unless the program says so."""
    command = (sys.executable, "-m", f"rlhf_jax.tools.bench.{program}")
    fresh = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return Peer("rlhf-jax", command, threads, fresh, devices)


def serve(program: Any) -> None:
    """The other side: answers questions by the methods of `program` until its input closes. What
    libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = getattr(program, arguments.pop("op"))(**arguments)
        print(json.dumps(answer), file=answers, flush=True)


def interpreter(other: str, python: str | None, ask: str, install: str) -> tuple[Path, str]:
    """(an interpreter that has the packages of `other`, what it prints for the program `ask`);
    default: that of `.venv-OTHER` in the checkout.

    Raises:
      ConfigError: it is not there, or `ask` fails; says how to get it.
    """
    root = Path(__file__).resolve().parents[3]
    path = Path(python) if python else root / f".venv-{other}" / "bin" / "python"
    try:
        done = subprocess.run([path, "-c", ask], capture_output=True, text=True)
    except OSError:
        raise ConfigError(
            f"--against {other}: no Python at {path}. Get it with: {install}"
        ) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise ConfigError(f"--against {other}: {path} says {said!r}. Get it with: {install}")
    return path, done.stdout.strip()
