"""What goes wrong in PPO runs, by name: each has a sign in an iteration's metrics and something to
do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlhf_jax.kinds.ppo.cell import PPO
from rlhf_jax.study.config import ModelConfig

# of the entropy of a uniform policy over whole responses: the KL of a policy that forgot all
FAR = 0.5


def diagnose(cell: PPO, cfg: ModelConfig, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Name -> what was seen and what to do, of whatever an iteration's metrics are signs of."""
    m = {k: float(v) for k, v in metrics.items() if getattr(v, "ndim", 0) == 0}
    responses = cell.batch * cell.samples
    found: dict[str, str] = {}
    # The mean of k1 over responses is never much below 0: its spread is at most about its own size.
    if m["kl"] < -3 / math.sqrt(responses):
        found["negative KL"] = (
            f"{m['kl']:.2f} nats a response. The policy is not what was sampled from: top-k or "
            f"top-p, another temperature, or log-probs of padding"
        )
    limit = FAR * math.log(cfg.vocab) * m["response_length"]
    if m["kl"] > limit:
        found["exploding KL"] = (
            f"{m['kl']:.1f} nats a response, more than {limit:.1f}. Raise kl_coef, set kl_target, "
            f"or lower the learning rate"
        )
    if m["stop_rate"] == 0:
        found["never stops"] = (
            "no response ended in EOS. Teach the start policy to stop (demonstrations end in EOS), "
            "or raise response_len; no_eos says how such responses are scored"
        )
    if m["reward_spread"] < 1e-6:
        found["constant reward"] = (
            "every response has the same score, so nothing can be learned: look at the reward with "
            "`rlhf-jax generate` samples"
        )
    if m["entropy"] < 0.05:
        found["collapsed policy"] = (
            f"entropy {m['entropy']:.3f} nats a token. Raise kl_coef or lower the learning rate or "
            "epochs"
        )
    if m["clip_frac"] > 0.5:
        found["updates too large"] = (
            f"{m['clip_frac']:.0%} of ratios were clipped. Lower the learning rate or epochs"
        )
    if m["approx_kl"] > 1:
        found["off policy"] = (
            f"the policy moved {m['approx_kl']:.2f} nats a token within an iteration. Lower the "
            f"learning rate or epochs"
        )
    return found
