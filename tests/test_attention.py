"""Guarantee: every attention kernel gives what plain loops give, forward and backward, on packed
rows with padding and grouped heads; and the one that runs is chosen by a table and said once."""

import functools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_attention import loops
from tiny_models import GQA, full_logits, mesh, noisy_params, packed_batch

from rlhf_jax.model import dispatch
from rlhf_jax.model.dispatch import attend, attention_mask, choose, platform
from rlhf_jax.model.sharding import AXES

__all__ = ["mesh"]
ROWS, T, C = [[128], [40, 30, 20]], 128, 8
HEADS = [(4, 2), (2, 2), (2, 1)]  # queries, keys and values


def has_gpu():
    return any(d.platform == "gpu" for d in jax.local_devices())


KERNELS = [
    pytest.param("reference", "float32"),
    pytest.param("cpu", "float32"),
    pytest.param("xla", "float32"),
    pytest.param("splash", "float32", id="splash-interpreted"),
    pytest.param(
        "cudnn", "bfloat16", marks=pytest.mark.skipif(not has_gpu(), reason="cuDNN needs a GPU")
    ),
]


def case(heads, kv_heads):
    rng = np.random.default_rng(0)
    _, segments, positions = packed_batch(GQA, ROWS, T)
    shapes = [(2, T, heads, C), (2, T, kv_heads, C), (2, T, kv_heads, C), (2, T, heads, C)]
    q, k, v, out_grad = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    out_grad *= (segments > 0)[..., None, None]  # a loss never uses what padding gets
    return q, k, v, segments, positions, out_grad


@functools.partial(jax.jit, static_argnums=0)
def output_and_gradients(kernel, q, k, v, segments, positions, out_grad):
    def run(q, k, v):
        q, k, v = (jnp.transpose(x, (2, 0, 3, 1)) for x in (q, k, v))
        q, k, v = (AXES.constrain(x, "heads", "batch", None, None) for x in (q, k, v))
        tokens = (segments, positions)
        mask = attention_mask(C, q.dtype.name, tokens, tokens, cached=False, kernel=kernel)
        return jnp.transpose(attend(q, k, v, mask, AXES), (1, 3, 0, 2))

    out, pull = jax.vjp(run, q, k, v)
    return out, *pull(out_grad.astype(out.dtype))


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_a_kernel_equals_loops_forward_and_backward(kernel, dtype, heads, kv_heads):
    inputs = case(heads, kv_heads)
    expected = loops(*inputs)
    q, k, v, *rest = inputs
    got = output_and_gradients(kernel, *(jnp.asarray(x, dtype) for x in (q, k, v)), *rest)
    real = inputs[3] > 0
    tolerance = 2e-5 if dtype == "float32" else 3e-2
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        assert np.isfinite(a).all(), name  # padding included
        if name == "out":
            a, b = np.asarray(a)[real], b[real]
        np.testing.assert_allclose(a, b, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_no_kernel_makes_nan_of_padding_even_if_a_loss_uses_it(kernel, dtype):
    q, k, v, segments, positions, _ = case(4, 2)
    segments = segments * np.array([[1], [0]], np.int32)  # the second row is padding only
    q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
    for x in output_and_gradients(
        kernel, q, k, v, segments, positions, np.ones_like(q, np.float32)
    ):
        assert np.isfinite(x).all()


@pytest.mark.parametrize("kernel", ["reference", "xla", "splash"])
def test_the_model_computes_the_same_with_every_kernel(monkeypatch, kernel):
    params, batch = noisy_params(GQA), packed_batch(GQA, ROWS, T)
    expected = np.asarray(full_logits(params, GQA, *batch))
    monkeypatch.setattr(dispatch, "choose", lambda *_: (kernel, ""))
    forced = jax.jit(full_logits.__wrapped__, static_argnums=1)
    got = np.asarray(forced(params, GQA, *batch))
    real = batch[1] > 0
    np.testing.assert_allclose(got[real], expected[real], atol=1e-4)


def test_kernels_on_a_mesh_equal_the_reference():
    """Batch over two devices, heads over two, in a process that has four."""
    here = Path(__file__).parent
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(here.parent)}
    done = subprocess.run(
        [sys.executable, str(here / "tiny_attention.py")],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert set(errors) == {"cpu", "xla", "splash"} and max(errors.values()) < 2e-5, errors


CHOICES = [
    # platform, T, C, dtype, cached: kernel
    (("cpu", 4096, 128, "bfloat16", False), "cpu"),
    (("cpu", 1, 16, "float32", True), "cpu"),
    (("tpu", 4096, 128, "bfloat16", False), "splash"),
    (("tpu", 128, 64, "float32", False), "splash"),
    (("tpu", 100, 128, "bfloat16", False), "xla"),
    (("tpu", 1, 128, "bfloat16", True), "xla"),
    (("gpu", 4096, 128, "bfloat16", False), "cudnn"),
    (("gpu", 128, 64, "float16", False), "cudnn"),
    (("gpu", 4096, 128, "float32", False), "xla"),
    (("gpu", 4096, 256, "bfloat16", False), "xla"),
    (("gpu", 4096, 20, "bfloat16", False), "xla"),
    (("gpu", 127, 64, "bfloat16", False), "xla"),
    (("gpu", 128, 64, "bfloat16", True), "xla"),
]


@pytest.mark.parametrize(("given", "kernel"), CHOICES)
def test_the_kernel_is_a_function_of_platform_and_shape(given, kernel):
    got, passed_over = choose(*given)
    assert got == kernel
    assert bool(passed_over) == (kernel == "xla")


def test_the_choice_is_said_once_and_a_kernel_passed_over_with_the_reason(monkeypatch, caplog):
    assert platform() == jax.default_backend()
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    dispatch._say.cache_clear()
    tokens = (jnp.ones((1, 100), jnp.int32), jnp.arange(100)[None])
    with caplog.at_level(logging.INFO, "rlhf_jax"):
        for _ in range(3):
            assert attention_mask(16, "float32", tokens, tokens, cached=False).kernel == "xla"
    (line,) = caplog.records
    expected = "attention on tpu: xla (splash needs a sequence length divisible by 128, got 100)"
    assert line.getMessage() == expected and line.levelno == logging.WARNING
