"""The command line: `rlhf-jax run | plan | status | report | fit | ...`.

A command's options and its body stand in the module that `COMMANDS` names.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from rlhf_jax.placement.cpu import without_tpu
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.files import disk_words

DESCRIPTION = "Scaling experiments on language models and RLHF: one study file, one command."
EXAMPLES = """examples:
  rlhf-jax plan experiments/demo.py                    what it would cost
  rlhf-jax run experiments/demo.py                     run it, or go on where it was interrupted
  rlhf-jax run experiments/demo.py --tiny --runs runs/try
  rlhf-jax run experiments/demo.py --only 'ppo*' ppo-0.kl_coef=0.1
  rlhf-jax status experiments/demo.py --json
  rlhf-jax fit runs.csv --columns params=N tokens=D loss=L --approach 3
  rlhf-jax cost --preset palm-540b --tokens 780e9      what a known model cost, in FLOPs and dollars
  rlhf-jax generate demo/base --prompt "The colour of the sky is" --top 10
  rlhf-jax aot llama-8b --topology v5e:16x16 --batch-per-device 2 --seq-len 4096
  rlhf-jax bench train --against torch                 this machine's speed, and PyTorch's
"""


class Command(NamedTuple):
    """`module` has `arguments(parser)` and `run(args)` under these names."""

    module: str
    run: str
    arguments: str
    text: str
    example: str


COMMANDS = {
    "run": Command(
        "rlhf_jax.placement.cli",
        "run",
        "run_arguments",
        "Run the cells of a study that are not done, then build its report.",
        "rlhf-jax run experiments/demo.py --tiny",
    ),
    "plan": Command(
        "rlhf_jax.placement.cli",
        "plan",
        "plan_arguments",
        "Parameters, tokens, FLOPs, memory, disk and time of every cell.",
        "rlhf-jax plan experiments/demo.py",
    ),
    "status": Command(
        "rlhf_jax.report.cli",
        "status",
        "status_arguments",
        "Which cells are done, running, waiting, or failed and why.",
        "rlhf-jax status experiments/demo.py",
    ),
    "report": Command(
        "rlhf_jax.report.cli",
        "report",
        "report_arguments",
        "Build the HTML report of a study from its run folders.",
        "rlhf-jax report experiments/demo.py",
    ),
    "fit": Command(
        "rlhf_jax.report.fit_cli",
        "command",
        "add_arguments",
        "Fit scaling laws to a table of runs (.csv, .jsonl, ...) or to a study.",
        "rlhf-jax fit runs.csv --columns params=N tokens=D loss=L --approach 3",
    ),
    "predict": Command(
        "rlhf_jax.report.cli",
        "predict",
        "predict_arguments",
        "What a sweep's finished runs say of a larger budget, before it is run.",
        "rlhf-jax predict experiments/chinchilla.py --at 1.153e13",
    ),
    "cost": Command(
        "rlhf_jax.report.cost_cli",
        "command",
        "add_arguments",
        "What training a model costs, and the budget that published laws would have given it.",
        "rlhf-jax cost --preset palm-540b --tokens 780e9",
    ),
    "generate": Command(
        "rlhf_jax.report.cli",
        "generate",
        "generate_arguments",
        "Continue a prompt with a trained cell.",
        'rlhf-jax generate demo/base --prompt "The colour of the sky is" --top 10',
    ),
    "aot": Command(
        "rlhf_jax.tools.aot.cli",
        "command",
        "add_arguments",
        "Compile a training step for TPUs that are not here: memory, FLOPs, collectives, an "
        "estimate of its time.",
        "rlhf-jax aot llama-8b --topology v5e:16x16 --batch-per-device 2 --seq-len 4096",
    ),
    "bench": Command(
        "rlhf_jax.tools.bench.cli",
        "command",
        "add_arguments",
        "How fast this machine trains and samples, and whether PyTorch is faster.",
        "rlhf-jax bench train --against torch --shapes 4x128 8x256",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit code: 0 well, 1 work left or failed, 2 wrong input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Fits multiply tiny matrices; BLAS threads make that many times slower on a busy machine.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.update(without_tpu())
    if not argv or argv[0] not in COMMANDS:
        parser = _overview()
        parser.parse_args(argv)
        parser.print_help()
        return 2
    # Intermixed, so that overrides may stand before or after options.
    args = parser_of(argv[0]).parse_intermixed_args(argv[1:])
    args.command, args.argv = argv[0], argv
    try:
        return int(getattr(import_module(COMMANDS[argv[0]].module), COMMANDS[argv[0]].run)(args))
    except KeyboardInterrupt:
        print("\nrlhf-jax: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except Exception as e:
        said = str(e) if isinstance(e, ConfigError) else disk_words(e)
        if not said and not isinstance(e, OSError):
            raise
        if args.debug:
            traceback.print_exception(_whole(e))
        print(f"rlhf-jax: {said or e}", file=sys.stderr)
        return 2


def _whole(error: BaseException) -> BaseException:
    """The error with its causes shown in the traceback; messages leave them out."""
    below: BaseException | None = error
    while below is not None:
        below.__suppress_context__ = below.__cause__ is not None
        below = below.__cause__ or below.__context__
    return error


def _overview() -> argparse.ArgumentParser:
    """Names the commands, without their options."""
    parser = argparse.ArgumentParser(
        "rlhf-jax",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub = parser.add_subparsers(metavar="COMMAND")
    for name, of in COMMANDS.items():
        sub.add_parser(name, help=of.text)
    return parser


def parser_of(name: str) -> argparse.ArgumentParser:
    """The options of one command, of `COMMANDS`."""
    of = COMMANDS[name]
    parser = argparse.ArgumentParser(
        f"rlhf-jax {name}",
        description=of.text,
        epilog=f"example: {of.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    getattr(import_module(of.module), of.arguments)(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
