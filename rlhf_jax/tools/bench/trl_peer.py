"""The same PPO iteration by TRL's own `PPOTrainer`: the other side of `bench ppo --against trl`.
Run by the interpreter of another environment; it needs trl and torch.

Run as a script it is in no package, and imports its neighbour `torch_peer` by name. It takes
weights, prompts and settings from the file that our side has written, and answers the same
questions: see `rlhf_jax.tools.bench.peers`. The trainer's loop is TRL's, untouched. Three of the
functions that it calls are wrapped to read the clock:

| phase    | from                                | to                                          |
|----------|-------------------------------------|---------------------------------------------|
| generate | `batch_generation` is called        | it returns                                  |
| score    | there                               | the trained models' `forward` is called     |
| update   | there, for the first time           | `log` is called with the iteration's metrics |

Not counted: reading the batch, handing the model to the generation context, and all that follows
the last update and its metrics (logging, callbacks, the learning rate's schedule, a garbage
collection). A garbage collection between scoring and updating is TRL's own, and is counted under
`score` and also by itself.
"""

import gc
import platform
import resource
import sys
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import torch
import transformers
import trl
from torch_peer import matmul_peak, serve
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

FLAT = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj"}
MATRICES = {"w_gate": "mlp.gate_proj", "w_in": "mlp.up_proj", "w_out": "mlp.down_proj"}
GAINS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}


def llama_state(w):
    """Our parameters, by their names in our tree and with the layers stacked, as Llama's state."""
    state = {"model.embed_tokens.weight": w["embed"], "model.norm.weight": w["final_norm"]}
    if "scalar/w" in w:
        state |= {"score.weight": w["scalar/w"][None], "score.bias": w["scalar/b"][None]}
    else:
        state["lm_head.weight"] = w["embed"]
    L, D = w["layers/norm1"].shape
    for i in range(L):
        layer = {name: w[f"layers/{name}"][i] for name in (*FLAT, *MATRICES, *GAINS, "wo")}
        found = {
            **{FLAT[name]: layer[name].reshape(D, -1).T for name in FLAT},
            **{MATRICES[name]: layer[name].T for name in MATRICES},
            **{GAINS[name]: layer[name] for name in GAINS},
            "self_attn.o_proj": layer["wo"].reshape(-1, D).T,
        }
        state |= {f"model.layers.{i}.{name}.weight": array for name, array in found.items()}
    return {name: torch.from_numpy(np.array(array)) for name, array in state.items()}


def llama(w, model):
    """A Llama with our parameters; with a scalar head in place of the vocabulary's if they have
    one."""
    L, D, heads, head_width = w["layers/wq"].shape
    config = LlamaConfig(
        vocab_size=model["vocab"],
        hidden_size=D,
        num_hidden_layers=L,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_width,
        intermediate_size=w["layers/w_in"].shape[2],
        rope_parameters={"rope_type": "default", "rope_theta": model["rope_base"]},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        num_labels=1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        dtype="float32",
    )
    if "scalar/w" in w:
        made = LlamaForSequenceClassification(config)
        made.score = torch.nn.Linear(D, 1)  # ours has a bias
    else:
        made = LlamaForCausalLM(config)
    made.load_state_dict(llama_state(w), strict=True)
    return made


class Clock:
    """When the phases of the iteration that runs began, and the seconds of those that are over."""

    def __init__(self):
        self.begun, self.spent, self.at = "", {}, 0.0

    def begin(self, phase):
        """Ends the phase before; "" begins none."""
        now = time.perf_counter()
        if self.begun:
            self.add(self.begun, now - self.at)
        self.begun, self.at = phase, now

    def add(self, phase, seconds):
        self.spent[phase] = self.spent.get(phase, 0.0) + seconds


class Trainer(PPOTrainer):
    """TRL's trainer, with a clock, and metrics that are kept instead of printed."""

    def log(self, logs, start_time=None):
        self.clock.begin("")
        self.metrics = logs

    def watch(self, clock):
        """Wraps what the loop calls. `given` responses take the place of generated ones."""
        self.clock, self.given = clock, None
        generation, forward = ppo_trainer.batch_generation, ppo_trainer.forward

        def timed_generation(model, queries, *rest):
            clock.begin("generate")
            if self.given is None:
                made = generation(model, queries, *rest)
            else:
                rows = torch.cat((queries, self.given), 1)
                made = rows, self.response_logits(forward(model, rows, rest[1]), queries.shape[1])
            clock.begin("score")
            return made

        def timed_forward(model, *rest):
            if model is self.model and clock.begun == "score":
                clock.begin("update")
            return forward(model, *rest)

        def timed_collect():
            start = time.perf_counter()
            gc.collect()
            if clock.begun:
                clock.add("collect", time.perf_counter() - start)

        ppo_trainer.batch_generation, ppo_trainer.forward = timed_generation, timed_forward
        ppo_trainer.gc = SimpleNamespace(collect=timed_collect)

    def response_logits(self, output, prompt_length):
        return output.logits[:, prompt_length - 1 : -1] / (self.args.temperature + 1e-7)

    def iterate(self, count):
        self.args.num_total_batches = count
        self.train()


