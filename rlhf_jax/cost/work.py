"""What a cell of each kind computes, in FLOPs (`rlhf_jax.cost.flops`, convention `exact`), and
what it takes of memory and disk, by estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_jax.cost.flops import flops_per_token, param_counts, train_flops
from rlhf_jax.cost.memory import BASELINE_BYTES, rlhf_bytes, sampling_bytes, training_bytes
from rlhf_jax.kinds.best_of_n.cell import BestOfN
from rlhf_jax.kinds.compare.cell import Compare
from rlhf_jax.kinds.dpo.cell import DPO
from rlhf_jax.kinds.ensemble.cell import Ensemble
from rlhf_jax.kinds.evaluate.cell import Evaluate
from rlhf_jax.kinds.feedback.cell import Feedback
from rlhf_jax.kinds.ppo.cell import PPO
from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.kinds.prompting.cell import Prompting
from rlhf_jax.kinds.reward.cell import Reward
from rlhf_jax.kinds.sft.cell import SFT
from rlhf_jax.study.cell import Cell, names_cell
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.graph import Study

CHECKPOINT_BYTES = (
    2 * 12
)  # a trained parameter's, with its Adam moments, in the two checkpoints kept
RECORDS = 1000  # prompts that a file of comparisons is taken to hold
TYPES = 20  # types and groups of items that a prompting cell is taken to have


@dataclass(frozen=True)
class Work:
    """Of one cell. `decode_flops` is the part of `flops` spent sampling, one token a step; memory
    (beside the process itself) and disk are in bytes."""

    sequences: int
    flops: float
    decode_flops: float
    memory: float
    disk: float


class _Costs:
    """What the formulas of a cell share: its model, and passes over one of its sequences."""

    def __init__(self, study: Study, cell: Cell, accumulate: int) -> None:
        self.study, self.cell, self.accumulate = study, cell, accumulate
        self.model = study.model_of(cell)
        self.s = row_length(study, cell)
        self.params = param_counts(self.model)["total"]
        self.forward = self.passes(self.model)
        self.heldout = (
            study.corpus.heldout_tokens * flops_per_token(self.model, study.corpus.seq_len) / 3.0
        )

    def passes(self, model: ModelConfig) -> float:
        """A forward pass of some model over one sequence."""
        return flops_per_token(model, self.s) / 3.0 * self.s

    def rewards(self, name: str) -> list[ModelConfig]:
        return [self.study.model_of(self.study[n]) for n in self.study.reward_models(name)]

    def trained(self, sequences: int, flops: float, batch: int) -> Work:
        micro = max(1, batch // self.accumulate)
        memory = training_bytes(self.model, micro, self.s, trained=1)
        return Work(sequences, flops, 0.0, memory, CHECKPOINT_BYTES * self.params)

    def sampled(self, sequences: int, flops: float, decode: float, rows: int, models: int) -> Work:
        memory = sampling_bytes(self.model, rows, self.s, models)
        return Work(sequences, flops, decode, memory, 16.0 * sequences * self.s)


def _pretrain(c: _Costs, cell: Pretrain) -> Work:
    seen = getattr(c.study[cell.continues], "tokens", 0) if cell.continues else 0
    tokens = cell.tokens - seen
    flops = train_flops(c.model, c.s, tokens) + c.heldout
    return c.trained(tokens // c.s, flops, cell.batch)


def _sft(c: _Costs, cell: SFT) -> Work:
    sequences = cell.examples * cell.epochs
    return c.trained(sequences, 3.0 * c.forward * sequences, cell.batch)


def _sampling(c: _Costs, cell: Compare | Feedback) -> Work:
    sequences = (cell.prompts + cell.heldout_prompts) * cell.k
    return c.sampled(sequences, c.forward * sequences, c.forward * sequences, 256, 1)


def _rankings(c: _Costs, cell: Reward | DPO) -> Work:
    train, heldout_rows, k = compared(c.study, cell)
    sequences = train * k * cell.epochs
    flops = 3.0 * c.forward * sequences + c.forward * heldout_rows * k
    if isinstance(cell, DPO):
        flops += c.forward * train * k + c.heldout  # the reference's log-probs
    return c.trained(sequences, flops, cell.batch * k)


def _ensemble(c: _Costs, cell: Ensemble) -> Work:
    _, heldout_rows, k = compared(c.study, c.study[cell.members[0]])
    sequences = heldout_rows * k
    flops = sum(map(c.passes, c.rewards(cell.name))) * sequences
    return Work(sequences, flops, 0.0, sampling_bytes(c.model, 256, c.s, len(cell.members)), 0.0)


def _ppo(c: _Costs, cell: PPO) -> Work:
    sequences = cell.iterations * cell.batch * cell.samples
    rewards = c.rewards(cell.reward)
    critic = (rewards or [c.model])[0] if cell.critic == "reward" else c.model
    own = cell.algorithm == "ppo" and cell.critic != "shared"
    trained = [c.model, critic] if own else [c.model]
    learned = sum(map(c.passes, trained))
    decode = c.forward * sequences
    scored = (
        c.forward + learned + sum(map(c.passes, rewards))
    )  # the reference, the trained, rewards
    flops = decode + sequences * (scored + cell.epochs * 3 * learned)
    if cell.ptx_coef:
        rows = cell.iterations * cell.epochs * cell.minibatches * cell.ptx_batch
        T = c.study.corpus.seq_len
        flops += train_flops(c.model, T, rows * T)
    parts = rlhf_bytes(cell, c.model, trained[-1], rewards, c.accumulate)
    memory = sum(parts.values()) - BASELINE_BYTES
    params = sum(param_counts(m)["total"] for m in trained)
    return Work(sequences, flops, decode, memory, CHECKPOINT_BYTES * params)


def _best_of_n(c: _Costs, cell: BestOfN) -> Work:
    sequences = cell.n * cell.prompts
    scored = sum(map(c.passes, c.rewards(cell.reward)))
    decode = c.forward * sequences
    return c.sampled(sequences, decode + scored * sequences, decode, cell.prompts, 3)


def _evaluate(c: _Costs, cell: Evaluate) -> Work:
    sequences = 2 * cell.prompts
    scored = 2 * c.forward + sum(map(c.passes, c.rewards(cell.reward)))
    decode = c.forward * sequences
    flops = decode + scored * sequences + 2 * c.heldout
    return c.sampled(sequences, flops, decode, cell.prompts, 3)


def _prompting(c: _Costs, cell: Prompting) -> Work:
    sequences = TYPES * cell.items * len(cell.shots)
    decode = c.forward * sequences * cell.answer_len / c.s
    memory = sampling_bytes(c.model, 256, c.s, 1)
    return Work(sequences, 2 * c.forward * sequences + decode, decode, memory, 0.0)


WORK: dict[type[Cell], Callable[[_Costs, Any], Work]] = {
    Pretrain: _pretrain,
    SFT: _sft,
    Compare: _sampling,
    Feedback: _sampling,
    Reward: _rankings,
    DPO: _rankings,
    Ensemble: _ensemble,
    PPO: _ppo,
    BestOfN: _best_of_n,
    Evaluate: _evaluate,
    Prompting: _prompting,
}


def work_of(study: Study, cell: Cell, accumulate: int = 1) -> Work:
    """accumulate: micro-batches of a step. Raises ConfigError for a kind of cell that has no
    formula."""
    if type(cell) not in WORK:
        raise ConfigError(f"{cell.name}: no cost is known for a cell of kind {cell.KIND!r}")
    return WORK[type(cell)](_Costs(study, cell, accumulate), cell)


def compared(study: Study, cell: Cell) -> tuple[int, int, int]:
    """(training prompts, held-out prompts, completions a prompt) of a cell that learns from
    rankings; of a file of records, which is not read here, a guess."""
    assert isinstance(cell, Reward | DPO)
    cells = [
        c for n in cell.compared if names_cell(n) and isinstance(c := study[n], Compare | Feedback)
    ]
    train = sum(c.prompts for c in cells) or RECORDS
    if isinstance(cell, Reward) and cell.prompts is not None:
        train = min(train, cell.prompts)
    heldout = cells[0].heldout_prompts if cells else RECORDS // 8
    return train, heldout, max((c.k for c in cells), default=2)


def row_length(study: Study, cell: Cell) -> int:
    """Tokens in one sequence of a cell."""
    while isinstance(cell, Ensemble):
        cell = study[cell.members[0]]
    task = getattr(cell, "task", None)
    if isinstance(cell, Reward | DPO) and names_cell(cell.comparisons):
        task = getattr(study[cell.comparisons], "task", None)
    return task.prompt_len + task.response_len if task else study.corpus.seq_len
