"""The product's sampler on a shape, as a process: tokens/s, and what prefill and decoding take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from rlhf_jax.data.tokenizer import CONTROL
from rlhf_jax.model import forward, init_cache, initialised, logits
from rlhf_jax.model.sampler import generate
from rlhf_jax.model.scoring import padded_rows
from rlhf_jax.model.sharding import AXES, make_mesh, place_batch
from rlhf_jax.study.config import from_json
from rlhf_jax.tools.bench.peers import serve
from rlhf_jax.tools.bench.rows import random_rows
from rlhf_jax.tools.bench.shapes import Shape

PROMPTS, PROMPT_LEN, LENGTH = 64, 32, 32


def measure(shape: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Samples `LENGTH` tokens to each of `PROMPTS` random prompts, `rounds` times. The prefill is
    timed by itself; decoding is the rest. Now and then a row of an untrained model draws EOS; the
    loop goes on for the others, and only the tokens that it produced are counted."""
    at, mesh = from_json(Shape, shape), make_mesh()
    cfg = at.model
    jax.set_mesh(mesh)
    params = initialised(cfg, jax.random.key(0), mesh)
    wide = Shape("prompts", 1, 1, 1, cfg.vocab - len(CONTROL), PROMPTS, PROMPT_LEN - 1)
    # Control tokens come first; a prompt has none.
    rows_BP = len(CONTROL) + random_rows(wide, 1)[0]
    prompts_BP = place_batch({"prompts": rows_BP}, mesh)["prompts"]

    @jax.jit
    def sample(params: Any, prompts_BP: jax.Array, key: jax.Array) -> Any:
        return generate(params, cfg, prompts_BP, key, length=LENGTH, temperature=1.0, axes=AXES)

    @jax.jit
    def prefill(params: Any, prompts_BP: jax.Array) -> Any:
        cache = init_cache(cfg, PROMPTS, PROMPT_LEN + LENGTH, AXES)
        x_DBP, cache = forward(params, cfg, *padded_rows(prompts_BP), AXES, cache)
        return logits(params, cfg, x_DBP[..., -1:], AXES), cache

    keys = jax.random.split(jax.random.key(1), rounds)
    first, out = _timed(lambda: sample(params, prompts_BP, keys[0]))
    _timed(lambda: prefill(params, prompts_BP))
    whole, filled, produced = [], [], []
    for key in keys:
        filled.append(_timed(lambda: prefill(params, prompts_BP))[0])
        seconds, out = _timed(lambda key=key: sample(params, prompts_BP, key))  # type: ignore[misc]
        whole.append(seconds)
        produced.append(float(out.mask_BR.sum()))
    seconds, prefill_seconds = statistics.median(whole), statistics.median(filled)
    return {
        "tokens_per_second": statistics.median(n / s for n, s in zip(produced, whole, strict=True)),
        "tokens": statistics.fmean(produced),
        "prefill_seconds": prefill_seconds,
        "decode_seconds": seconds - prefill_seconds,
        "decode_step_seconds": (seconds - prefill_seconds) / LENGTH,
        "compile_seconds": first - seconds,
    }


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = jax.block_until_ready(function())
    return time.perf_counter() - start, out


if __name__ == "__main__":
    serve({"measure": measure})
