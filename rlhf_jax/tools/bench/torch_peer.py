"""The same training step in PyTorch, as fast as PyTorch does it: the other side of `bench train
--against torch`. Run by the interpreter of another environment; it needs torch and numpy alone.

It takes weights, batches and learning rates from the file that our side has written, and answers
the same questions: see `rlhf_jax.tools.bench.peers`. Parameters have their names in our tree, where
the arrays of all layers are stacked.

Dimension letters: B batch, T time, D width, H heads, C head width, F feed-forward, V vocabulary.
"""

import json
import os
import platform
import resource
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def parameter(array):
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array)).clone())


class Layer(nn.Module):
    """Pre-norm attention and feed-forward; one projection makes queries, keys and values."""

    def __init__(self, w):
        super().__init__()
        D, self.heads, self.head_width = w["wq"].shape
        flat = [w[name].reshape(D, -1).T for name in ("wq", "wk", "wv")]
        self.qkv = parameter(np.concatenate(flat))
        self.out = parameter(w["wo"].reshape(-1, D).T)
        self.w_in, self.w_out = parameter(w["w_in"].T), parameter(w["w_out"].T)
        self.norm1, self.bias1 = parameter(w["norm1"]), parameter(w["bias1"])
        self.norm2, self.bias2 = parameter(w["norm2"]), parameter(w["bias2"])

    def forward(self, x):
        B, T, D = x.shape
        h = F.layer_norm(x, (D,), self.norm1, self.bias1, 1e-6)
        qkv = F.linear(h, self.qkv).view(B, T, 3, self.heads, self.head_width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(attended.transpose(1, 2).reshape(B, T, -1), self.out)
        h = F.layer_norm(x, (D,), self.norm2, self.bias2, 1e-6)
        return x + F.linear(F.gelu(F.linear(h, self.w_in), approximate="tanh"), self.w_out)

    def gradients(self):
        """By our names, in our shapes."""
        D, shape = self.out.shape[0], (-1, self.heads, self.head_width)
        q, k, v = (g.T.reshape(shape) for g in self.qkv.grad.chunk(3))
        return {
            "wq": q,
            "wk": k,
            "wv": v,
            "wo": self.out.grad.T.reshape(self.heads, self.head_width, D),
            "w_in": self.w_in.grad.T,
            "w_out": self.w_out.grad.T,
            "norm1": self.norm1.grad,
            "bias1": self.bias1.grad,
            "norm2": self.norm2.grad,
            "bias2": self.bias2.grad,
        }


class Model(nn.Module):
    """The mean next-token loss, in nats."""

    def __init__(self, weights):
        super().__init__()
        stacked = {k.removeprefix("layers/"): w for k, w in weights.items() if "/" in k}
        count = len(stacked["wq"])
        self.layers = nn.ModuleList(
            Layer({k: w[i] for k, w in stacked.items()}) for i in range(count)
        )
        self.embed, self.positions = parameter(weights["embed"]), parameter(weights["positions"])
        self.final_norm = parameter(weights["final_norm"])
        self.final_bias = parameter(weights["final_bias"])

    def forward(self, tokens, targets):
        x = F.embedding(tokens, self.embed) + self.positions[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        x = F.layer_norm(x, x.shape[-1:], self.final_norm, self.final_bias, 1e-6)
        logits = F.linear(x, self.embed)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    def decayed(self):
        """The matrices of the layers: what our AdamW decays."""
        return [w for layer in self.layers for w in (layer.qkv, layer.out, layer.w_in, layer.w_out)]

    def gradients(self):
        each = [layer.gradients() for layer in self.layers]
        found = {f"layers/{k}": torch.stack([g[k] for g in each]) for k in each[0]}
        for name in ("embed", "positions", "final_norm", "final_bias"):
            found[name] = getattr(self, name).grad
        return {k: g.numpy() for k, g in found.items()}


def adamw(model, optim):
    decayed = model.decayed()
    ids = {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": optim["weight_decay"]},
        {"params": [p for p in model.parameters() if id(p) not in ids], "weight_decay": 0.0},
    ]
    settings = {"betas": (optim["b1"], optim["b2"]), "eps": optim["eps"]}
    try:
        return torch.optim.AdamW(groups, fused=True, **settings)
    except (RuntimeError, TypeError):  # this torch has no fused AdamW for this device
        return torch.optim.AdamW(groups, foreach=True, **settings)


@torch.no_grad()
def put(parameters, values):
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


class Program:
    """The operations, as in `rlhf_jax.tools.bench.train_program`."""

    def load(self, path, optim, threads, compiled):
        torch.set_num_threads(threads)
        with np.load(path) as file:
            arrays = dict(file)
        rows = torch.from_numpy(arrays.pop("rows").astype(np.int64))  # (batches, B, T+1)
        self.rates = [float(r) for r in arrays.pop("rates")]
        self.weights, self.compiled = arrays, compiled
        self.batches = [(r[:, :-1].contiguous(), r[:, 1:].contiguous()) for r in rows]
        self.clip, self.taken = optim["clip"], 0
        self.model = Model(arrays)
        self.loss = torch.compile(self.model) if compiled else self.model
        self.optimizer = adamw(self.model, optim)
        return {"versions": {"torch": torch.__version__, "python": platform.python_version()}}

    def step(self):
        tokens, targets = self.batches[self.taken % len(self.batches)]
        rate = self.rates[min(self.taken, len(self.rates) - 1)]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.taken += 1
        return loss.detach()

    def steps(self, count):
        start, cpu = time.perf_counter(), time.process_time()
        losses = [self.step() for _ in range(count)]
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        unit = 1 if sys.platform == "darwin" else 1024
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "losses": [float(x) for x in losses],
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        }

    def gradients(self, path):
        """Of the first step, before clipping, by the function that is timed."""
        parameters = list(self.model.parameters())
        now = [p.detach().clone() for p in parameters]
        put(parameters, Model(self.weights).parameters())
        self.loss(*self.batches[0]).backward()
        np.savez(path, **self.model.gradients())
        self.optimizer.zero_grad(set_to_none=True)
        put(parameters, now)
        return {}

    def peak(self):
        return {"flops": matmul_peak()}


def matmul_peak(n=2048, tries=8):
    """FLOP/s of a large matrix product."""
    x = torch.randn(n, n)
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        torch.mm(x, x)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def serve(program):
    """Answers questions by the program's methods until the input closes; it is made after what
    libraries print has been turned away from the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made = program()
    for line in sys.stdin:
        arguments = json.loads(line)
        operation = getattr(made, arguments.pop("op"))
        print(json.dumps(operation(**arguments)), file=answers, flush=True)


if __name__ == "__main__":
    serve(Program)
