"""The command line of `rlhf-jax aot`. No jax at import."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from rlhf_jax.cost.hardware import chip_of
from rlhf_jax.cost.presets import PRESETS, preset
from rlhf_jax.placement.mesh import parse_mesh
from rlhf_jax.study.config import ConfigError, ModelConfig, argument
from rlhf_jax.study.ranges import Size
from rlhf_jax.tools.aot.compile import (
    Job,
    check,
    compile_step,
    prepare_environment,
    topology_devices,
)


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "what", metavar="PRESET_OR_STUDY", help=f"one of {', '.join(PRESETS)}, or a study file"
    )
    p.add_argument(
        "--topology",
        required=True,
        metavar="GENERATION:CHIPS",
        help="for instance v5e:16x16, v5p:8x8x8; v4, v5e, v5p and v6e are known",
    )
    p.add_argument(
        "--mesh",
        default=None,
        metavar="AXIS=N,...",
        help="of data, fsdp, tensor (default: fsdp over all devices)",
    )
    p.add_argument(
        "--batch-per-device",
        type=argument(Size),
        default=None,
        metavar="N",
        help="sequences (default: 1; of a study: the cell's batch)",
    )
    p.add_argument(
        "--seq-len",
        type=argument(Size),
        default=None,
        metavar="T",
        help="(default: the preset's, the study's)",
    )
    p.add_argument("--remat", choices=("none", "dots", "offload", "full"), default=None)
    p.add_argument("--accumulate", type=argument(Size), default=1, metavar="N")
    p.add_argument(
        "--cell", metavar="NAME", help="this cell of the study (default: every model in it)"
    )
    p.add_argument("--json", action="store_true")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One model to compile; `batch` is of the whole mesh."""

    name: str
    model: ModelConfig
    seq_len: int
    batch: int | None


def wanted(what: str, cell: str | None) -> list[Wanted]:
    """The models that PRESET_OR_STUDY names: of a study, each distinct one that is pretrained."""
    if what in PRESETS or not what.endswith(".py"):
        p = preset(what)
        if cell is not None:
            raise ConfigError(f"--cell {cell} is of a study file; {what} is a preset: leave it out")
        return [Wanted(what, p.model, p.seq_len, None)]
    from rlhf_jax.kinds.pretrain.cell import Pretrain
    from rlhf_jax.study import load_study

    study = load_study(what)
    cells = [c for c in study.cells if isinstance(c, Pretrain) and cell in (None, c.name)]
    if not cells:
        names = ", ".join(c.name for c in study.cells if isinstance(c, Pretrain))
        raise ConfigError(
            f"no pretraining cell {cell or ''!r} in {what}; there are: {names or 'none'}"
        )
    distinct: dict[tuple[ModelConfig, int], Wanted] = {}
    for c in cells:
        found = Wanted(c.name, c.model, study.corpus.seq_len, c.batch)
        distinct.setdefault((c.model, c.batch), found)
    return list(distinct.values())


def command(args: argparse.Namespace) -> int:
    """Returns 0 if everything fits, 1 if something does not."""
    models = wanted(args.what, args.cell)
    chip_of(args.topology)
    prepare_environment()
    from rlhf_jax.tools.aot.forecast import forecast, lines

    devices = len(topology_devices(args.topology))
    mesh = {"fsdp": devices} if args.mesh is None else parse_mesh(args.mesh)
    jobs = []
    for w in models:
        each = 1 if args.batch_per_device is None else args.batch_per_device
        if args.batch_per_device is None and w.batch is not None:
            if w.batch % devices:
                raise ConfigError(
                    f"{w.name}: its batch of {w.batch} does not divide over {devices} devices; "
                    f"give --batch-per-device, or a smaller --topology"
                )
            each = w.batch // devices
        model = (
            dataclasses.replace(w.model, remat=args.remat) if args.remat is not None else w.model
        )
        seq_len = w.seq_len if args.seq_len is None else args.seq_len
        jobs.append((w.name, Job(model, args.topology, mesh, each, seq_len, args.accumulate)))
        check(jobs[-1][1], devices)
    reports = []
    for name, job in jobs:
        report = {"name": name, **forecast(job, compile_step(job))}
        reports.append(report)
        if not args.json:
            print("\n".join(lines(name, report)), flush=True)
    if args.json:
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=1))
    misfits = [r for r in reports if not r["fits"]]
    for r in misfits:
        over = (r["memory_bytes"] - r["hbm_bytes"]) / 2**30
        print(
            f"rlhf-jax: {r['name']} does not fit: {over:.2f} GiB a device too much. Lower the "
            f"batch (--batch-per-device, --accumulate), recompute more (--remat full), or take "
            "more chips",
            file=sys.stderr,
        )
    return 1 if misfits else 0
