"""What cells ask of each other, checked before any of them runs and without data: positions for the
sequences that their models score, records enough for a batch, verdicts of a model that is named as
a reward."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_jax.kinds.best_of_n.cell import BestOfN
from rlhf_jax.kinds.compare.cell import Compare
from rlhf_jax.kinds.dpo.cell import DPO
from rlhf_jax.kinds.ensemble.cell import Ensemble
from rlhf_jax.kinds.evaluate.cell import Evaluate
from rlhf_jax.kinds.feedback.cell import Feedback
from rlhf_jax.kinds.ppo.cell import PPO
from rlhf_jax.kinds.pretrain.cell import Pretrain
from rlhf_jax.kinds.reward.cell import Reward
from rlhf_jax.kinds.sft.cell import SFT
from rlhf_jax.study.cell import Cell, names_cell
from rlhf_jax.study.config import ConfigError
from rlhf_jax.study.graph import Study

HELD_OUT = (Pretrain, SFT, DPO, Evaluate)  # kinds that are scored on the held-out set
# Of a critique, at most: the critique, a verdict, a revision, and the revision as an answer.
EXAMPLES = 4


def check_cells(study: Study) -> None:
    """Refuses what a job would refuse, however long its parents took.

    Raises:
        ConfigError: names the cell, its field, and what to do.
    """
    for cell in study.cells:
        _check_positions(study, cell)
        _check_splits(study, cell)
        if isinstance(cell, SFT | Reward | DPO):
            _check_records(study, cell)
        if isinstance(cell, Reward | DPO):
            _check_information(study, cell)
        if isinstance(cell, Reward) and cell.normalise == "demonstrations":
            _check_demonstrations(study, cell)
        if isinstance(cell, PPO | BestOfN | Evaluate) and names_cell(cell.reward):
            _check_verdicts(study, cell)


def _check_positions(study: Study, cell: Cell) -> None:
    for owner, length, of in _scored(study, cell):
        most = study.model_of(study[owner]).max_positions
        if length > most:
            raise ConfigError(
                f"{cell.name}: {of} are of {length} tokens, but {owner!r} scores them and its "
                f"model has max_positions = {most}; shorten them or raise it"
            )


def _scored(study: Study, cell: Cell) -> Iterator[tuple[str, int, str]]:
    """(the cell whose model scores, longest sequence, what those are), beside a cell's own model
    and its task."""
    if isinstance(cell, PPO | BestOfN | Evaluate):
        length = cell.task.prompt_len + cell.task.response_len
        models = study.reward_models(cell.reward)
        for owner in (*models, *((cell.before, cell.after) if isinstance(cell, Evaluate) else ())):
            yield owner, length, f"prompts and responses of {cell.name}.task"
    if isinstance(cell, Reward | DPO):
        for name in cell.compared:
            if names_cell(name) and isinstance(source := study[name], Compare):
                length = source.task.prompt_len + source.task.response_len
                yield cell.parents()[0], length, f"the comparisons of {name!r}"
    if isinstance(cell, Ensemble):
        for _, length, of in _scored(study, study[cell.members[0]]):
            yield from ((member, length, of) for member in cell.members)


def _check_splits(study: Study, cell: Cell) -> None:
    """Refuses to take prompts, or held-out text, from a split that the corpus has no share for."""
    shares = {"validation": study.corpus.validation, "test": study.corpus.test}
    asked = {"validation"} if isinstance(cell, HELD_OUT) else set()
    if isinstance(cell, Compare | Feedback | Evaluate | BestOfN) and not cell.task.prompts:
        of_kind = {"evaluate": "test", "best_of_n": getattr(cell, "split", "")}
        asked.add(of_kind.get(cell.KIND, "validation"))
    for split in sorted(asked):
        if shares.get(split) == 0:
            raise ConfigError(
                f"{cell.name} needs text of the {split} split, but corpus.{split} = 0; set it to a "
                f"share of the documents, for instance 0.05"
            )


def _check_records(study: Study, cell: SFT | Reward | DPO) -> None:
    """Refuses a batch that the cells it learns from cannot fill."""
    names: tuple[str, ...]
    limit: int | None
    if isinstance(cell, SFT):
        names = (cell.records,) if cell.records and names_cell(cell.records) else ()
        limit, each = cell.examples, EXAMPLES
    else:
        names = cell.compared if all(map(names_cell, cell.compared)) else ()
        limit, each = (cell.prompts if isinstance(cell, Reward) else None), 1
    most = {f"{', '.join(map(repr, names))} gives": sum(_records_of(study[n], each) for n in names)}
    most = (most if names else {}) | ({f"{cell.name} takes": limit} if limit is not None else {})
    for who, count in most.items():
        if count < cell.batch:
            raise ConfigError(
                f"{cell.name}.batch = {cell.batch}, but {who} {count} examples at most; lower "
                f"batch or raise their number"
            )


def _records_of(cell: Cell, each: int) -> int:
    """What a cell gives to learn from, at most; `each` examples a critique."""
    if isinstance(cell, Feedback):
        return cell.prompts * cell.k * (each if cell.gives == "critiques" else 1)
    return cell.prompts if isinstance(cell, Compare | BestOfN) else 0


def _check_demonstrations(study: Study, cell: Reward) -> None:
    compared = study[cell.comparisons] if names_cell(cell.comparisons) else None
    if not isinstance(compared, Compare) or compared.task.prompts:
        raise ConfigError(
            f"{cell.name}.normalise = 'demonstrations' needs true continuations of the prompts of "
            f"{cell.comparisons!r}; only openings of the corpus's sentences have them. Use "
            "'samples'"
        )


def _check_verdicts(study: Study, cell: PPO | BestOfN | Evaluate) -> None:
    judge = study[cell.reward]
    if not isinstance(judge, SFT) or (judge.records and not names_cell(judge.records)):
        return
    given = study[judge.records] if judge.records else None
    if not (isinstance(given, Feedback) and given.gives == "critiques"):
        raise ConfigError(
            f"{cell.name}.reward = {judge.name!r} learns from "
            f"{judge.records or 'true continuations'}, which hold no verdicts; let it learn from "
            "critiques with verdicts, or name a reward cell"
        )


def remarks(study: Study) -> list[str]:
    """What may be meant otherwise, in plain words; nothing is refused for it."""
    said = []
    for cell in study.cells:
        if isinstance(cell, Ensemble) and (same := same_runs(study, cell)):
            said.append(f"{cell.name}.members: {same}")
        if isinstance(cell, Compare) and cell.temperature == 0:
            said.append(
                f"{cell.name}.temperature = 0: the {cell.k} completions of a prompt are one text, "
                f"so all tie and no comparison says anything"
            )
        if isinstance(cell, BestOfN) and cell.temperature == 0 and cell.n > 1:
            said.append(
                f"{cell.name}.temperature = 0: the {cell.n} samples of a prompt are one text, the "
                f"best of which is no better than any"
            )
    return said


def same_runs(study: Study, cell: Ensemble) -> str:
    """Which members are the same run, and what follows; empty: none are."""
    ids = study.run_ids("")
    groups: dict[str, list[str]] = {}
    for member in cell.members:
        groups.setdefault(ids[member], []).append(member)
    equal = [", ".join(names) for names in groups.values() if len(names) > 1]
    if not equal:
        return ""
    return (
        f"{' and '.join(equal)} are the same run, equal in all but their names, and always agree; "
        f"for an ensemble give them different seeds, bases or comparisons"
    )


def _check_information(study: Study, cell: Reward | DPO) -> None:
    """Refuses to learn from greedy completions alone, which are equal and tie."""
    sources = [study[n] if names_cell(n) else None for n in cell.compared]
    if all(isinstance(s, Compare) and s.temperature == 0 for s in sources):
        raise ConfigError(
            f"{cell.name}.comparisons = {cell.comparisons!r} compares completions at temperature "
            f"0: those of a prompt are one text and tie, so nothing can be learned; set "
            f"{cell.comparisons}.temperature above 0"
        )
