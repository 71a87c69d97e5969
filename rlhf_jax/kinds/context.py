"""The context in which a job runs, and how models of finished cells are read back. Reading data
imports no jax, so that `plan` can read it in the same way (`rlhf_jax.kinds.needs`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlhf_jax.data.chat import prompt_ids
from rlhf_jax.data.corpus import Corpus
from rlhf_jax.data.files import LeftOut
from rlhf_jax.data.packing import left_padded
from rlhf_jax.data.prompts import prompts_from
from rlhf_jax.kinds.task import TaskConfig
from rlhf_jax.study.callables import call_for_scores, call_for_texts
from rlhf_jax.study.cell import Cell, names_cell
from rlhf_jax.study.config import ConfigError, ModelConfig
from rlhf_jax.study.folder import CellFolder
from rlhf_jax.study.graph import Study
from rlhf_jax.study.heartbeat import Heartbeat
from rlhf_jax.study.messages import shown
from rlhf_jax.study.results import read

if TYPE_CHECKING:
    import jax

    from rlhf_jax.model.scoring import Sequences
    from rlhf_jax.rl.scores import Reward
    from rlhf_jax.train import Runtime


class TaskPrompts(NamedTuple):
    """Prompts as texts and as token ids (n, P), BOS included, padded on the left."""

    texts: list[str]
    ids: np.ndarray


@dataclass
class Context:
    """What a job of one cell works with: its study, corpus, devices and folders."""

    study: Study
    cell: Cell
    folders: dict[str, CellFolder]  # of every cell of the study, by name
    corpus: Corpus
    runtime: Runtime
    beat: Heartbeat
    left_out: dict[str, str] = field(
        default_factory=dict
    )  # file -> rows that were not used, and why

    def leave_out(self, where: str, left: LeftOut, unread: Sequence[str] = ()) -> None:
        """Says, in the log and in the cell's results, which rows of a file could not be used, and
        which fields are not read."""
        said = [str(left)] if left.rows else []
        if unread:
            said.append(f"fields that are not read: {ascii(', '.join(unread))[1:-1][:300]}")
        if said:
            known = self.left_out.get(where)
            self.left_out[where] = "; ".join([*([known] if known else []), *said])
            self.runtime.log(f"{self.cell.name}: {where}: {'; '.join(said)}")

    def noted(self, notes: Sequence[str]) -> tuple[str, ...]:
        """Notes on labels or scores, logged, and as the cell's results have them."""
        for note in notes:
            self.runtime.log(f"{self.cell.name}: {note}")
        return tuple(notes)

    def result(self, name: str) -> Any:
        """The typed results of a finished cell."""
        return read(self.study[name].RESULT, self.folders[name])

    @property
    def folder(self) -> CellFolder:
        return self.folders[self.cell.name]

    @property
    def model(self) -> ModelConfig:
        return self.study.model_of(self.cell)

    def language_model(self, name: str) -> Any:
        """Parameters of a finished cell that plays `language_model`, on this cell's mesh."""
        cfg = self.study.model_of(self.study[name])
        return read_model(self.folders[name], cfg, self.runtime)

    def reward(self, name: str) -> Reward:
        """The reward that a cell's field names: of a cell or a callable."""
        from rlhf_jax.rl.scores import Reward, callable_reward

        if not names_cell(name):
            where = f"{self.cell.name}.reward"
            return callable_reward(
                partial(call_for_scores, name, where), self.corpus.tokenizer.decode
            )
        reward, path = self.play("reward", name), self.study[name].job_path("reward")
        if not isinstance(reward, Reward):
            raise ConfigError(f"{path} gave {shown(reward)}; expected rlhf_jax.rl.scores.Reward")

        def score(arrays: Any, rows: Sequences, mask_BR: jax.Array) -> jax.Array:
            scores_B = reward.score(arrays, rows, mask_BR)
            if np.shape(scores_B) != mask_BR.shape[:1]:
                raise ConfigError(
                    f"the score of {path} is an array of shape {np.shape(scores_B)}; expected "
                    f"{mask_BR.shape[:1]}, a number for each response"
                )
            return scores_B

        return reward._replace(score=score)

    def keep_model(self, params: Any) -> None:
        """Saves parameters that `train` has not made as the model that the cell ends with."""
        from rlhf_jax.train.loop import keep_model

        keep_model(self.folder, params, self.runtime, self.beat)

    def play(self, role: str, name: str, *arguments: Any) -> Any:
        """What a finished cell gives in a role, by the function of that name beside its job."""
        cell = self.study[name]
        return cell.job_function(role)(self, cell, *arguments)

    def prompts(self, task: TaskConfig, split: str, n: int, seed: int) -> TaskPrompts:
        """`n` prompts of a task from a split."""
        if not task.prompts:
            found = prompts_from(self.corpus, split, n, task.prompt_len, seed, task.response_len)
            ids = np.array([p.prompt_ids for p in found], np.int32)
            return TaskPrompts([p.prompt for p in found], ids)
        where = f"{self.cell.name}.task.prompts"
        texts = call_for_texts(task.prompts, where, split, n, seed, count=n)
        encoded = [prompt_ids(self.corpus.tokenizer, t, task.template) for t in texts]
        return TaskPrompts(texts, left_padded(encoded, task.prompt_len))

    def gold(
        self, task: TaskConfig, prompts: Sequence[str], responses: Sequence[str]
    ) -> np.ndarray:
        """The labeller's scores (n,) of responses to prompts."""
        return call_for_scores(task.gold, f"{self.cell.name}.task.gold", prompts, responses)


def read_model(folder: CellFolder, cfg: ModelConfig, runtime: Runtime) -> Any:
    """Parameters of a finished cell, on this mesh. Of a checkpoint with several models by name
    those of `policy`, or of its average `ema` if there is one, without a value head."""
    import jax

    from rlhf_jax.model import has_scalar_head, param_axes, without_scalar_head
    from rlhf_jax.model.parameters import describe
    from rlhf_jax.model.sharding import shardings
    from rlhf_jax.train.loop import final_checkpoint

    of_one_model = describe(cfg, scalar_head=True).keys()

    def laid_out(shapes: Any) -> Any:
        """A model's shapes on the mesh; of several models only the one that is wanted is read."""
        if not shapes.keys() <= of_one_model:
            wanted = "ema" if "ema" in shapes else "policy"
            return {
                n: laid_out(t) if n == wanted else jax.tree.map(lambda _: ..., t)
                for n, t in shapes.items()
            }
        layout = shardings(runtime.mesh, param_axes(cfg, has_scalar_head(shapes)), runtime.axes)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout
        )

    params = final_checkpoint(folder, laid_out)
    if params.keys() <= of_one_model:
        return params
    return without_scalar_head(params["ema"] if "ema" in params else params["policy"])
