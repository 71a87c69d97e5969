"""Whether the devices here compute what the product promises, and how fast: `make device-check`.

    python -m rlhf_jax.tools.bench.device_check [--tiny] [--out FILE]

Attention kernels against float64, the precision that products really have, PPO's check of its
sampler, and training steps (MFU is of the data sheet's bfloat16 peak, on CPUs of a measured
product), in float32 and bfloat16. Prints a table, writes every number as JSON, and exits with 1
where something is not as it has to be. It runs on whatever jax finds: CPU, GPU or TPU.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.cost.flops import flops_per_token
from rlhf_jax.kinds.ppo.cell import PPO
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.model import dense, dispatch, initialised, param_axes, with_scalar_head
from rlhf_jax.model.sharding import AXES, make_mesh, place, place_batch
from rlhf_jax.rl.ppo import make_ppo_step
from rlhf_jax.rl.rollout import Networks, SamplerMismatch, check_sampler, sampler_tolerance
from rlhf_jax.study.config import ModelConfig, OptimConfig
from rlhf_jax.study.files import write_json
from rlhf_jax.tools.bench.shapes import LADDER, Shape
from rlhf_jax.tools.bench.train_program import Training
from rlhf_jax.train import init_state
from rlhf_jax.train.metrics import peak_flops

DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
# Root mean square of the error over that of the exact numbers. TF32 and one pass of bfloat16 make
# 3e-4 and 2e-3 of a float32 product; what is rounded to bfloat16 once is off by 2e-3.
FLOAT32, BFLOAT16 = 1e-5, 1.5e-2
ACCELERATOR = (
    Shape("8x512", 8, 512, 64, 8192, 32, 512),
    Shape("12x1024", 12, 1024, 128, 32768, 16, 1024),
)

# name, value, limit (None: only measured), passed, and what else was measured.
Check = dict[str, Any]


def check(name: str, value: float, limit: float | None, **details: Any) -> Check:
    """A number that must not be above its limit; NaN is."""
    passed = math.isfinite(value) and (limit is None or value <= limit)
    return {"name": name, "value": value, "limit": limit, "passed": passed, **details}


def relative(got: Any, exact: np.ndarray) -> float:
    """Root mean square of the error, over that of the exact numbers."""
    error = np.asarray(got, np.float64) - exact
    return float(np.sqrt(np.mean(error**2) / np.mean(exact**2)))


# --- products ------------------------------------------------------------------------------------


def products(n: int) -> Iterator[Check]:
    """The model's product of two n x n matrices, against float64 on the host."""
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        a, b = (jnp.asarray(rng.standard_normal((n, n)), dtype) for _ in range(2))
        got = jax.jit(lambda a, b: dense.product("ij,jk->ik", a, b))(a, b)
        exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
        yield check(f"product {dtype}", relative(got, exact), FLOAT32)


# --- attention -----------------------------------------------------------------------------------


