"""Attention in plain loops. As a program it runs the kernels on a mesh of four and prints how far
each is from the reference, with gradients.

python tests/tiny_attention.py    (with XLA_FLAGS=--xla_force_host_platform_device_count=4)
"""

import json

import jax
import numpy as np
from jax.sharding import NamedSharding
from tiny_models import GQA, packed_batch

from rlhf_jax.model.dispatch import attend, attention_mask
from rlhf_jax.model.sharding import AXES, make_mesh


def loops(q, k, v, segments, positions, out_grad):
    """Output and the gradients of sum(output * out_grad), query by query, in float64."""
    q, k, v, g = (x.astype(np.float64) for x in (q, k, v, out_grad))
    group, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen = (segments[b] == segments[b, t]) & (positions[b] <= positions[b, t])
        if segments[b, t] == 0:
            continue
        at = (b, np.flatnonzero(seen), h // group)
        scores = k[at] @ q[b, t, h] * scale
        p = np.exp(scores - scores.max())
        p /= p.sum()
        out[b, t, h] = p @ v[at]
        dp = v[at] @ g[b, t, h]
        ds = p * (dp - p @ dp) * scale
        dq[b, t, h] = ds @ k[at]
        dk[at] += ds[:, None] * q[b, t, h]
        dv[at] += p[:, None] * g[b, t, h]
    return out, dq, dk, dv


def main():
    mesh = make_mesh({"fsdp": 2, "tensor": 2})
    rng = np.random.default_rng(0)
    _, segments, positions = packed_batch(GQA, [[128], [40, 30, 20]], 128)
    heads = NamedSharding(mesh, AXES.spec("heads", "batch", None, None))
    ids = NamedSharding(mesh, AXES.spec("batch", None))
    q, k, v, g = [
        jax.device_put(rng.standard_normal((n, 2, 8, 128)).astype(np.float32), heads)
        for n in (4, 2, 2, 4)
    ]
    tokens = (jax.device_put(segments, ids), jax.device_put(positions, ids))
    real = (tokens[0] > 0)[None, :, None]
    g = g * real

    def run(kernel):
        def output(q, k, v):
            return attend(
                q, k, v, attention_mask(8, "float32", tokens, tokens, False, kernel), AXES
            )

        out, pull = jax.vjp(output, q, k, v)
        return jax.device_get((out * real, *pull(g)))

    with jax.set_mesh(mesh):
        expected = jax.jit(run, static_argnums=0)("reference")
        errors = {
            kernel: max(
                float(np.abs(a - b).max())
                for a, b in zip(jax.jit(run, static_argnums=0)(kernel), expected, strict=True)
            )
            for kernel in ("cpu", "xla", "splash")
        }
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