class Program:
    """The operations, as in `rlhf_jax.tools.bench.ppo_program`."""

    def load(self, path, model, ppo, threads):
        torch.set_num_threads(threads)
        with np.load(path) as file:
            arrays = dict(file)
        self.prompts = torch.from_numpy(arrays.pop("prompts").astype(np.int64))
        by_model = {}
        for name, array in arrays.items():
            owner, _, rest = name.partition("/")
            by_model.setdefault(owner, {})[rest] = array
        nets = {name: llama(w, model) for name, w in by_model.items()}
        self.trainer = self.trainer_of(nets, model, ppo)
        self.clock = Clock()
        self.trainer.watch(self.clock)
        versions = {"trl": trl.__version__, "torch": torch.__version__}
        return {
            "versions": {
                **versions,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            }
        }

    def trainer_of(self, nets, model, ppo):
        """No token is PAD: it is one past the vocabulary. No token stops a response either."""
        rows = len(self.prompts)
        self.folder = tempfile.TemporaryDirectory(prefix="rlhf-jax-bench-")
        args = PPOConfig(
            output_dir=self.folder.name,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=1,
            local_rollout_forward_batch_size=rows,
            total_episodes=rows,
            lr_scheduler_type="constant",
            num_sample_generations=0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            stop_token=None,
            **ppo,
        )
        trainer = Trainer(
            args=args,
            processing_class=SimpleNamespace(
                pad_token_id=model["vocab"], eos_token_id=model["vocab"]
            ),
            model=nets["policy"],
            ref_model=nets["reference"],
            reward_model=nets["reward"],
            value_model=nets["critic"],
            train_dataset=list(self.prompts),
            data_collator=torch.stack,
        )
        trainer.dataloader = [{"input_ids": self.prompts}]  # in order, the same ones each time
        return trainer

    @torch.no_grad()
    def scored(self):
        """What every model says of the given responses, by TRL's functions."""
        trainer, responses, P = self.trainer, self.trainer.given, self.prompts.shape[1]
        rows, pad = torch.cat((self.prompts, responses), 1), trainer.processing_class.pad_token_id

        def log_probs(output):
            logits = trainer.response_logits(output, P)
            return ppo_trainer.selective_log_softmax(logits, responses).numpy()

        policy, values = ppo_trainer.forward(trainer.model, rows, pad)
        reference = ppo_trainer.forward(trainer.ref_model, rows, pad)
        return {
            "log_probs": log_probs(policy),
            "reference": log_probs(reference),
            "values": values[:, P - 1 : -1, 0].numpy(),
            "scores": ppo_trainer.get_reward(trainer.reward_model, rows, pad, P)[1].numpy(),
        }

    def once(self, path, responses):
        """The first iteration, on responses that the other side has sampled."""
        with np.load(responses) as file:
            self.trainer.given = torch.from_numpy(file["responses"].astype(np.int64))
        before = self.scored()
        self.trainer.iterate(1)
        after = self.scored()
        self.trainer.given = None
        np.savez(path, **before, **{f"{n}_after": after[n] for n in ("log_probs", "values")})
        metrics = self.trainer.metrics
        return {
            "policy_loss": metrics["loss/policy_avg"],
            "value_loss": metrics["loss/value_avg"],
        }

    def time(self, count):
        """Mean seconds of each phase of `count` iterations."""
        self.clock.spent = {}
        cpu, start = time.process_time(), time.perf_counter()
        self.trainer.iterate(count)
        spent = {phase: seconds / count for phase, seconds in self.clock.spent.items()}
        unit = 1 if sys.platform == "darwin" else 1024
        return {
            "total": spent["generate"] + spent["score"] + spent["update"],
            **spent,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        }

    def peak(self):
        return {"flops": matmul_peak()}


if __name__ == "__main__":
    serve(Program)
