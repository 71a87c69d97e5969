"""`rlhf-jax aot`: compiles training steps for TPUs that are not here and says what they need.

No jax at import: libtpu reads its settings from the environment when jax first asks for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys

from rlhf_jax.config import ConfigError, ModelConfig
from rlhf_jax.presets import PRESETS, preset

INSTALL = "pip install 'rlhf-jax[tpu]'"


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("what", metavar="PRESET_OR_STUDY",
                   help=f"one of {', '.join(PRESETS)}, or a study file")  # fmt: skip
    p.add_argument("--topology", required=True, metavar="GENERATION:CHIPS",
                   help="for instance v5e:16x16, v5p:8x8x8; v4, v5e, v5p and v6e are known")  # fmt: skip
    p.add_argument("--mesh", default=None, metavar="AXIS=N,...",
                   help="of data, fsdp, tensor (default: fsdp over all devices)")  # fmt: skip
    p.add_argument("--batch-per-device", type=int, default=None, metavar="N",
                   help="sequences (default: 1; of a study: the cell's batch)")  # fmt: skip
    p.add_argument("--seq-len", type=int, default=None, metavar="T",
                   help="(default: the preset's, the study's)")  # fmt: skip
    p.add_argument("--remat", choices=("none", "dots", "offload", "full"), default=None)
    p.add_argument("--accumulate", type=int, default=1, metavar="N")
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


def prepare_environment() -> None:
    """Tells libtpu that there is no TPU to be found here. Call it before jax is imported.

    Raises:
      ConfigError: libtpu is not installed; says how to get it.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "ahead-of-time compilation needs libtpu, the TPU compiler (it runs on a CPU), which is "
            f"not installed; {INSTALL}"
        )
    settings = {
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two compilations may run at once
        "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask what this machine is
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def wanted(what: str, cell: str | None) -> list[Wanted]:
    """The models that PRESET_OR_STUDY names: of a study, each distinct one that is pretrained."""
    if what in PRESETS or not what.endswith(".py"):
        p = preset(what)
        return [Wanted(what, p.model, p.seq_len, None)]
    from rlhf_jax.cells import Pretrain
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
    prepare_environment()
    from rlhf_jax.parallel import parse_mesh
    from rlhf_jax.parallel.aot import Job, compile_step, topology_devices
    from rlhf_jax.parallel.chips import chip
    from rlhf_jax.parallel.forecast import forecast, lines

    chip(args.topology)
    devices = len(topology_devices(args.topology))
    mesh = {"fsdp": devices} if args.mesh is None else parse_mesh(args.mesh)
    reports = []
    for w in models:
        each = args.batch_per_device or 1
        if args.batch_per_device is None and w.batch is not None:
            if w.batch % devices:
                raise ConfigError(
                    f"{w.name}: its batch of {w.batch} does not divide over {devices} devices; give "
                    "--batch-per-device, or a smaller --topology"
                )
            each = w.batch // devices
        model = dataclasses.replace(w.model, remat=args.remat) if args.remat else w.model
        job = Job(model, args.topology, mesh, each, args.seq_len or w.seq_len, args.accumulate)
        report = {"name": w.name, **forecast(job, compile_step(job))}
        reports.append(report)
        if not args.json:
            print("\n".join(lines(w.name, report)), flush=True)
    if args.json:
        print(json.dumps(reports[0] if len(reports) == 1 else reports, indent=1))
    misfits = [r for r in reports if not r["fits"]]
    for r in misfits:
        over = (r["memory_bytes"] - r["hbm_bytes"]) / 2**30
        print(f"rlhf-jax: {r['name']} does not fit: {over:.2f} GiB a device too much. Lower the batch "
              "(--batch-per-device, --accumulate), recompute more (--remat full), or take more chips",
              file=sys.stderr)  # fmt: skip
    return 1 if misfits else 0