def exact_attention(mask: np.ndarray, q: Any, k: Any, v: Any, g: Any) -> tuple[np.ndarray, ...]:
    """Output and gradients in float64: arrays HBCT, and KBCS of the keys and values."""
    group, scale = len(q) // len(k), q.shape[2] ** -0.5
    k, v = (np.repeat(x, group, axis=0) for x in (k, v))
    scores = np.where(mask, np.einsum("hbct,hbcs->hbts", q, k) * scale, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    to_p = np.einsum("hbct,hbcs->hbts", g, v)
    to_scores = p * (to_p - np.sum(p * to_p, -1, keepdims=True)) * scale
    to_k = np.einsum("hbts,hbct->hbcs", to_scores, q)
    to_v = np.einsum("hbts,hbct->hbcs", p, g)
    shared = [x.reshape(-1, group, *x.shape[1:]).sum(1) for x in (to_k, to_v)]
    out = np.einsum("hbts,hbcs->hbct", p, v)
    return out, np.einsum("hbts,hbcs->hbct", to_scores, k), *shared


def attention(mesh: Any, T: int, C: int) -> Iterator[Check]:
    """Every kernel that models use here, forward and backward, on packed rows with grouped
    heads."""
    B, H, K = 2, 4, 2
    segments = np.ones((B, T), np.int32)
    segments[1, T // 3 :] = 2
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    mask = (segments[:, :, None] == segments[:, None]) & np.tri(T, dtype=bool)
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        chosen, passed_over = dispatch.choose(jax.default_backend(), T, C, dtype, False)
        cached, _ = dispatch.choose(jax.default_backend(), T, C, dtype, True)
        q, k, v, g = (jnp.asarray(rng.standard_normal((n, B, C, T)), dtype) for n in (H, K, K, H))
        exact = exact_attention(mask, *(np.asarray(x, np.float64) for x in (q, k, v, g)))
        for kernel in dict.fromkeys((chosen, cached)):
            got = _attended(kernel, q, k, v, g, place_batch({"s": segments, "p": positions}, mesh))
            errors = {
                name: relative(a.astype(jnp.float32), b)
                for name, a, b in zip(("out", "dq", "dk", "dv"), got, exact, strict=True)
            }
            limit = FLOAT32 if dtype == "float32" else BFLOAT16
            yield check(
                f"attention {kernel} {dtype}",
                max(errors.values()),
                limit,
                passed_over=passed_over,
                **errors,
            )


def _attended(kernel: Any, q: Any, k: Any, v: Any, g: Any, ids: Any) -> Any:
    dtype, C = q.dtype.name, q.shape[2]

    @jax.jit
    def run(q: Any, k: Any, v: Any, g: Any, segments: Any, positions: Any) -> Any:
        q, k, v, g = (AXES.constrain(x, "heads", "batch", None, None) for x in (q, k, v, g))
        tokens = (segments, positions)
        mask = dispatch.attention_mask(C, dtype, tokens, tokens, cached=False, kernel=kernel)
        out, pull = jax.vjp(lambda q, k, v: dispatch.attend(q, k, v, mask, AXES), q, k, v)
        return out, *pull(g)

    return run(q, k, v, g, ids["s"], ids["p"])


# --- PPO -----------------------------------------------------------------------------------------


def ppo(mesh: Any, shape: Shape, iterations: int) -> Iterator[Check]:
    """The check that every run of PPO makes, over a few iterations. The value is the largest share
    of what is allowed that was used up."""
    half = shape.seq_len // 2
    for dtype in DTYPES:
        cfg = ModelConfig(
            layers=shape.layers,
            width=shape.width,
            heads=shape.width // shape.head_width,
            vocab=shape.vocab,
            max_positions=shape.seq_len,
            activation="swiglu",
            compute=dtype,
        )
        optim = OptimConfig(lr=1e-3, schedule="constant", warmup=0.0, weight_decay=0.0)
        cell = PPO(
            "p",
            task=TaskConfig(half, half),
            batch=shape.batch,
            optim=optim,
            iterations=iterations,
            temperature=0.7,
        )
        worst, found = 0.0, []
        for step, metrics in enumerate(_iterations(mesh, cell, cfg)):
            most = sampler_tolerance(cfg, float(metrics["logprob_variance"]))
            used = [float(metrics[n]) for n in ("approx_kl_before", "max_logprob_gap")]
            shares = [a / b for a, b in zip(used, most, strict=True)]
            worst = max(worst, *shares) if all(map(math.isfinite, shares)) else math.nan
            try:
                check_sampler(step, metrics, cfg)
            except SamplerMismatch as e:
                found.append(str(e))
        names = ("approx_kl_before", "max_logprob_gap", "logprob_variance")
        yield {
            **check(f"PPO's sampler {dtype}", worst, 1.0),
            **{n: float(metrics[n]) for n in names},
            "mismatches": found,
        }


def _iterations(mesh: Any, cell: PPO, cfg: ModelConfig) -> Iterator[dict[str, Any]]:
    def model(key: int) -> Any:
        return initialised(cfg, jax.random.key(key), mesh)

    def score(arrays: Any, rows: Any, mask_BR: jax.Array) -> jax.Array:
        tokens_BR = rows.tokens_BT[:, -mask_BR.shape[1] :]
        return jnp.mean((tokens_BR < cfg.vocab // 2) * mask_BR, axis=-1)

    critic = place(with_scalar_head(model(1), cfg, None), param_axes(cfg, True), mesh)
    state = init_state(
        {"policy": model(0), "critic": critic},
        cell.optim,
        cell.iterations,
        kl_coef=jnp.float32(cell.kl_coef),
    )
    frozen = {"reference": model(0), "reward": (), "seed": jnp.uint32(0)}
    step = make_ppo_step(cell, Networks(cfg, cfg), AXES, score)
    ids = np.random.default_rng(0).integers(3, cfg.vocab, (cell.batch, cell.task.prompt_len))
    ids[::2, : cell.task.prompt_len // 3] = 0  # padding, on the left
    prompts = place_batch({"p": ids.astype(np.int32)}, mesh)["p"]
    for _ in range(cell.iterations):
        state, metrics = step(state, frozen, prompts)
        yield jax.device_get(metrics)


# --- speed ---------------------------------------------------------------------------------------


def training(shape: Shape, steps: int) -> Iterator[Check]:
    """Tokens/s and MFU of the training step, the best of three blocks of steps."""
    for dtype in DTYPES:
        run = Training(shape, dtype)
        start = time.perf_counter()
        losses = run.run(run.batches_at(0, 2))
        compiling, best = time.perf_counter() - start, math.inf
        for _ in range(3):
            start = time.perf_counter()
            losses += run.run(run.batches_at(run.taken, steps))
            best = min(best, (time.perf_counter() - start) / steps)
        rate = shape.tokens / best
        yield check(
            f"training {shape.name} {dtype}",
            losses[-1],
            losses[0] + 0.5,
            what="loss",
            tokens_per_second=rate,
            mfu=rate * flops_per_token(run.cfg, shape.seq_len) / peak_flops(),
            step_seconds=best,
            first_steps_seconds=compiling,
            first_loss=losses[0],
        )


# --- all of it -----------------------------------------------------------------------------------


def checks(mesh: Any, tiny: bool) -> list[tuple[str, Callable[[], Iterator[Check]]]]:
    """What is checked, by name. `tiny` is for a test of this program."""
    small = jax.default_backend() == "cpu"
    sizes = (16, 256) if tiny else (64, 512)  # head width, product
    policy = (
        Shape("tiny", 1, 32, 16, 64, 8, 16) if tiny else Shape("4x128", 4, 128, 32, 512, 32, 64)
    )
    shapes = (policy,) if tiny else LADDER[:2] if small else ACCELERATOR
    steps = 2 if tiny else 3 if small else 10
    return [
        ("product", lambda: products(sizes[1])),
        ("attention", lambda: attention(mesh, 128 if tiny else 256, sizes[0])),
        ("PPO's sampler", lambda: ppo(mesh, policy, 2 if tiny else 4)),
        *((f"training {s.name}", functools.partial(training, s, steps)) for s in shapes),
    ]


def measure(tiny: bool) -> dict[str, Any]:
    """Every check; one that cannot run has failed, with the reason."""
    start = time.perf_counter()
    mesh = make_mesh(devices=jax.devices()[:1])
    found: list[Check] = []
    with jax.set_mesh(mesh):
        for name, run in checks(mesh, tiny):
            try:
                for one in run():
                    found.append({n: _written(v) for n, v in one.items()})
                    print(_line(found[-1]), flush=True)
            except Exception as e:
                reason = f"{type(e).__name__}: {e}".splitlines()[0]
                found.append({**check(name, math.nan, None), "value": None, "error": reason})
                print(_line(found[-1]), flush=True)
    device = jax.devices()[0]
    return {
        "passed": all(one["passed"] for one in found),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "numpy")},
        },
        "seconds": round(time.perf_counter() - start, 1),
        "checks": found,
    }


def _written(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(one: Check) -> str:
    said = one.get("error", "")
    if "tokens_per_second" in one:
        said = f"{one['tokens_per_second']:,.0f} tokens/s, MFU {one['mfu']:.1%}"
    said = next(iter(one.get("mismatches", ())), said)
    value, limit = ("" if one[n] is None else f"{one[n]:.3g}" for n in ("value", "limit"))
    return (
        f"{'ok' if one['passed'] else 'WRONG':6}{one['name']:32}{value:>10} of {limit:<10} {said}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="device_check", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--tiny", action="store_true", help="shapes for a test of this program")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path("runs/device-check.json"),
        help="where the numbers go (default: runs/device-check.json)",
    )
    args = parser.parse_args(arguments)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        parser.error(f"--out {args.out}: {e}; name a file in a folder that can be written to")
    if args.out.is_dir() or not os.access(args.out.parent, os.W_OK):
        parser.error(f"--out {args.out}: expected a file in a folder that can be written to")
    found = measure(args.tiny)
    write_json(args.out, found)
    print(
        f"{found['device_kind']} x {found['devices']}, jax {found['versions']['jax']}: "
        f"{'all as promised' if found['passed'] else 'WRONG'}, {found['seconds']} s; {args.out}"
    )
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
