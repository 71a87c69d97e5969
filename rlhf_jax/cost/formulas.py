"""What the cost formulas of kinds share: FLOPs (`rlhf_jax.cost.flops`, convention `exact`), and
memory and disk by estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_jax.cost.flops import flops_per_token, param_counts
from rlhf_jax.cost.memory import sampling_bytes, training_bytes
from rlhf_jax.study.cell import Cell, Cost
from rlhf_jax.study.config import ModelConfig

if TYPE_CHECKING:
    from rlhf_jax.study.graph import Study

# Of a trained parameter, with its Adam moments, in the two checkpoints that are kept.
CHECKPOINT_BYTES = 2 * 12


class Formulas:
    """Of one cell.

    Attributes:
        s: tokens in one of its sequences. params: of its model.
        forward: FLOPs of a forward pass over one sequence. heldout: over the held-out set.
    """

    def __init__(self, study: Study, cell: Cell, accumulate: int) -> None:
        self.study, self.cell, self.accumulate = study, cell, accumulate
        self.model = study.model_of(cell)
        self.s = cell.row_length(study)
        self.params = param_counts(self.model)["total"]
        self.forward = self.passes(self.model)
        per_token = flops_per_token(self.model, study.corpus.seq_len) / 3.0
        self.heldout = study.corpus.heldout_tokens * per_token

    def passes(self, model: ModelConfig) -> float:
        """A forward pass of some model over one sequence."""
        return flops_per_token(model, self.s) / 3.0 * self.s

    def rewards(self, name: str) -> list[ModelConfig]:
        """The models behind a reward."""
        return [self.study.model_of(self.study[n]) for n in self.study.reward_models(name)]

    def trained(self, sequences: int, flops: float, batch: int) -> Cost:
        micro = max(1, batch // self.accumulate)
        memory = training_bytes(self.model, micro, self.s, trained=1)
        return Cost(sequences, flops, 0.0, memory, CHECKPOINT_BYTES * self.params)

    def sampled(self, sequences: int, flops: float, decode: float, rows: int, models: int) -> Cost:
        memory = sampling_bytes(self.model, rows, self.s, models)
        return Cost(sequences, flops, decode, memory, 16.0 * sequences * self.s)
