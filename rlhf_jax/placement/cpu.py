"""What is set before a process computes on a CPU. None of it changes a result beyond rounding.

| setting                                      | why                                              |
|----------------------------------------------|--------------------------------------------------|
| NPROC, OMP and OPENBLAS threads              | how many threads the process may use             |
| --xla_cpu_multi_thread_eigen=false           | with one thread: no thread pool                  |
| --xla_force_host_platform_device_count       | in a worker for populations: one device a core,  |
|                                              | for the members (XLA then uses that many         |
|                                              | threads, whatever NPROC says)                    |
| glibc.malloc.hugetlb=1                       | the step's buffers in huge pages (Linux, where   |
|                                              | transparent huge pages are `madvise` or `always`)|
| glibc.malloc.mmap_max=0, trim_threshold,     | the memory of a step is kept for the next one:   |
|   arena_max=1                                | returning it to the kernel and clearing it again |
|                                              | costs a tenth of a step. The price: 1.3 to 2.5   |
|                                              | times the memory                                 |
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from rlhf_jax.placement.machine import tpu_here

MALLOC = ("hugetlb=1", "mmap_max=0", "trim_threshold=1000000000000", "arena_max=1")


def worker_environment(threads: int | None, devices: int = 1) -> dict[str, str]:
    """The environment of a process with `threads` CPU threads (None: as many as there are): ours,
    with the settings of the table added to it. glibc reads its own at the start of a process
    only."""
    env = dict(os.environ)
    if threads is not None:
        count = str(threads)
        env |= {"NPROC": count, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
        if threads == 1:
            _add(env, "XLA_FLAGS", " ", "--xla_cpu_multi_thread_eigen=false")
    if devices > 1:
        _add(env, "XLA_FLAGS", " ", f"--xla_force_host_platform_device_count={devices}")
    for setting in MALLOC:
        _add(env, "GLIBC_TUNABLES", ":", f"glibc.malloc.{setting}")
    return env


def _add(env: dict[str, str], name: str, separator: str, setting: str) -> None:
    """Adds a setting to a list of them, unless the user has set it already."""
    known = [s for s in env.get(name, "").split(separator) if s]
    if setting.split("=")[0] not in (s.split("=")[0] for s in known):
        env[name] = separator.join([*known, setting])


def without_tpu() -> dict[str, str]:
    """What to add to the environment, before jax is imported, where libtpu is installed and there
    is no TPU: jax would load it to look for one, which takes time and fills the terminal."""
    chosen = {"JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_FORCE_TPU_INIT"} & set(os.environ)
    if chosen or importlib.util.find_spec("libtpu") is None or tpu_here():
        return {}
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    plugins = (importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    gpu = any(Path("/dev").glob("nvidia[0-9]*")) and not hidden and any(plugins)
    return {"JAX_PLATFORMS": "cuda,cpu" if gpu else "cpu", "TPU_SKIP_MDS_QUERY": "1"}


def keep_compiled(folder: Path) -> None:
    """Keeps compiled programs in a folder, for every later process that would compile them
    again."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
