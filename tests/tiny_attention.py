"""Runs the kernels on a mesh of four; prints how far each is from the reference, with gradients.

python tests/tiny_attention.py    (with XLA_FLAGS=--xla_force_host_platform_device_count=4)
"""

import json

import jax
import numpy as np
from jax.sharding import NamedSharding
from tiny_models import GQA, packed_batch

from rlhf_jax.model.dispatch import attend, look
from rlhf_jax.parallel import AXES, make_mesh


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
            return attend(q, k, v, look(8, "float32", tokens, tokens, False, kernel), AXES)

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
