"""Guarantee: a mesh changes where numbers are, not what they are. Eight virtual CPU devices in one
process are compared with a single device in another, compiled with optimisation, as users do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.model.sharding import make_mesh
from rlhf_jax.placement.mesh import parse_mesh
from rlhf_jax.study.config import ConfigError

MESHES = ("data=8", "fsdp=2,tensor=2", "fsdp=4,tensor=2")
SHARDS = {"data=8": 1, "fsdp=2,tensor=2": 4, "fsdp=4,tensor=2": 8}  # of a feed-forward matrix


def run(devices, what, *meshes):
    here = Path(__file__).parent
    # In place of the flags of these tests, which switch optimisation off.
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(here.parent)}
    done = subprocess.run(
        [sys.executable, str(here / "tiny_sharded.py"), what, *meshes],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {line["mesh"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def single():
    return run(1, "train", "data=1")["data=1"]


@pytest.fixture(scope="module")
def eight():
    return run(8, "train", *MESHES)


@pytest.mark.parametrize("mesh", MESHES)
def test_training_on_a_mesh_equals_training_on_one_device(single, eight, mesh):
    got = eight[mesh]
    assert got["devices"] == 8 and got["shards"] == SHARDS[mesh] and single["devices"] == 1
    np.testing.assert_allclose(got["losses"], single["losses"], atol=1e-5)
    np.testing.assert_allclose(got["params"], single["params"], atol=1e-5)
    assert single["losses"][2] != single["losses"][0]


@pytest.mark.parametrize("mesh", MESHES)
def test_sampling_on_a_mesh_gives_the_same_tokens(single, eight, mesh):
    assert eight[mesh]["tokens"] == single["tokens"]
    np.testing.assert_allclose(eight[mesh]["log_probs"], single["log_probs"], atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_fingerprints_do_not_depend_on_the_sharding(single, eight, mesh):
    assert eight[mesh]["fingerprint"] == single["fingerprint"]


def test_a_model_is_born_in_parts_with_the_same_numbers_on_every_mesh():
    """No device holds, nor needs while it is made, more than its part of the matrices."""
    single = run(1, "born", "data=1")["data=1"]
    eight = run(8, "born", *MESHES)
    for mesh, parts in SHARDS.items():
        got = eight[mesh]
        assert got["digest"] == single["digest"] and got["layout"]
        # A matrix that three layers of norms are small beside; two arrays of moments.
        most = single["whole"] / parts + 0.01 * single["whole"]
        assert got["held"]["params"] == got["held"]["copy"] <= most
        assert got["held"]["opt"] <= 2 * most and got["held"]["head"] <= most
        if parts > 1:  # random bits are as large as what is drawn of them
            assert got["making"] <= 4 * most < single["making"]


@pytest.mark.slow
def test_an_iteration_of_ppo_on_a_mesh_equals_one_on_one_device():
    single = run(1, "ppo", "data=1")["data=1"]
    got = run(8, "ppo", "fsdp=2,tensor=2")["fsdp=2,tensor=2"]
    np.testing.assert_allclose(got["ppo"], single["ppo"], atol=1e-4)
    for name, value in single["ppo_metrics"].items():
        assert got["ppo_metrics"][name] == pytest.approx(value, abs=1e-4, rel=1e-3), name
    assert got["ppo_metrics"]["max_ratio_error"] <= 1e-4


def test_meshes_that_do_not_fit_are_refused_with_the_numbers():
    with pytest.raises(ConfigError, match=r"needs 3 devices; there are \d"):
        make_mesh({"tensor": 3, "data": 1})
    with pytest.raises(ConfigError, match="unknown mesh axes"):
        make_mesh({"tensors": 2})
    with pytest.raises(ConfigError, match="expected for instance fsdp=4,tensor=2"):
        parse_mesh("fsdp=many")
    assert parse_mesh("fsdp=4,tensor=2") == {"fsdp": 4, "tensor": 2} and parse_mesh("") == {}
