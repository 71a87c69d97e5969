"""Ahead-of-time compilation: the real train step, for TPUs that are not here, with `libtpu` on this
CPU.

The compiler needs to know the topology, not to have it: shapes and shardings go in, the optimised
program and its memory come out. No jax at import: libtpu reads its settings from the environment
when jax first asks for it.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_jax.placement.mesh import check_model, check_rows, full_mesh
from rlhf_jax.study.config import ConfigError, ModelConfig, OptimConfig

GIB = 2**30
INSTALL = "pip install 'rlhf-jax[tpu]'"


@dataclass(frozen=True)
class Job:
    """What is compiled: a training step of a model on a mesh."""

    model: ModelConfig
    topology: str  # of chips, as libtpu names it: v5e:16x16
    mesh: Mapping[str, int]
    batch_per_device: int  # sequences a chip and step
    seq_len: int
    accumulate: int = 1
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class Compiled:
    """The optimised program of one device (HLO text) and its memory, or why there is none."""

    text: str
    memory: dict[str, int]  # bytes a device: arguments (state and batch), temporaries, code, total
    dims: tuple[int, ...]  # of the torus, in chips
    coords: list[tuple[int, ...]]  # of the mesh's devices
    seconds: float  # that compiling took
    refused: str = ""  # the compiler's words when it does not fit


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


def topology_devices(name: str) -> Sequence[Any]:
    """Descriptions of the chips of `v5e:16x16` and the like.

    Raises:
      ConfigError: libtpu does not know the topology; with libtpu's words.
    """
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(name, platform="tpu").devices
    except Exception as e:  # jaxlib's own exception type moved between versions
        raise ConfigError(f"topology {name!r}: libtpu says: {str(e).splitlines()[0]}") from None


def check(job: Job, devices: int) -> dict[str, int]:
    """The mesh's axes, after everything that can be seen before compiling has been checked.

    Raises:
      ConfigError: a mesh of another size, a dimension that its axis does not divide, or a sequence
        longer than the table of positions.
    """
    text = ",".join(f"{axis}={size}" for axis, size in job.mesh.items())
    sizes = full_mesh(text, devices)
    if (count := math.prod(sizes.values())) != devices:
        raise ConfigError(f"mesh {text!r} has {count} devices; {job.topology} has {devices}")
    m = job.model
    if m.positions == "learned" and job.seq_len > m.max_positions:
        raise ConfigError(
            f"--seq-len {job.seq_len} is more than the model's {m.max_positions} learned positions"
        )
    check_model("model", m, sizes)
    each = f"--batch-per-device {job.batch_per_device} x {devices} devices"
    check_rows(each, job.batch_per_device * devices, sizes, job.accumulate)
    return sizes


def compile_step(job: Job) -> Compiled:
    """Lowers and compiles `make_train_step` over abstract, sharded state and batch."""
    import jax

    devices = topology_devices(job.topology)
    from rlhf_jax.model.sharding import make_mesh

    mesh = make_mesh(check(job, len(devices)), devices)
    dims = tuple(int(n) for n in job.topology.partition(":")[2].split("x"))
    coords = [tuple(d.coords[: len(dims)]) for d in mesh.devices.flat]
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        step, state, batch = _abstract(job, mesh)
        lowered = step.lower(state, batch)
        try:
            compiled = lowered.compile()
        except Exception as e:  # jaxlib's own exception type moved between versions
            if not re.search(r"out of memory (on|in memory space) hbm", str(e), re.IGNORECASE):
                raise
            memory, words = _refused(str(e), state)
            return Compiled("", memory, dims, coords, time.perf_counter() - start, words)
    return Compiled(
        compiled.as_text(), _memory(compiled), dims, coords, time.perf_counter() - start
    )


def _abstract(job: Job, mesh: Any) -> tuple[Any, Any, Any]:
    """The compiled-to-be step, and the shapes and layouts of its state and batch."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from rlhf_jax.model import decays, init, param_axes
    from rlhf_jax.model.sharding import AXES, shardings
    from rlhf_jax.objectives import language_modelling
    from rlhf_jax.train import init_state, make_train_step

    def laid_out(x: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    shapes = jax.eval_shape(lambda: init(job.model, jax.random.key(0)))
    params = jax.tree.map(laid_out, shapes, shardings(mesh, param_axes(job.model)))
    state = jax.eval_shape(lambda p: init_state(p, job.optim, 1), params)
    state = jax.tree.map(
        lambda x: laid_out(x, x.sharding or NamedSharding(mesh, PartitionSpec())), state
    )
    shape = (job.batch_per_device * mesh.size, job.seq_len)
    rows = NamedSharding(mesh, AXES.spec("batch", None))
    batch = {
        name: jax.ShapeDtypeStruct(
            shape, jnp.float32 if name == "weights" else jnp.int32, sharding=rows
        )
        for name in ("tokens", "targets", "segments", "positions", "weights", "bytes")
    }
    step = make_train_step(
        lambda p, b: language_modelling(p, b, job.model, AXES),
        job.optim,
        functools.partial(decays, job.model),
        AXES,
        job.accumulate,
    )
    return step, state, batch


def _memory(compiled: Any) -> dict[str, int]:
    """Bytes of one device. What the TPU's compiler calls temporaries includes the arguments (seen:
    its `total_allocation_bytes` equals them, not the sum of both), so they are taken off here."""
    found = compiled.memory_analysis()
    host = found.host_temp_size_in_bytes
    total = found.total_allocation_bytes - host
    return {
        "arguments": found.argument_size_in_bytes,
        "temporaries": total - found.argument_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
        "host": host,
        "total": total + found.generated_code_size_in_bytes,
    }


def _refused(message: str, state: Any) -> tuple[dict[str, int], str]:
    """(memory, the compiler's words) from what it says when the program does not fit: it needs
    `(43.42G)` of `(15.75G)`. What it calls temporaries there are the arguments too (seen: the sum
    of a 256 GiB argument is refused with 256.00G)."""
    import jax

    unit = {"K": 2**10, "M": 2**20, "G": GIB}
    sizes = [int(float(n) * unit[u]) for n, u in re.findall(r"([\d.]+)([KMG])\b", message)]
    arguments = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(state)
    )
    total = max([*sizes, arguments])
    memory = {"arguments": arguments, "temporaries": total - arguments, "total": total}
    words = next((x for x in message.splitlines() if re.search(r"[\d.]+[KMG]\b", x)), message)
    return memory, words.strip()
