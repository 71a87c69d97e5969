"""What a running cell has at hand, and how models of finished cells are read back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from rlhf_jax.cells import Cell
from rlhf_jax.config import ModelConfig
from rlhf_jax.data.corpus import Corpus
from rlhf_jax.model import init, param_axes, with_scalar_head
from rlhf_jax.parallel import shardings
from rlhf_jax.runs import CellFolder, Heartbeat, read_json
from rlhf_jax.study import Study
from rlhf_jax.train import Runtime
from rlhf_jax.train.loop import final_checkpoint


@dataclass
class Context:
    """One cell's surroundings."""

    study: Study
    cell: Cell
    folders: dict[str, CellFolder]  # of every cell of the study, by name
    corpus: Corpus
    runtime: Runtime
    beat: Heartbeat

    @property
    def folder(self) -> CellFolder:
        return self.folders[self.cell.name]

    @property
    def model(self) -> ModelConfig:
        return self.study.model_of(self.cell)

    def language_model(self, name: str) -> Any:
        """Parameters of a finished pretraining, SFT or PPO cell, on this cell's mesh."""
        cfg = self.study.model_of(self.study[name])
        return read_model(self.folders[name], cfg, self.runtime)

    def reward_model(self, name: str) -> dict[str, Any]:
        """`reward` parameters with the `gain` and `bias` that normalise its score."""
        cfg = self.study.model_of(self.study[name])
        params = read_model(self.folders[name], cfg, self.runtime, scalar_head=True)
        report = self.folders[name].result("report")
        return {"reward": params, "gain": report["gain"], "bias": report["bias"]}


def read_model(
    folder: CellFolder, cfg: ModelConfig, runtime: Runtime, scalar_head: bool = False
) -> Any:
    """Parameters of a finished cell. A PPO cell's are those of its policy."""

    def like(scalar_head: bool) -> Any:
        def build(key: jax.Array) -> Any:
            params = init(cfg, key)
            return with_scalar_head(params, None) if scalar_head else params

        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(build, jax.random.key(0)),
            shardings(runtime.mesh, param_axes(cfg, scalar_head), runtime.axes),
        )

    if read_json(folder.path / "config.json")["kind"] == "ppo":
        return final_checkpoint(folder, {"policy": like(False), "critic": like(True)})["policy"]
    return final_checkpoint(folder, like(scalar_head))
