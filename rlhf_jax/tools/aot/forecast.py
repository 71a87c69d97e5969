"""What a compiled training step needs and how fast it would be: memory, FLOPs, collectives, time,
MFU."""

from __future__ import annotations

from typing import Any

from rlhf_jax.cost.flops import flops_per_token, param_counts
from rlhf_jax.cost.hardware import chip_of
from rlhf_jax.model.scoring import LOGITS_BYTES
from rlhf_jax.tools.aot.compile import Compiled, Job
from rlhf_jax.tools.aot.program import SPLASH_MATMULS, Program
from rlhf_jax.tools.aot.roofline import MATMUL, Machine, Roofline, collectives


def hardware_flops(job: Job) -> float:
    """FLOPs of a step for a token, as the program should compute them: model FLOPs, the forward
    pass of the layers once more under full remat (but for its last product, which no gradient
    needs), the logits once more where they are made in blocks, and attention by splash's kernels,
    which compute whole blocks (n (n+1) / 2 of n x n) and the scores again in the backward pass.
    Where splash cannot run (see `rlhf_jax.model.dispatch`) attention is counted as one block, which
    is too much."""
    cfg, count = job.model, param_counts(job.model)
    matmuls = 6.0 * (count["attention"] + count["feed_forward"])
    if cfg.remat == "full":
        w_out = cfg.layers * cfg.F * cfg.width
        matmuls += 2.0 * (count["attention"] + count["feed_forward"] - w_out)
    logits_bytes = 4 * cfg.vocab * job.batch_per_device * job.seq_len / job.accumulate
    unembedding = (8.0 if logits_bytes > LOGITS_BYTES else 6.0) * cfg.vocab * cfg.width
    # Kept dots are those of weights; attention's forward kernel runs again unless nothing does.
    forward = 1.0 if cfg.remat == "none" else 2.0
    kernels = forward * SPLASH_MATMULS["fwd"] + SPLASH_MATMULS["dq"] + SPLASH_MATMULS["dkv"]
    block = next((b for b in (512, 256, 128) if job.seq_len % b == 0), job.seq_len)
    attended = (job.seq_len + block) / 2
    return matmuls + unembedding + cfg.layers * cfg.heads * cfg.C * 2.0 * kernels * attended


def forecast(job: Job, compiled: Compiled) -> dict[str, Any]:
    """Everything that `rlhf-jax aot` prints, as JSON values; bytes and seconds are of one device
    and one step, FLOPs of all devices and one step."""
    kind = chip_of(job.topology)
    machine = Machine(kind, compiled.dims, compiled.coords)
    devices = len(compiled.coords)
    hbm = int(kind.memory * machine.share)
    total = compiled.memory["total"]
    tokens = devices * job.batch_per_device * job.seq_len
    model_flops = tokens * flops_per_token(job.model, job.seq_len)
    report: dict[str, Any] = {
        "topology": job.topology,
        "devices": devices,
        "mesh": dict(job.mesh),
        "params": param_counts(job.model)["total"],
        "sequences": devices * job.batch_per_device,
        "seq_len": job.seq_len,
        "remat": job.model.remat,
        "accumulate": job.accumulate,
        "fits": not compiled.refused,
        "memory_bytes": total,
        "hbm_bytes": hbm,
        "memory": compiled.memory,
        "compiler": compiled.refused,
        "compile_seconds": round(compiled.seconds, 1),
        "model_flops": model_flops,
        "step_seconds": None,
        "mfu": None,
        "collectives": [],
    }
    if not compiled.text:
        return report
    program = Program(compiled.text)
    e = Roofline(program, machine).estimate()
    flops = program.total_flops() * devices
    full_speed = kind.flops * machine.share * devices
    report |= {
        "hardware_flops": flops,
        "hardware_flops_expected": tokens * hardware_flops(job),
        "step_seconds": e.seconds,
        "tokens_per_second": tokens / e.seconds,
        "mfu": model_flops / e.seconds / full_speed,
        "hfu": flops / e.seconds / full_speed,
        "seconds": {
            "compute": e.compute,
            "hbm": e.hbm,
            "exposed_collectives": e.exposed,
            "exposed_copies": e.copies,
            "collectives": e.interconnect,
        },
        "matmul_efficiency": MATMUL,
        "collectives": collectives(program, machine),
        "loops_not_read": program.unread_loops(),
    }
    return report


def lines(name: str, r: dict[str, Any]) -> list[str]:
    """The report for a reader."""
    gib = 2**30
    memory, hbm = r["memory_bytes"] / gib, r["hbm_bytes"] / gib
    mesh = ",".join(f"{k}={v}" for k, v in r["mesh"].items())
    kinds = {"arguments": "state and batch", "temporaries": "temporaries", "code": "code"}
    parts = ", ".join(f"{kinds[k]} {r['memory'][k] / gib:.2f}" for k in kinds if k in r["memory"])
    host = r["memory"].get("host", 0)
    out = [
        f"{name}: {r['params'] / 1e9:.3g}B parameters on {r['topology']} ({r['devices']} devices, "
        f"{mesh}), {r['sequences']} sequences of {r['seq_len']}, remat {r['remat']}; "
        f"compiled in {r['compile_seconds']:.0f} s",
        f"  memory a device   {memory:.2f} of {hbm:.2f} GiB ({parts})"
        + (f", and {host / gib:.2f} GiB of the host's" if host else ""),
    ]
    if not r["fits"]:
        said = f" The compiler: {r['compiler']}" if r["compiler"] else ""
        out.append(f"  DOES NOT FIT: {memory - hbm:.2f} GiB a device too much.{said}")
    if r["step_seconds"] is None:
        return out
    expected = r["hardware_flops"] / r["hardware_flops_expected"] - 1
    s = r["seconds"]
    out += [
        f"  FLOPs a step      {r['model_flops']:.3e} of the model, {r['hardware_flops']:.3e} of "
        f"the program ({expected:+.1%} of what remat and attention's kernels should make of them)",
        f"  step (estimate)   {r['step_seconds']:.3f} s: compute {s['compute']:.3f}, HBM "
        f"{s['hbm']:.3f}, waiting for collectives {s['exposed_collectives']:.3f} (of "
        f"{s['collectives']:.3f}) and copies {s['exposed_copies']:.3f}",
        f"  MFU (estimate)    {r['mfu']:.1%} of the data sheet; with the recomputed FLOPs "
        f"{r['hfu']:.1%}; {r['tokens_per_second']:,.0f} tokens/s",
        "  collectives a device and step:",
    ]
    for c in r["collectives"]:
        beside = c["overlapped_bytes"] / max(c["bytes"], 1)
        out.append(
            f"    {c['kind']:<19} over {c['devices']:>4}: {c['count']:>6.0f} x, "
            f"{c['bytes'] / 1e9:8.2f} GB, {beside:4.0%} beside computation"
        )
    if r["loops_not_read"]:
        out.append(f"  loops counted once, their trips were not found: {r['loops_not_read']}")
    return out
