from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from rlhf_jax.kinds.pretrain.result import PretrainResult
from rlhf_jax.study.cell import Cell, Cost, option
from rlhf_jax.study.config import Checked, ConfigError, ModelConfig, OptimConfig
from rlhf_jax.study.ranges import INT32, Seed, Size, Tokens

if TYPE_CHECKING:
    from rlhf_jax.study.graph import Study


@dataclass(frozen=True)
class Pretrain(Cell):
    """Next-token prediction on the corpus. `continues` extends another pretraining cell from its
    last checkpoint (optimizer moments and data position included) to more `tokens`, under a new
    schedule."""

    KIND = "pretrain"
    RESULT = PretrainResult
    ROLES = ("language_model", "pretraining")
    PARENTS = {"continues": "pretraining"}
    HELDOUT = True
    model: ModelConfig = field(default_factory=ModelConfig)
    tokens: Tokens = 1_000_000  # tokens processed in all, those of the cell it continues included
    batch: Size = 32  # sequences a step
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: Seed = 0
    continues: str | None = None
    # Only so many of the corpus's, the same ones for every seed.
    unique_tokens: Tokens | None = option(None)
    repeat: bool = False  # more tokens than there are unique ones, on purpose
    # MODULE:FUNCTION, a loss as `rlhf_jax.objectives.named` says; empty: negative log-likelihood.
    objective: str = option("", "callable")

    def seen(self, study: Study) -> int:
        """Tokens that the cell it continues has processed."""
        return getattr(study[self.continues], "tokens", 0) if self.continues else 0

    def cost(self, study: Study, accumulate: int = 1) -> Cost:
        from rlhf_jax.cost.flops import train_flops
        from rlhf_jax.cost.formulas import Formulas

        c = Formulas(study, self, accumulate)
        tokens = self.tokens - self.seen(study)
        flops = train_flops(c.model, c.s, tokens) + c.heldout
        return replace(c.trained(tokens // c.s, flops, self.batch), tokens=tokens)

    def batches(self, study: Study) -> Iterator[tuple[str, int, bool]]:
        yield f"{self.name}.batch", self.batch, True

    def together(self, study: Study) -> tuple:
        """Cells that differ in numbers alone (seed, and with it the order of the data; peak
        learning rate; weight decay). Of the cell that it continues only the length counts."""
        numbers = _values(self.optim, {"lr", "weight_decay"})
        without = {"name", "seed", "optim", "continues"}
        return (*_values(self, without), numbers, self.continues and self.seen(study))

    def check_in(self, study: Study) -> None:
        seq_len = study.corpus.seq_len
        step = self.batch * seq_len
        if self.unique_tokens is not None and self.unique_tokens < seq_len:
            raise ConfigError(
                f"{self.name}: unique_tokens = {self.unique_tokens} is less than one row "
                f"({seq_len})"
            )
        if self.tokens < step:
            raise ConfigError(
                f"{self.name}: tokens = {self.tokens} is less than one batch ({step})"
            )
        if self.tokens // step > INT32:
            raise ConfigError(
                f"{self.name}: tokens = {self.tokens:,} are {self.tokens // step:,} steps of "
                f"{step:,} tokens; expected at most {INT32:,}. Raise batch or lower tokens"
            )
        if self.continues:
            parent = study[self.continues]
            assert isinstance(parent, Pretrain)
            self._check_continues(parent, step)

    def _check_continues(self, parent: Pretrain, step: int) -> None:
        for path, own, before in self._differing(parent):
            raise ConfigError(
                f"{self.name}.{path} = {own!r}, but {parent.name!r}, which it continues, has "
                f"{before!r}; model and batch must agree: set both"
            )
        for name in ("seed", "unique_tokens"):
            own, before = getattr(self, name), getattr(parent, name)
            if own != before and not self.repeat:
                raise ConfigError(
                    f"{self.name}.{name} = {own}, but it continues {parent.name!r}, which has "
                    f"{before}: another order, in which text comes twice. Set {name} = {before}, "
                    f"or repeat = True to allow that"
                )
        if self.tokens < parent.tokens + step:
            raise ConfigError(
                f"{self.name} continues {parent.name!r}, which has seen {parent.tokens} tokens "
                f"already; tokens = {self.tokens} counts those too and must be larger"
            )

    def _differing(self, parent: Pretrain) -> Iterator[tuple[str, Any, Any]]:
        """(field, value, the parent's) of what has to be equal to continue it."""
        if self.batch != parent.batch:
            yield "batch", self.batch, parent.batch
        for f in fields(self.model):
            own, before = getattr(self.model, f.name), getattr(parent.model, f.name)
            if own != before:
                yield f"model.{f.name}", own, before

    def check_corpus(self, train_tokens: int) -> None:
        """Refuses to see text twice without having asked for it (`repeat`), and more unique tokens
        than there are."""
        if (self.unique_tokens or 0) > train_tokens:
            raise ConfigError(
                f"{self.name}: unique_tokens = {self.unique_tokens:,}, but the corpus has "
                f"{train_tokens:,} training tokens; add sources or lower it"
            )
        unique = self.unique_tokens or train_tokens
        if not self.repeat and self.tokens > unique:
            raise ConfigError(
                f"{self.name}: tokens = {self.tokens:,}, but there are {unique:,} unique training "
                f"tokens; add sources, lower tokens, or set repeat=true"
            )


def _values(config: Checked, without: set[str]) -> tuple:
    return tuple(getattr(config, f.name) for f in fields(config) if f.name not in without)  # type: ignore[arg-type]
