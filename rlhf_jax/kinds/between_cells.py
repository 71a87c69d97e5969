"""Checks between the cells of a study, before any of them runs and without data: positions for the
sequences that models score, splits of the corpus, and the checks of each kind."""

from __future__ import annotations

from rlhf_jax.study.cell import Cell, names_cell
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.graph import Study


def check_cells(study: Study) -> None:
    """Refuses now what a job would refuse after its parents had run.

    Raises:
        ConfigError: names the cell, its field, and what to do.
    """
    for cell in study.cells:
        _check_positions(study, cell)
        _check_splits(study, cell)
        cell.check_parents(study)
        for field, role in cell.PARENTS.items():
            for name in filter(names_cell, cell.named(field)):
                study[name].check_as(role, study, cell)


def _check_positions(study: Study, cell: Cell) -> None:
    for owner, length, of in cell.scored(study):
        most = study.model_of(study[owner]).max_positions
        if length > most:
            raise ConfigError(
                f"{cell.name}: {of} are of {length} tokens, but {owner!r} scores them and its "
                f"model has max_positions = {most}; shorten them or raise it"
            )


def _check_splits(study: Study, cell: Cell) -> None:
    """Refuses to take prompts, or held-out text, from a split that the corpus has no share for."""
    shares = {"validation": study.corpus.validation, "test": study.corpus.test}
    for split in sorted({*cell.splits(), *(("validation",) if cell.HELDOUT else ())}):
        if shares.get(split) == 0:
            raise ConfigError(
                f"{cell.name} needs text of the {split} split, but corpus.{split} = 0; set it to a "
                f"share of the documents, for instance 0.05"
            )


def remarks(study: Study) -> list[str]:
    """Warnings about settings that are allowed, but hardly intended."""
    said = [text for cell in study.cells for text in cell.remarks(study)]
    unknown = {c.KIND for c in study.cells if not c.cost(study).estimated}
    return said + [
        f"no cost is known for cells of kind {kind!r}; the plan counts them as nothing"
        for kind in sorted(unknown)
    ]
