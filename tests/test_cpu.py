"""Guarantee: a process that computes starts with the settings of one table, and what a user has set
stays."""

import subprocess
import sys

from rlhf_jax.placement.cpu import MALLOC, worker_environment


def test_one_thread_is_one_thread_everywhere(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    env = worker_environment(1)
    assert {env[n] for n in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"1"}
    assert env["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false"
    assert "XLA_FLAGS" not in worker_environment(2) and worker_environment(2)["NPROC"] == "2"
    assert worker_environment(2, 4)["XLA_FLAGS"] == "--xla_force_host_platform_device_count=4"


def test_settings_are_added_once_and_the_users_stay(monkeypatch):
    flags = "--xla_cpu_multi_thread_eigen=true --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    env = worker_environment(1, 2)
    assert env["XLA_FLAGS"] == flags
    ours = ":".join(f"glibc.malloc.{setting}" for setting in MALLOC)
    assert env["GLIBC_TUNABLES"] == f"glibc.malloc.check=1:{ours}"
    for name in ("XLA_FLAGS", "GLIBC_TUNABLES"):
        monkeypatch.setenv(name, env[name])
    assert worker_environment(1, 2) == env


def test_a_process_starts_with_them():
    program = "import os; print(os.environ['NPROC'])"
    env = worker_environment(3)
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["3"], done.stderr
